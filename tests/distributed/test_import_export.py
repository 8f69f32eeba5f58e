"""Hugging Face import and export: the same logits at every layout, and the same bytes on the way back."""

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import reference as ref
import torch
from rank_pool import Layout, RankPool
from training import VOCAB, export_checkpoint, import_checkpoint, make_items, run_training, save_hf
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from nemo_tvkd.__main__ import main

TOLERANCE = 1e-5
ONE = Layout()
TP2PP2 = Layout(tp=2, pp=2)
LAYOUTS = [ONE, Layout(tp=2), Layout(pp=2), TP2PP2]
TP4 = Layout(tp=4)
LENGTHS = [5, 150, 1, 33, 70, 12]

# ------------------------------------------------------------------------------------------------- logits, item 5


def _llama3(seed: int, scaled: bool = True, vocab: int = VOCAB) -> PreTrainedModel:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return ref.tiny_llama(seed, vocab=vocab, hidden=64, tie=True, rope_scaling=scaling if scaled else None)


def _linear_rope(seed: int, scaled: bool = True) -> PreTrainedModel:
    scaling = {"rope_type": "linear", "factor": 4.0} if scaled else None
    return ref.tiny_llama(seed, vocab=VOCAB, rope_scaling=scaling)


def _window(seed: int, window: int | None = 8) -> PreTrainedModel:
    return ref.tiny_mistral(seed, vocab=VOCAB, sliding_window=window)


@dataclass(frozen=True)
class Case:
    """A model; `without` is the same weights without the feature the case is about, and must differ."""

    make: Callable[[], PreTrainedModel]
    without: Callable[[], PreTrainedModel] | None = None
    layouts: tuple[Layout, ...] = tuple(LAYOUTS)


CASES = {
    "llama": Case(lambda: ref.tiny_llama(1, vocab=VOCAB, heads=4, kv_heads=4), layouts=(*LAYOUTS, TP4)),
    "llama tied grouped": Case(
        lambda: ref.tiny_llama(2, vocab=VOCAB, hidden=64, heads=8, kv_heads=4, tie=True), layouts=(*LAYOUTS, TP4)
    ),
    "llama multi-query of 4 layers": Case(
        lambda: ref.tiny_llama(3, vocab=300, heads=4, kv_heads=1, layers=4), layouts=(ONE, Layout(pp=2), Layout(pp=4))
    ),
    "llama head_dim": Case(lambda: ref.tiny_llama(4, vocab=VOCAB, head_dim=12), layouts=(ONE, Layout(tp=2), TP2PP2)),
    "llama whole vocabulary": Case(lambda: ref.tiny_llama(5, vocab=256), layouts=(ONE, TP2PP2)),
    "llama3 rope": Case(lambda: _llama3(6), lambda: _llama3(6, scaled=False)),
    "linear rope": Case(lambda: _linear_rope(7), lambda: _linear_rope(7, scaled=False), layouts=(ONE, TP2PP2)),
    "mistral window": Case(lambda: _window(8), lambda: _window(8, None)),
    "mistral": Case(lambda: _window(9, None), layouts=(ONE, TP2PP2)),
    "mistral tied": Case(
        lambda: ref.tiny_mistral(10, vocab=VOCAB, tie=True, sliding_window=32, kv_heads=4, head_dim=16),
        lambda: ref.tiny_mistral(10, vocab=VOCAB, tie=True, sliding_window=31, kv_heads=4, head_dim=16),
        layouts=(Layout(tp=2), Layout(pp=2), TP4),
    ),
}


def make_sequences(vocab: int) -> list[list[int]]:
    """Token ids of LENGTHS; the last token of the vocabulary among them."""
    rng = np.random.default_rng(11)
    sequences = [rng.integers(3, vocab, n).tolist() for n in LENGTHS]
    sequences[1][3] = vocab - 1
    return sequences


@torch.no_grad()
def hf_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """transformers' own float32 logits [sum of lengths, V], one sequence at a time."""
    return torch.cat([model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0] for ids in sequences])


