"""An export is the source again, byte by byte; after training it differs in the weights alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import torch
from conversions import (
    ONE,
    SOURCES,
    TP2PP2,
    UNTOUCHING,
    Sources,
    add_tokenizer,
    assert_loads_and_generates,
    assert_same_weights,
    export,
    make_source,
    other_files,
    read_weights,
    train,
)
from logits import assert_close, hf_logits, logits_task, make_sequences
from rank_pool import Layout, RankPool
from training import import_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize("name", SOURCES)
def test_export_of_an_import_is_the_source(pool: RankPool, sources: Sources, tmp_path: Path, name: str) -> None:
    source, checkpoint = sources(name)
    exported = export(pool, checkpoint, tmp_path / "exported")
    assert_same_weights(exported, source)
    assert other_files(exported) == other_files(source)
    assert [f.name for f in exported.glob("*.safetensors*")] == ["model.safetensors"]  # no index of files not there
    assert assert_loads_and_generates(exported) == assert_loads_and_generates(source)


TRAINED = [
    ("llama fp32 tied", TP2PP2, "fp32"),
    ("llama fp32 sharded", Layout(tp=2, sp=True), "fp32"),
    ("llama bf16 tied rope", Layout(pp=2), "fp32"),
    ("mistral bf16", Layout(tp=2), "bf16"),
    ("llama bf16 tied rope", TP2PP2, "bf16"),
]


@pytest.mark.parametrize(("name", "layout", "precision"), TRAINED)
def test_weights_that_training_leaves_alone_come_back(
    pool: RankPool, sources: Sources, tmp_path: Path, name: str, layout: Layout, precision: str
) -> None:
    source, checkpoint = sources(name)
    smallest = min(w[w != 0].abs().min().item() for w in read_weights(source).values())
    assert smallest > 1e-20  # so the rate below changes none of them
    rows = train(pool, checkpoint, tmp_path / "run", layout, UNTOUCHING, precision)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 1e-3 for row in rows)  # the optimizer had something to do
    exported = export(pool, tmp_path / "run", tmp_path / "exported")  # a run's directory: its newest checkpoint
    assert_same_weights(exported, source)
    assert other_files(exported) == other_files(source)


@pytest.mark.parametrize(("name", "layout"), [("llama fp32 tied", TP2PP2), ("mistral bf16", Layout(tp=2, sp=True))])
def test_a_trained_export_differs_in_weights_only(
    pool: RankPool, sources: Sources, tmp_path: Path, name: str, layout: Layout
) -> None:
    source, checkpoint = sources(name)
    train(pool, checkpoint, tmp_path / "run", layout, ["optim.lr=3e-2"])
    exported = export(pool, tmp_path / "run/checkpoints/step-00000002", tmp_path / "exported")
    assert other_files(exported) == other_files(source)
    before, after = read_weights(source), read_weights(exported)
    assert sorted(before) == sorted(after)
    for tensor, weight in before.items():
        assert after[tensor].dtype == weight.dtype
        assert after[tensor].shape == weight.shape
        assert not torch.equal(after[tensor], weight), tensor
    assert_loads_and_generates(exported)


def test_a_trained_checkpoint_has_the_exports_logits(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    """Trained at one layout, run at another, exported: all three say the same."""
    _, checkpoint = sources("llama fp32 tied")
    train(pool, checkpoint, tmp_path / "run", Layout(tp=2), ["optim.lr=3e-2"])
    exported = export(pool, tmp_path / "run", tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager")
    sequences = make_sequences(261)
    expected = hf_logits(model, sequences)
    answers = pool.run(TP2PP2, logits_task, str(tmp_path / "run"), [sequences])
    shards = dict(answer for answer in answers if answer is not None)
    got = torch.from_numpy(np.concatenate([shards[0][0], shards[1][0]], axis=1))
    assert_close(got[:, :261], expected)


def test_the_dtype_is_the_weights_where_the_config_is_silent(pool: RankPool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "hf", ref.tiny_llama(26, vocab=261).bfloat16())
    config = json.loads((source / "config.json").read_text())
    removed = [config.pop(name, None) for name in ("dtype", "torch_dtype")]
    assert "bfloat16" in removed
    (source / "config.json").write_text(json.dumps(config))
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    exported = export(pool, tmp_path / "nemo", tmp_path / "exported")
    assert_same_weights(exported, source)


def test_a_source_without_a_generation_config_gets_none(pool: RankPool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "hf", ref.tiny_llama(27, vocab=261))
    (source / "generation_config.json").unlink()
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    exported = export(pool, tmp_path / "nemo", tmp_path / "exported")
    assert sorted(other_files(exported)) == sorted(other_files(source))


def import_with_tokenizer(source: str, output: str, tokenizer: str) -> None:
    """Task: `import-hf` with another tokenizer."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.models.conversion import import_hf

    import_hf(find_checkpoint(source, "source"), Path(output), tokenizer)


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] }}!", None], ids=["own template", "no template"])
def test_another_tokenizer_replaces_the_whole_of_the_sources(
    pool: RankPool, sources: Sources, tmp_path: Path, template: str | None
) -> None:
    source, _ = sources("llama fp32 tied")
    add_tokenizer(tmp_path / "tokenizer", template)
    arguments = (str(source), str(tmp_path / "nemo"), str(tmp_path / "tokenizer"))
    pool.run(ONE, import_with_tokenizer, *arguments)
    exported = export(pool, tmp_path / "nemo", tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(exported).chat_template == template
    assert (exported / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert_same_weights(exported, source)
