"""Whole runs of DRDO and e-DPO: the reference's curve at every layout, exact resumption, no model without a use."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import torch
from rank_pool import Layout, RankPool
from reward_formulas import edpo_errors
from reward_training import (
    DP2,
    HEAD,
    ONE,
    TP2,
    TP2PP2,
    TP2SP,
    HeadsAgree,
    Judges,
    initial_head,
    judged_items,
    judges,
    read_head,
    train_and_list_models,
)
from training import VOCAB, run_training

__all__ = ["judges"]  # a fixture

STEPS = 5
OPTIONS = ["optim.weight_decay=0.1", "optim.schedule=cosine", "trainer.micro_batch_size=1"]
RESUME = ["data.shuffle=true", "optim.schedule=constant"]
LAYOUTS = [ONE, TP2SP, TP2PP2, DP2]


def layout_name(layout: Layout) -> str:
    return layout.name


@pytest.fixture(scope="module")
def five_steps() -> list[ref.RefPair]:
    return ref.random_pairs(11, 4 * STEPS, VOCAB)


def adamw(model: Any, losses: list[Any], steps: int) -> list[float]:
    """The losses of the first steps in float64, at the rates of OPTIONS."""
    rates = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    return ref.adamw_losses(model, losses, lr=rates, betas=(0.9, 0.999), weight_decay=0.1, clip_grad=1.0)


# ------------------------------------------------------------------------------------------------------------- DRDO


def drdo(
    pool: RankPool, judges: Judges, pairs: list[ref.RefPair], folder: Path, layout: Layout, **kwargs: Any
) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"student": judges.paths["tied"], "frozen": judges.online(), "steps": STEPS}
    arguments |= {"items": judged_items(pairs, None), "hook": HeadsAgree} | kwargs
    options = [*OPTIONS, *arguments.pop("options", [])]
    return run_training(pool, layout, folder, algorithm="drdo", options=options, **arguments)


@pytest.fixture(scope="module")
def drdo_curve(judges: Judges, five_steps: list[ref.RefPair]) -> list[float]:
    """The head is one of AdamW's parameters: its weight decays, and its gradient counts in the norm that is clipped."""
    losses = []
    for start in range(0, 4 * STEPS, 4):
        batch = five_steps[start : start + 4]
        judged = judges.judge(batch)[0]
        losses.append(lambda m, b=batch, r=judged: rewards.drdo_loss(m, m.reward_head.weight, r, b)[0])
    return adamw(rewards.with_head(judges.students["tied"], judges.head), losses, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_the_curve_of_drdo_is_the_reference_at_every_layout(
    pool: RankPool,
    judges: Judges,
    five_steps: list[ref.RefPair],
    drdo_curve: list[float],
    tmp_path: Path,
    layout: Layout,
) -> None:
    rows = drdo(pool, judges, five_steps, tmp_path, layout)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["loss"] == pytest.approx(drdo_curve[0], rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(drdo_curve, rel=1e-4)


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def head_of(pool: RankPool, folder: Path, step: int) -> torch.Tensor:
    head = pool.run(ONE, read_head, str(folder / "checkpoints" / f"step-{step:08d}" / "weights"), 32)[0]
    assert head is not None, f"no {HEAD} in the checkpoint"
    return head


@pytest.fixture(scope="module")
def six_steps(
    pool: RankPool, judges: Judges, five_steps: list[ref.RefPair], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The rows and the last head of six steps in one run, at TP2 x PP2, from a student without a head."""
    folder = tmp_path_factory.mktemp("whole")
    rows = drdo(pool, judges, five_steps, folder, TP2PP2, steps=6, options=RESUME, student=judges.plain)
    return rows, head_of(pool, folder, 6)


@pytest.fixture(scope="module")
def three_steps(
    pool: RankPool, judges: Judges, five_steps: list[ref.RefPair], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run like that of `six_steps` that stopped halfway."""
    folder = tmp_path_factory.mktemp("three")
    drdo(pool, judges, five_steps, folder, TP2PP2, steps=3, options=RESUME, student=judges.plain)
    return folder


@pytest.mark.parametrize("layout", [TP2PP2, TP2SP, DP2], ids=layout_name)
def test_drdo_resumes_at_its_own_and_at_another_layout(
    pool: RankPool,
    judges: Judges,
    five_steps: list[ref.RefPair],
    six_steps: tuple[list[dict[str, Any]], torch.Tensor],
    three_steps: Path,
    tmp_path: Path,
    layout: Layout,
) -> None:
    """Three steps and three are six; the head goes on from where it was, not from the seed."""
    whole, head = six_steps
    plain = {"options": RESUME, "student": judges.plain}
    shutil.copytree(three_steps, tmp_path, dirs_exist_ok=True)
    started = pool.run(ONE, initial_head, 32, 0.02, 42)[0]
    halfway = head_of(pool, tmp_path, 3)
    assert not torch.equal(halfway, started)
    rows = drdo(pool, judges, five_steps, tmp_path, layout, steps=6, **plain)
    resumed = head_of(pool, tmp_path, 6)
    assert not torch.equal(resumed, halfway)
    if layout == TP2PP2:
        assert without_speed(rows) == without_speed(whole)
        assert torch.equal(resumed, head)
    for name in ("loss", "grad_norm", "rewards/margins", "reward_distillation/mse"):
        tolerance = 1e-3 if name == "grad_norm" else 1e-4
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in whole], rel=tolerance, abs=1e-6), name
    assert torch.allclose(resumed, head, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", [TP2SP], ids=layout_name)
def test_a_bf16_run_has_a_float32_master_of_the_head(
    pool: RankPool,
    judges: Judges,
    five_steps: list[ref.RefPair],
    drdo_curve: list[float],
    tmp_path: Path,
    layout: Layout,
) -> None:
    """Dtypes are the hook's to check; close to the float64 curve, the head moves, and resumption is bit for bit."""
    bf16 = ["trainer.precision=bf16"]
    rows = drdo(pool, judges, five_steps, tmp_path / "run", layout, options=bf16)
    assert [row["loss"] for row in rows] == pytest.approx(drdo_curve, rel=0.05)
    assert [row["loss"] for row in rows] != pytest.approx(drdo_curve, rel=1e-6), "this did run in bf16"
    assert not torch.equal(head_of(pool, tmp_path / "run", STEPS).float(), judges.head.bfloat16().float())
    both = {"options": [*bf16, *RESUME]}
    whole = drdo(pool, judges, five_steps, tmp_path / "whole", layout, steps=4, **both)
    drdo(pool, judges, five_steps, tmp_path / "parts", layout, steps=2, **both)
    parts = drdo(pool, judges, five_steps, tmp_path / "parts", layout, steps=4, **both)
    assert without_speed(parts) == without_speed(whole)
    assert torch.equal(head_of(pool, tmp_path / "parts", 4), head_of(pool, tmp_path / "whole", 4))


@pytest.mark.parametrize("oracle", ["online", "cached"])
@pytest.mark.parametrize("student_reward", ["head", "implicit"])
def test_drdo_builds_no_model_but_the_policy_and_an_online_oracle(
    pool: RankPool, judges: Judges, five_steps: list[ref.RefPair], tmp_path: Path, oracle: str, student_reward: str
) -> None:
    """No reference model is in memory, and with stored rewards no oracle either; the oracle has no output layer."""
    pairs = five_steps[:4]
    online = oracle == "online"
    items = judged_items(pairs, None if online else judges.judge(pairs))
    overrides = ["algorithm=drdo", f"algorithm.student_reward={student_reward}", f"trainer.output_dir={tmp_path}"]
    overrides += [*TP2.overrides(), "trainer.precision=fp32", "trainer.global_batch_size=4", "logger.tensorboard=false"]
    frozen = {name: str(path) for name, path in judges.online().items()} if online else {}
    task = (overrides, items, str(judges.plain), frozen, 1, "", None, [])
    policy, judge = (2, True, student_reward == "head"), (4, False, True)
    for built in pool.run(TP2, train_and_list_models, *task):
        assert sorted(built) == sorted([policy, judge] if online else [policy])


# ------------------------------------------------------------------------------------------------------------ e-DPO

# Oracle 0 is far better on the first pair of a batch and a little worse on the others, and better altogether; so a
# choice by micro-batch, or by either half of the batch, would be another one for half of the pairs.
BETTER = torch.tensor([0.5, 1.2, 1.2, 1.2], dtype=torch.float64)
WORSE = torch.tensor([2.3, 0.6, 0.6, 0.6], dtype=torch.float64)
CHOICES = [0, 1, 0]


@pytest.fixture(scope="module")
def rivals(judges: Judges, five_steps: list[ref.RefPair]) -> torch.Tensor:
    """Rewards [2, 12, 2] of two oracles, of which the better one of each batch is CHOICES'."""
    pairs = five_steps[:12]
    with torch.no_grad():
        own = 0.1 * (rewards.pair_logps(judges.students["tied"], pairs) - rewards.pair_logps(judges.reference, pairs))
    errors = [torch.cat([(BETTER if best == oracle else WORSE) for best in CHOICES]) for oracle in (0, 1)]
    chosen = own[:, 0] - own[:, 1] + torch.stack(errors)
    return torch.stack([chosen, torch.zeros_like(chosen)], dim=-1)


@pytest.fixture(scope="module")
def edpo_curve(judges: Judges, five_steps: list[ref.RefPair], rivals: torch.Tensor) -> list[float]:
    """Also that the choice is what the rewards were made for, at every step, and no part of it makes it."""
    losses, chosen = [], []

    def loss(model: Any, step: int) -> torch.Tensor:
        batch, delta = five_steps[4 * step : 4 * step + 4], rivals[:, 4 * step : 4 * step + 4]
        with torch.no_grad():
            own, base = rewards.pair_logps(model, batch), rewards.pair_logps(judges.reference, batch)
        margins = delta[:, :, 0] - delta[:, :, 1]
        best_of = lambda part: int(edpo_errors(own[part], base[part], margins[:, part], beta=0.1).argmin())  # noqa: E731
        chosen.append(best_of([0, 1, 2, 3]))
        assert best_of([0]) != best_of([1])
        assert best_of([0, 2]) != best_of([1, 3])
        assert best_of([0, 1]) != best_of([2, 3])
        return rewards.edpo_loss(model, judges.reference, delta, batch, beta=0.1, ensemble="min")[0]

    losses = [lambda m, s=step: loss(m, s) for step in range(3)]
    curve = adamw(judges.students["tied"], losses, 3)
    assert chosen == CHOICES
    return curve


@pytest.mark.parametrize(("layout", "micro"), [(ONE, 1), (DP2, 1), (TP2PP2, 1), (TP2SP, 2)])
def test_the_least_loss_is_chosen_by_the_global_batch(
    pool: RankPool,
    judges: Judges,
    five_steps: list[ref.RefPair],
    rivals: torch.Tensor,
    edpo_curve: list[float],
    tmp_path: Path,
    layout: Layout,
    micro: int,
) -> None:
    rows = run_training(
        pool,
        layout,
        tmp_path,
        algorithm="edpo",
        student=judges.plain,
        items=judged_items(five_steps[:12], rivals),
        frozen={"reference": judges.reference_path},
        steps=3,
        options=[*OPTIONS, "algorithm.beta=0.1", "algorithm.ensemble=min", f"trainer.micro_batch_size={micro}"],
        validation=judged_items(five_steps[:4], rivals[:, :4]),
    )
    evaluated = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert [row["loss"] for row in rows[:3]] == pytest.approx(edpo_curve, rel=1e-4)
    assert rows[0]["loss"] == pytest.approx(edpo_curve[0], rel=1e-5)
    for step, best in enumerate(CHOICES):
        mean = (rivals[best, :, 0] - rivals[best, :, 1])[4 * step : 4 * step + 4].mean().item()
        assert rows[step]["oracle/margins"] == pytest.approx(mean, rel=1e-5)
    mean = rivals[CHOICES[0], :4, 0].mean().item()
    assert evaluated["eval_oracle/margins"] == pytest.approx(mean, rel=1e-5), "all pairs of the validation count too"


def test_a_replica_without_validation_pairs_takes_part_in_the_choice(
    pool: RankPool, judges: Judges, five_steps: list[ref.RefPair], rivals: torch.Tensor, tmp_path: Path
) -> None:
    run_training(
        pool,
        DP2,
        tmp_path,
        algorithm="edpo",
        student=judges.plain,
        items=judged_items(five_steps[:4], rivals[:, :4]),
        frozen={"reference": judges.reference_path},
        steps=1,
        options=["algorithm.ensemble=min", "trainer.micro_batch_size=1"],
        validation=judged_items(five_steps[:1], rivals[:, :1]),
    )
    evaluated = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    margins = (rivals[:, 0, 0] - rivals[:, 0, 1]).tolist()
    assert any(evaluated["eval_oracle/margins"] == pytest.approx(margin, rel=1e-6) for margin in margins)