def logits_task(path: str, rows: list[list[list[int]]]) -> tuple[int, list[np.ndarray]] | None:
    """Task: this rank's columns of the logits of packed rows (last stage), with its tensor-parallel rank."""
    from megatron.core import parallel_state

    from nemo_tvkd.data.batch import Item, collate
    from nemo_tvkd.models.frozen import load_frozen, pipeline_forward
    from nemo_tvkd.models.hf import find_checkpoint

    def item(ids: list[int]) -> Item:
        whole = {"prompt_ids": np.asarray(ids), "chosen_ids": np.asarray([], dtype=np.int64), "rejected_ids": None}
        return Item(SimpleNamespace(**whole))

    module = load_frozen(find_checkpoint(path, "model"), "model", "fp32")
    batches = [collate([item(ids) for ids in row]) for row in rows]
    shards = pipeline_forward(module, batches, lambda batch, logits: logits.numpy().copy())
    if not parallel_state.is_pipeline_last_stage():
        return None
    return parallel_state.get_tensor_model_parallel_rank(), shards


class Imports:
    """Each case's model, its logits and its NeMo checkpoint, made when first asked for."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.made: dict[str, tuple[PreTrainedModel, Path, torch.Tensor]] = {}

    def __call__(self, name: str) -> tuple[PreTrainedModel, Path, torch.Tensor]:
        if name not in self.made:
            model = CASES[name].make()
            place = self.folder / name.replace(" ", "_")
            source = save_hf(model, place / "hf")
            self.pool.run(ONE, import_checkpoint, str(source), str(place / "nemo"))
            self.made[name] = model, place / "nemo", hf_logits(model, make_sequences(model.config.vocab_size))
        return self.made[name]


@pytest.fixture(scope="module")
def imports(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Imports:
    return Imports(pool, tmp_path_factory.mktemp("imports"))


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The largest difference within TOLERANCE of the logits' spread (a float32 ulp of the largest is 1e-6)."""
    spread = expected.std().item()
    assert 1.5 < spread < 5
    assert (got - expected).abs().max().item() <= TOLERANCE * spread


