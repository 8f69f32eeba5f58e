"""Real NeMo training steps of reward models, DRDO and e-DPO against plain transformers in float64.

Every case checks the loss, all metrics, the gradient norm and the gradient of every parameter, the reward head's too.
"""

from pathlib import Path
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import torch
from rank_pool import Layout, RankPool
from reward_training import (
    DP2,
    ONE,
    PP2,
    TP2,
    TP2PP2,
    TP2SP,
    Judges,
    Step,
    initial_head,
    judged_items,
    judges,
)
from training import VOCAB, run_training

__all__ = ["judges"]  # a fixture


def leaf(head: torch.Tensor) -> torch.Tensor:
    return head.double().requires_grad_()


def layout_name(value: Any) -> str | None:
    return value.name if isinstance(value, Layout) else None


REWARD_CASES = [
    # layout, micro batch, alpha_sft, center_rewards_coefficient, margins, student
    (ONE, 4, 0.01, 0.0, False, "untied"),
    (TP2, 1, 0.5, 0.1, True, "tied"),
    (PP2, 2, 0.0, 0.01, False, "tied"),
    (TP2SP, 1, 0.3, 0.0, True, "tied"),
    (TP2PP2, 2, 0.5, 0.05, False, "untied"),
    (DP2, 2, 0.01, 0.0, True, "tied"),
]


@pytest.mark.parametrize(
    ("layout", "micro", "alpha_sft", "center", "margins", "student"), REWARD_CASES, ids=layout_name
)
def test_reward(
    pool: RankPool,
    models: Any,
    judges: Judges,
    tmp_path: Path,
    layout: Layout,
    micro: int,
    alpha_sft: float,
    center: float,
    margins: bool,
    student: str,
) -> None:
    handicaps = [0.5, 0.0, 1.25, 3.0] if margins else None
    head = leaf(judges.head)
    model = judges.students[student]
    rule: dict[str, Any] = {"alpha_sft": alpha_sft, "center_rewards_coefficient": center}
    expected, metrics = rewards.reward_loss(model, head, models.pairs, margins=handicaps, **rule)
    Step(
        layout,
        "reward",
        expected,
        metrics,
        model,
        judges.paths[student],
        judged_items(models.pairs, None, handicaps),
        [
            f"algorithm.alpha_sft={alpha_sft}",
            f"algorithm.center_rewards_coefficient={center}",
            f"algorithm.use_margin={str(margins).lower()}",
            f"trainer.micro_batch_size={micro}",
        ],
        head,
    ).check(pool, tmp_path)


def test_a_reward_model_without_an_output_layer(pool: RankPool, models: Any, judges: Judges, tmp_path: Path) -> None:
    """alpha_sft=0 from a student with an output layer of its own: it is no part of the model, nor of the norm."""
    head, model = leaf(judges.head), judges.students["untied"]
    expected, metrics = rewards.reward_loss(model, head, models.pairs, alpha_sft=0.0)
    row = run_training(
        pool,
        PP2,
        tmp_path,
        algorithm="reward",
        student=judges.paths["untied"],
        items=models.items,
        options=["algorithm.alpha_sft=0"],
    )[0]
    assert {name: row[name] for name in metrics} == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    slopes = [*ref.gradients(expected, model).values(), torch.autograd.grad(expected, head)[0]]
    norm = torch.stack([slope.norm() for slope in slopes]).norm().item()
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)


DRDO_CASES = [
    # layout, micro batch, logprob, contrast, student_reward, gamma, oracle, student
    (ONE, 4, "sum", "ratio", "head", 2.0, "online", "untied"),
    (PP2, 2, "mean", "ratio", "implicit", 2.0, "online", "tied"),
    (TP2SP, 1, "sum", "ratio", "head", 0.5, "online", "tied"),
    (TP2PP2, 2, "sum", "product", "implicit", 2.0, "cached", "tied"),
    (DP2, 2, "mean", "ratio", "head", 0.5, "cached", "tied"),
    (TP2PP2, 1, "mean", "product", "head", 1.0, "online", "untied"),
    (DP2, 1, "sum", "product", "head", 0.0, "online", "tied"),
    (TP2SP, 2, "mean", "product", "implicit", 2.0, "online", "tied"),
    (TP2, 4, "sum", "ratio", "implicit", 0.0, "cached", "tied"),
]


