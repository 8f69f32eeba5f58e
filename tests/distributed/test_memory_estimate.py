"""doctor's memory estimate against what real runs of the engine hold on CPU ranks (at least 200 MB of model state)."""

from pathlib import Path
from typing import Any

import pytest
from memory_runs import PROMPT, hf_config, measure, measure_reading
from rank_pool import Layout, RankPool

from nemo_tvkd.commands.doctor import parameters
from nemo_tvkd.commands.doctor.memory import MemoryEstimate, Model, Settings, forward_memory, training_memory

CLOSE = 0.15
STATE = 200e6


def settings(layout: Layout, precision: str, response: int, **options: Any) -> Settings:
    """Of runs with one pair in a micro-batch; values are read at every response's states."""
    return Settings(
        layout=parameters.Layout(layout.tp, layout.pp, layout.dp, layout.sp),
        tokens=2 * (PROMPT + response),
        states=2 * response,
        precision=precision,
        device="cpu",
        **options,
    )


def total(found: dict[str, int]) -> int:
    """The peak of a step: what is held between steps and the larger of what passes and update take beside it."""
    state = found["weights"] + found["gradients"] + found["optimizer"]
    return state + max(found["passes"], found["update"])


def check_parts(estimate: MemoryEstimate, found: dict[str, int]) -> None:
    assert estimate.weights == found["weights"]
    assert estimate.gradients == found["gradients"]
    assert estimate.optimizer == pytest.approx(found["optimizer"], rel=1e-3)  # torch's Adam has a step count a tensor
    assert estimate.activations + estimate.logits == pytest.approx(found["passes"], rel=CLOSE)
    assert estimate.update == pytest.approx(found["update"], rel=CLOSE)
    assert estimate.total == pytest.approx(total(found), rel=CLOSE)


@pytest.mark.parametrize(
    ("layout", "precision", "response", "options"),
    [
        (Layout(), "fp32", 200, {}),
        (Layout(tp=2), "bf16", 400, {}),
        (Layout(tp=2, sp=True), "fp32", 200, {}),
        (Layout(pp=2), "bf16", 200, {"micro_batches": 4}),
        (Layout(), "bf16", 400, {"recompute": True}),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else str(value),
)
def test_training(pool: RankPool, tmp_path: Path, layout: Layout, precision: str, response: int, options: dict) -> None:
    overrides = [
        f"trainer.global_batch_size={options.get('micro_batches', 1)}",
        f"trainer.recompute={str(options.get('recompute', False)).lower()}",
    ]
    ranks = measure(pool, layout, tmp_path, precision, *overrides, response=response)
    fullest = max(ranks, key=total)
    assert sum(fullest[part] for part in ("weights", "gradients", "optimizer")) > STATE
    estimate = training_memory(Model(hf_config()), settings(layout, precision, response, **options))
    check_parts(estimate, fullest)
    assert estimate.stage == ranks.index(fullest) // layout.tp
    if not options:  # the fullest moment is the output layer's, when all that autograd keeps is there
        assert estimate.activations == pytest.approx(fullest["saved"], rel=0.03)


def test_tied_embeddings(pool: RankPool, tmp_path: Path) -> None:
    (found,) = measure(
        pool, Layout(), tmp_path, "fp32", "trainer.global_batch_size=1", response=100, tie_word_embeddings=True
    )
    tied = Model(hf_config(tie_word_embeddings=True))
    check_parts(training_memory(tied, settings(Layout(), "fp32", 100)), found)


@pytest.mark.parametrize(
    ("layout", "precision"),
    [(Layout(), "bf16"), (Layout(tp=2), "fp32"), (Layout(pp=2), "bf16")],
    ids=lambda value: value.name if isinstance(value, Layout) else value,
)
def test_reading(pool: RankPool, layout: Layout, precision: str) -> None:
    ranks = measure_reading(pool, layout, precision, response=400)
    estimate = forward_memory([Model(hf_config())], settings(layout, precision, 400))
    fullest = max(ranks, key=lambda found: found["weights"] + found["passes"])
    assert estimate.weights == fullest["weights"]
    assert estimate.activations + estimate.logits == pytest.approx(fullest["passes"], rel=CLOSE)
    assert estimate.total == pytest.approx(fullest["weights"] + fullest["passes"], rel=CLOSE)