@pytest.mark.parametrize(
    ("name", "layout"),
    [pytest.param(name, layout, id=f"{name}-{layout.name}") for name, case in CASES.items() for layout in case.layouts],
)
def test_imported_logits_are_transformers(pool: RankPool, imports: Imports, name: str, layout: Layout) -> None:
    model, checkpoint, expected = imports(name)
    vocab = model.config.vocab_size
    sequences = make_sequences(vocab)
    answers = pool.run(layout, logits_task, str(checkpoint), [sequences[:4], sequences[4:]])
    shards = {answer[0]: np.concatenate(answer[1]) for answer in answers if answer is not None}
    assert sorted(shards) == list(range(layout.tp))
    got = torch.from_numpy(np.concatenate([shards[rank] for rank in sorted(shards)], axis=1))
    assert got.shape == (sum(LENGTHS), -(-vocab // 128) * 128)
    assert_close(got[:, :vocab], expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.without])
def test_the_logits_would_differ_without_the_feature(imports: Imports, name: str) -> None:
    """Of the tests above: long enough sequences, a window that cuts, and that one fewer in the window is seen."""
    model, _, expected = imports(name)
    without = CASES[name].without
    assert without is not None
    other = without()
    other.load_state_dict(model.state_dict())
    assert (hf_logits(other, make_sequences(VOCAB)) - expected).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------ round trip

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Who owns the lamp?"}]
UNTOUCHING = ["optim.lr=1e-30", "optim.weight_decay=0"]
"""Adam's update is at most the rate: half a unit in the last place of any weight above 1e-22 is larger."""


def add_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> int:
    """A byte-level tokenizer as real ones come; returns its size, no multiple of 128."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(words)


def make_source(folder: Path, model: PreTrainedModel, *, shards: bool = False) -> Path:
    """A source directory whose files look like nothing that a library would write again by itself."""
    add_tokenizer(folder)
    model = copy.deepcopy(model)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 4], pad_token_id=0, do_sample=False, max_new_tokens=9, repetition_penalty=1.1
    )
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"transformers_version": "4.0.0", "a_field_of_their_own": [1, 2]}
        (folder / name).write_text(json.dumps(content, indent=5, sort_keys=name == "config.json") + "\n\n")
    (folder / "README.md").write_text("# a model card\n")
    assert (folder / "model.safetensors.index.json").exists() == shards
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "llama fp32 tied": lambda folder: make_source(folder, ref.tiny_llama(21, vocab=261, tie=True)),
    "llama fp32 sharded": lambda folder: make_source(folder, ref.tiny_llama(22, vocab=261, head_dim=12), shards=True),
    "mistral bf16": lambda folder: make_source(folder, ref.tiny_mistral(23, vocab=261).bfloat16()),
    "llama bf16 tied rope": lambda folder: make_source(folder, _llama3(24, vocab=261).bfloat16(), shards=True),
    "mistral fp16": lambda folder: make_source(folder, ref.tiny_mistral(25, vocab=261, tie=True).half()),
}


class Sources:
    """Each source directory and its NeMo checkpoint, made when first asked for."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.made: dict[str, tuple[Path, Path]] = {}

    def __call__(self, name: str) -> tuple[Path, Path]:
        if name not in self.made:
            place = self.folder / name.replace(" ", "_")
            source = SOURCES[name](place / "hf")
            self.pool.run(ONE, import_checkpoint, str(source), str(place / "nemo"))
            self.made[name] = source, place / "nemo"
        return self.made[name]


@pytest.fixture(scope="module")
def sources(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(pool, tmp_path_factory.mktemp("sources"))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def other_files(folder: Path) -> dict[str, bytes]:
    """Everything but weights."""
    files = [f for f in folder.rglob("*") if f.is_file() and ".safetensors" not in f.name]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def assert_same_weights(got: Path, expected: Path) -> None:
    ours, theirs = read_weights(got), read_weights(expected)
    assert sorted(ours) == sorted(theirs)
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype, name
        assert ours[name].shape == weight.shape, name
        assert torch.equal(ours[name].contiguous().view(torch.uint8), weight.contiguous().view(torch.uint8)), name


def assert_loads_and_generates(folder: Path) -> list[int]:
    """As a user would; returns the tokens of prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>Who owns the lamp?</s><|assistant|>"
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    generated = model.generate(**prompt)[0].tolist()
    assert len(prompt.input_ids[0]) < len(generated) <= len(prompt.input_ids[0]) + 9
    assert isinstance(tokenizer.decode(generated), str)
    return generated


def export(pool: RankPool, checkpoint: Path, output: Path) -> Path:
    pool.run(ONE, export_checkpoint, str(checkpoint), str(output))
    assert sorted(p.name for p in output.parent.iterdir() if "incomplete" in p.name) == []
    return output


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


def train(
    pool: RankPool, checkpoint: Path, output: Path, layout: Layout, options: list[str], precision: str = "fp32"
) -> list[dict[str, Any]]:
    return run_training(
        pool,
        layout,
        output,
        algorithm="dpo",
        student=checkpoint,
        items=make_items(ref.random_pairs(31, 4, 261)),
        frozen={"reference": checkpoint},
        steps=2,
        options=[f"trainer.precision={precision}", *options],
    )


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
    from nemo_tvkd.models.hf import find_checkpoint
    from nemo_tvkd.runtime.checkpoints import import_hf

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


def test_padded_rows_are_in_the_nemo_checkpoint_alone(pool: RankPool, sources: Sources) -> None:
    _, checkpoint = sources("llama fp32 sharded")
    shapes = pool.run(ONE, stored_shapes, str(checkpoint))[0]
    assert shapes["module.embedding.word_embeddings.weight"] == (384, 32)
    assert shapes["module.output_layer.weight"] == (384, 32)


def stored_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Task: global shapes of a distributed checkpoint's tensors."""
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(Path(path) / "weights").read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items() if hasattr(entry, "size")}


# ------------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_import_is_redone(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, complete = sources("llama fp32 tied")
    stale = tmp_path / ".nemo.incomplete"
    shutil.copytree(complete, stale)
    shutil.rmtree(stale / "context")
    (stale / "weights" / "__9_9.distcp").write_bytes(b"junk")
    (stale / "context" / "hf").mkdir(parents=True)
    (stale / "context" / "hf" / "junk.json").write_text("{}")
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    assert not stale.exists()
    names = lambda folder: sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))  # noqa: E731
    assert names(tmp_path / "nemo") == names(complete)
    assert_same_weights(export(pool, tmp_path / "nemo", tmp_path / "exported"), source)


