"""Imported models have the logits that transformers computes, at every layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import torch
from conversions import ONE, TP2PP2, llama3
from logits import LENGTHS, assert_close, hf_logits, logits_task, make_sequences
from rank_pool import Layout, RankPool
from training import VOCAB, import_checkpoint, save_hf
from transformers import PreTrainedModel

LAYOUTS = [ONE, Layout(tp=2), Layout(pp=2), TP2PP2]
TP4 = Layout(tp=4)


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
    "llama3 rope": Case(lambda: llama3(6), lambda: llama3(6, scaled=False)),
    "linear rope": Case(lambda: _linear_rope(7), lambda: _linear_rope(7, scaled=False), layouts=(ONE, TP2PP2)),
    "mistral window": Case(lambda: _window(8), lambda: _window(8, None)),
    "mistral": Case(lambda: _window(9, None), layouts=(ONE, TP2PP2)),
    "mistral tied": Case(
        lambda: ref.tiny_mistral(10, vocab=VOCAB, tie=True, sliding_window=32, kv_heads=4, head_dim=16),
        lambda: ref.tiny_mistral(10, vocab=VOCAB, tie=True, sliding_window=31, kv_heads=4, head_dim=16),
        layouts=(Layout(tp=2), Layout(pp=2), TP4),
    ),
}


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
