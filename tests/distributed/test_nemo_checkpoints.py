"""Our checkpoints from NeMo's side: its context loads, shapes are padded, Transformer Engine finds its keys."""

from pathlib import Path
from typing import Any

import pytest
from conversions import ONE, TP2PP2, UNTOUCHING, Sources, train
from rank_pool import RankPool

FIELDS = [
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "seq_length",
    "vocab_size",
    "real_vocab_size",
    "rotary_base",
    "rotary_inv_freq",
    "window_size",
    "layernorm_epsilon",
    "share_embeddings_and_output_weights",
    "normalization",
    "gated_linear_unit",
    "add_bias_linear",
    "position_embedding_type",
    "attention_dropout",
    "hidden_dropout",
    "variable_seq_lengths",
    "calculate_per_token_loss",
    "init_method_std",
    "activation_func",
    "transformer_layer_spec",
]


def compare_context(path: str, source: str, fields: list[str]) -> tuple[str, dict[str, tuple[str, str]], Any, str]:
    """Task: NeMo's own view of a checkpoint: model class, fields unlike our config's, dtype, what a build has."""
    from nemo.lightning import io
    from transformers import AutoConfig

    from nemo_tvkd.models.architecture import model_config
    from nemo_tvkd.models.policy import PolicyModel

    model = io.load_context(Path(path), subpath="model")
    expected = model_config(AutoConfig.from_pretrained(source))
    pairs = {name: (getattr(model.config, name), getattr(expected, name)) for name in fields}
    unlike = {
        name: (str(got), str(want))
        for name, (got, want) in pairs.items()
        if (tuple(got) if isinstance(got, list) else got) != (tuple(want) if isinstance(want, list) else want)
    }
    assert isinstance(model, PolicyModel)
    built = model.config.configure_model(tokenizer=None)
    return type(model).__name__, unlike, str(model.config.params_dtype), type(built).__name__


@pytest.mark.parametrize("name", ["llama bf16 tied rope", "mistral bf16", "llama fp32 sharded"])
def test_nemo_loads_the_context_of_an_import(pool: RankPool, sources: Sources, name: str) -> None:
    source, checkpoint = sources(name)
    dtype = "torch.bfloat16" if "bf16" in name else "torch.float32"
    answer = pool.run(ONE, compare_context, str(checkpoint), str(source), FIELDS)[0]
    assert answer == ("PolicyModel", {}, dtype, "GPTModel")


def test_nemo_loads_the_context_of_a_training_checkpoint(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, checkpoint = sources("llama bf16 tied rope")
    train(pool, checkpoint, tmp_path / "run", TP2PP2, UNTOUCHING)
    trained = tmp_path / "run/checkpoints/step-00000002"
    answer = pool.run(ONE, compare_context, str(trained), str(source), FIELDS)[0]
    assert answer == ("PolicyModel", {}, "torch.float32", "GPTModel")


def stored_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Task: global shapes of a distributed checkpoint's tensors."""
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(Path(path) / "weights").read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items() if hasattr(entry, "size")}


def test_padded_rows_are_in_the_nemo_checkpoint_alone(pool: RankPool, sources: Sources) -> None:
    _, checkpoint = sources("llama fp32 sharded")
    shapes = pool.run(ONE, stored_shapes, str(checkpoint))[0]
    assert shapes["module.embedding.word_embeddings.weight"] == (384, 32)
    assert shapes["module.output_layer.weight"] == (384, 32)


def stored_names(checkpoint: Path) -> list[str]:
    """The keys of a distributed checkpoint, objects included."""
    from torch.distributed.checkpoint import FileSystemReader

    return list(FileSystemReader(checkpoint / "weights").read_metadata().state_dict_metadata)


def test_checkpoints_hold_the_keys_that_transformer_engine_asks_for(sources: Sources) -> None:
    """TE's modules load an (empty) extra state each; a checkpoint without these keys would not load on a GPU."""
    names = stored_names(sources("llama fp32 tied")[1])
    for module in (
        "decoder.final_layernorm",
        "decoder.layers.self_attention.linear_qkv",
        "decoder.layers.mlp.linear_fc1",
    ):
        assert any(name.startswith(f"module.{module}._extra_state") for name in names), module