def test_an_interrupted_export_is_redone(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, checkpoint = sources("llama fp32 tied")
    stale = tmp_path / ".exported.incomplete"
    stale.mkdir()
    (stale / "model-00009-of-00009.safetensors").write_bytes(b"junk")
    exported = export(pool, checkpoint, tmp_path / "exported")
    assert not stale.exists()
    assert other_files(exported) == other_files(source)
    assert_same_weights(exported, source)


def failing_import(source: str, output: str) -> str:
    """Task: an import that fails; how."""
    try:
        import_checkpoint(source, output)
    except Exception as error:
        return type(error).__name__
    return ""


def test_a_failed_import_leaves_no_checkpoint(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, _ = sources("llama fp32 tied")
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert pool.run(ONE, failing_import, str(broken), str(tmp_path / "nemo"))[0]
    assert not (tmp_path / "nemo").exists()
    (broken / "model.safetensors").write_bytes(weights)
    pool.run(ONE, import_checkpoint, str(broken), str(tmp_path / "nemo"))
    assert_same_weights(export(pool, tmp_path / "nemo", tmp_path / "exported"), source)


def cached_imports(sources: list[str], cache: str) -> list[str]:
    """Task: what `train` makes of Hugging Face paths, with the import done here rather than in a process of its own."""
    from nemo_tvkd.models.hf import find_checkpoint
    from nemo_tvkd.runtime import checkpoints

    original = checkpoints._import_in_subprocess, checkpoints.import_folder
    checkpoints._import_in_subprocess = lambda source, output, tokenizer: checkpoints.import_hf(source, output)
    checkpoints.import_folder = lambda: Path(cache)
    try:
        wanted = {path: (find_checkpoint(path, "student.path"), "") for path in sources}
        return [str(checkpoint.path) for checkpoint in checkpoints.as_nemo(wanted).values()]
    finally:
        checkpoints._import_in_subprocess, checkpoints.import_folder = original


def test_an_import_is_reused_until_the_source_changes(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    """Its config.json included: a template or a rope edited after the first run must not be ignored in silence."""
    source = tmp_path / "model"
    shutil.copytree(sources("llama fp32 tied")[0], source)
    arguments = ([str(source)], str(tmp_path / "cache"))
    first = pool.run(ONE, cached_imports, *arguments)[0][0]
    made = Path(first).stat().st_mtime_ns
    assert pool.run(ONE, cached_imports, *arguments)[0] == [first]
    assert Path(first).stat().st_mtime_ns == made
    config = json.loads((source / "config.json").read_text()) | {"rope_theta": 500.0}
    (source / "config.json").write_text(json.dumps(config))
    second = pool.run(ONE, cached_imports, *arguments)[0][0]
    assert json.loads((Path(second) / "context/hf/config.json").read_text())["rope_theta"] == 500.0


# ------------------------------------------------------------------------------------------------- bad input


def bare_source(folder: Path, config: dict[str, Any]) -> Path:
    """A directory that looks like a checkpoint: a config and a file of weights that nobody reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def llama_config(**changed: Any) -> dict[str, Any]:
    return {**ref.tiny_llama(1).config.to_dict(), **changed}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BAD_SOURCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["source:", "gpt2", "llama", "mistral"]),
    "unknown to transformers": ({"model_type": "nextgen9"}, ["config.json", "nextgen9"]),
    "no model type": ({"hidden_size": 32}, ["config.json"]),
    "attention bias": (llama_config(attention_bias=True), ["source:", "attention_bias"]),
    "mlp bias": (llama_config(mlp_bias=True), ["source:", "mlp_bias"]),
    "activation": (llama_config(hidden_act="gelu"), ["source:", "hidden_act", "gelu"]),
    "yarn": (llama_config(rope_scaling=YARN), ["source:", "rope", "yarn"]),
    "dynamic": (llama_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), ["source:", "rope", "dynamic"]),
}


def assert_refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2 and one line that says why; NeMo is not imported for it."""
    capsys.readouterr()
    with patch.dict(os.environ):  # conversions hide GPUs from their process, which here is that of all tests
        assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("nemo-tvkd: ")
    assert len(message.strip().splitlines()) == 1
    for word in words:
        assert word in message
    assert "nemo.lightning" not in sys.modules
    assert "megatron.core" not in sys.modules


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_import_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config, words = BAD_SOURCES[name]
    source = bare_source(tmp_path / "hf", config)
    assert_refused(["import-hf", f"source={source}", f"output={tmp_path / 'new'}"], capsys, *words)
    assert not (tmp_path / "new").exists()


def test_import_refuses_what_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nemo = tmp_path / "nemo"
    (nemo / "weights").mkdir(parents=True)
    bare_source(nemo / "context/hf", llama_config())
    output = f"output={tmp_path / 'new'}"
    assert_refused(["import-hf", f"source={nemo}", output], capsys, "source", str(nemo), "NeMo checkpoint already")
    assert_refused(["import-hf", f"source={tmp_path / 'absent'}", output], capsys, "source", "absent", "does not exist")
    assert_refused(["import-hf", f"source={tmp_path}", output], capsys, "source", "no checkpoint")
    assert_refused(["import-hf", output], capsys, "source is not set")
    damaged = bare_source(tmp_path / "damaged", {})
    (damaged / "config.json").write_text('{"model_type": "llama",')
    assert_refused(["import-hf", f"source={damaged}", output], capsys, str(damaged / "config.json"))


def test_conversions_refuse_an_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = bare_source(tmp_path / "source", llama_config())
    assert_refused(["import-hf", f"source={source}", f"output={tmp_path}"], capsys, "output", "exists")
    assert_refused(["import-hf", f"source={source}"], capsys, "output is not set")
    nemo = tmp_path / "nemo"
    (nemo / "weights").mkdir(parents=True)
    bare_source(nemo / "context/hf", llama_config())
    assert_refused(["export-hf", f"checkpoint={nemo}", f"output={tmp_path}"], capsys, "output", "exists")


def test_export_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"output={tmp_path / 'new'}"
    source = bare_source(tmp_path / "source", llama_config())
    already = ["checkpoint", str(source), "Hugging Face directory already"]
    assert_refused(["export-hf", f"checkpoint={source}", output], capsys, *already)
    (tmp_path / "run/checkpoints/.step-00000002/weights").mkdir(parents=True)
    refused = ["checkpoint", "run", "without a complete checkpoint"]
    assert_refused(["export-hf", f"checkpoint={tmp_path / 'run'}", output], capsys, *refused)
    foreign = tmp_path / "foreign"  # NeMo's own import keeps no Hugging Face config
    (foreign / "weights").mkdir(parents=True)
    (foreign / "context").mkdir()
    assert_refused(["export-hf", f"checkpoint={foreign}", output], capsys, "checkpoint", "config.json")


# ------------------------------------------------------------------------------------------------- NeMo's context

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


def test_checkpoints_hold_the_keys_that_transformer_engine_asks_for(sources: Sources) -> None:
    """TE's modules load an (empty) extra state each; a checkpoint without these keys would not load on a GPU."""
    names = stored_names(sources("llama fp32 tied")[1])
    for module in (
        "decoder.final_layernorm",
        "decoder.layers.self_attention.linear_qkv",
        "decoder.layers.mlp.linear_fc1",
    ):
        assert any(name.startswith(f"module.{module}._extra_state") for name in names), module


def stored_names(checkpoint: Path) -> list[str]:
    """The keys of a distributed checkpoint, objects included."""
    from torch.distributed.checkpoint import FileSystemReader

    return list(FileSystemReader(checkpoint / "weights").read_metadata().state_dict_metadata)