@pytest.mark.parametrize(
    ("layout", "micro", "logprob", "contrast", "student_reward", "gamma", "oracle", "student"),
    DRDO_CASES,
    ids=layout_name,
)
def test_drdo(
    pool: RankPool,
    models: Any,
    judges: Judges,
    tmp_path: Path,
    layout: Layout,
    micro: int,
    logprob: str,
    contrast: str,
    student_reward: str,
    gamma: float,
    oracle: str,
    student: str,
) -> None:
    head = leaf(judges.head) if student_reward == "head" else None
    model = judges.students[student]
    judged = judges.judge(models.pairs)
    rule: dict[str, Any] = {"logprob": logprob, "contrast": contrast, "student_reward": student_reward}
    rule |= {"gamma": gamma, "alpha": 0.3, "beta": 0.2}
    expected, metrics = rewards.drdo_loss(model, head, judged[0], models.pairs, **rule)
    options = [f"algorithm.{name}={value}" for name, value in rule.items()]
    Step(
        layout,
        "drdo",
        expected,
        metrics,
        model,
        judges.paths[student] if head is not None else judges.plain,
        judged_items(models.pairs, judged if oracle == "cached" else None),
        [*options, f"trainer.micro_batch_size={micro}"],
        head,
        judges.online() if oracle == "online" else {},
    ).check(pool, tmp_path)


@pytest.mark.parametrize("layout", [ONE, TP2SP, TP2PP2], ids=layout_name)
def test_drdo_with_the_heads_initial_weights(
    pool: RankPool,
    models: Any,
    judges: Judges,
    tmp_path: Path,
    layout: Layout,
) -> None:
    """The student has no head: the run draws one from trainer.seed, the same at every layout."""
    std = models.student.config.initializer_range
    drawn = pool.run(ONE, initial_head, 32, std, 42)[0]
    assert drawn.std().item() == pytest.approx(std, rel=0.5)
    head = leaf(drawn)
    judged = judges.judge(models.pairs)
    expected, metrics = rewards.drdo_loss(models.student, head, judged[0], models.pairs)
    Step(
        layout,
        "drdo",
        expected,
        metrics,
        models.student,
        judges.plain,
        models.items,
        ["trainer.micro_batch_size=2"],
        head,
        judges.online(),
    ).check(pool, tmp_path)


def test_another_seed_draws_another_head(pool: RankPool) -> None:
    one, same, other = (pool.run(ONE, initial_head, 32, 0.02, seed)[0] for seed in (42, 42, 43))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.float32


EDPO_CASES = [
    # layout, micro batch, ensemble, oracles, where they are
    (ONE, 4, "mean", 1, "online"),
    (TP2, 1, "mean", 2, "online"),
    (PP2, 2, "min", 2, "cached"),
    (TP2SP, 1, "min", 2, "online"),
    (TP2PP2, 2, "mean", 3, "cached"),
    (DP2, 1, "min", 3, "cached"),
]


@pytest.mark.parametrize(("layout", "micro", "ensemble", "oracles", "where"), EDPO_CASES, ids=layout_name)
def test_edpo(
    pool: RankPool,
    models: Any,
    judges: Judges,
    tmp_path: Path,
    layout: Layout,
    micro: int,
    ensemble: str,
    oracles: int,
    where: str,
) -> None:
    judged = judges.judge(models.pairs, min(oracles, 2))
    if oracles == 3:
        judged = torch.cat([judged, judged[:1].flip(2) / 2])
    expected, metrics = rewards.edpo_loss(
        models.student, judges.reference, judged, models.pairs, beta=0.2, ensemble=ensemble
    )
    frozen = {"reference": judges.reference_path} | (judges.online(oracles) if where == "online" else {})
    Step(
        layout,
        "edpo",
        expected,
        metrics,
        models.student,
        judges.plain,
        judged_items(models.pairs, judged if where == "cached" else None),
        ["algorithm.beta=0.2", f"algorithm.ensemble={ensemble}", f"trainer.micro_batch_size={micro}"],
        None,
        frozen,
    ).check(pool, tmp_path)


@pytest.mark.parametrize(("count", "margin"), [(6, 0.1), (3, 0.3), (6, 1.5), (1, 0.3)])
def test_a_correlation_that_is_undefined_is_absent(
    pool: RankPool, judges: Judges, tmp_path: Path, count: int, margin: float
) -> None:
    """Margins that are all alike have no correlation with anything; nor has a single pair.

    Six times 0.1^2 less (six times 0.1)^2 is not 0 in float64, and neither is three times 0.3's.
    """
    pairs = ref.random_pairs(31, count, VOCAB)
    row = run_training(
        pool,
        ONE,
        tmp_path,
        algorithm="drdo",
        student=judges.paths["tied"],
        items=judged_items(pairs, torch.tensor([[[margin, 0.0]] * count], dtype=torch.float64)),
        options=[f"trainer.global_batch_size={count}"],
    )[0]
    assert row["oracle/margins"] == pytest.approx(margin)
    assert row["oracle/margins_std"] == pytest.approx(0, abs=1e-6)
    assert (row["rewards/margins_std"] > 1e-3) == (count > 1)
    assert rewards.CORRELATION not in row
