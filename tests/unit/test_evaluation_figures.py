"""Every figure of an evaluation against loops over pairs; calibration by hand; data that say little; valid JSON."""

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.commands.evaluate.calibration import by_confidence, calibration_error, confidence_parts, correct, sigmoid
from nemo_tvkd.commands.evaluate.figures import Judgement, Others, figures_of, pair_rows, result_of
from nemo_tvkd.config.compose import compose

BETA, COUNT = 0.2, 60


def config(*options: str) -> Any:
    return compose("evaluate", ["resamples=100", f"beta={BETA}", *options])


def draw(seed: int, scale: float = 4.0, mean: float = -30.0, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, 2))


def policy(count: int = COUNT) -> Judgement:
    lengths = np.random.default_rng(7).integers(2, 6, (count, 2))
    return Judgement(lengths, draw(1, count=count), draw(2, count=count), draw(3, 1.0, 0.0, count), BETA)


def others(count: int = COUNT) -> Others:
    oracle = np.round(draw(4, 1.0, 0.0, count), 1)  # some ties
    return Others(oracle, draw(5, 2.0, 0.0, count) + 0.1 * draw(1, count=count))


def found(judged: Judgement, more: Others | None = None, *options: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked, others = config(*options), more or Others()
        return result_of(judged, others, figures_of(judged, others, asked.calibration_bins), asked)


def test_every_figure_is_what_a_loop_says() -> None:
    judged, more = policy(), others()
    result = found(judged, more)
    assert judged.logps is not None
    assert judged.reference is not None
    assert more.shaping is not None
    expected: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        expected.setdefault(name, []).append(float(value))

    for (w, r), (rw, rl), (tw, tl), (pw, pl) in zip(
        judged.logps, judged.reference, judged.lengths, more.shaping, strict=True
    ):
        chosen, rejected = BETA * (w - rw), BETA * (r - rl)
        margin = chosen - rejected
        note("rewards/accuracies", margin > 0)
        note("rewards/margins", margin)
        note("rewards/chosen", chosen)
        note("rewards/rejected", rejected)
        note("rewards/brier", (1 - 1 / (1 + math.exp(-margin))) ** 2)
        note("rewards/nll", math.log(1 + math.exp(-margin)))
        note("rewards/teacher_agreement", margin * (pw - pl) > 0)
        note("shaping/margins", pw - pl)
        note("shaping/accuracies", pw > pl)
        note("logps/chosen", w)
        note("logps/per_token_rejected", r / tl)
        note("logps/per_token_accuracies", w / tw > r / tl)
        note("lengths/chosen", tw)
        note("lengths/longer_accuracies", tw > tl)
        if tw != tl:
            note("rewards/prefers_longer", margin * (tw - tl) > 0)
    for name, values in expected.items():
        assert result[name] == pytest.approx(math.fsum(values) / len(values)), name
        low, high = result[f"{name}_interval"]
        assert low <= result[name] <= high, name
    assert len(expected["rewards/prefers_longer"]) < COUNT
    assert result["rewards/teacher_correlation"] == pytest.approx(
        np.corrcoef(expected["rewards/margins"], expected["shaping/margins"])[0, 1]
    )
    ranks = [np.argsort(np.argsort(expected[name])) for name in ("rewards/margins", "shaping/margins")]
    assert result["rewards/teacher_rank_correlation"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert result["reward_head/margins"] == pytest.approx(np.mean(judged.head[:, 0] - judged.head[:, 1]))  # type: ignore[index]
    assert {"rewards/oracle_correlation", "rewards/std", "rewards/margins_stderr", "oracle/accuracies"} <= set(result)
    assert sum(row["pairs"] for row in result["by_strength"]) == COUNT
    assert {"rewards/teacher_agreement", "shaping/accuracies"} <= set(result["by_strength"][0])


def test_a_reward_model_has_no_log_probabilities() -> None:
    judged = policy()
    result = found(Judgement(judged.lengths, None, None, judged.head))
    assert not any(name.startswith(("logps/", "reward_head/")) for name in result)
    assert {"rewards/ece", "lengths/longer_accuracies", "rewards/prefers_longer"} <= set(result)
    assert set(result["by_confidence"]) == {"rewards"}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


HAND = [logit(p) for p in (0.6, 0.6, 0.4, 0.6, 0.9, 0.9, 0.1, 0.9)] + [0.0, 0.0]
"""Margins: confidence 0.6 four times (three right), 0.9 four times (three right), two ties."""


def test_calibration_by_hand() -> None:
    margins = np.array(HAND)
    rows = by_confidence(margins, 5)
    assert [row["pairs"] for row in rows] == [2, 4, 4], "pairs of equal confidence are never parted"
    assert [row["confidence/mean"] for row in rows] == pytest.approx([0.5, 0.6, 0.9])
    assert [row["accuracies"] for row in rows] == pytest.approx([0.5, 0.75, 0.75]), "a tie is half right"
    gap = sigmoid(np.abs(margins)) - correct(margins)
    error = calibration_error(gap, confidence_parts(margins, 5))
    assert error == pytest.approx(0.2 * 0 + 0.4 * 0.15 + 0.4 * 0.15)
    result = found(
        Judgement(np.ones((10, 2), int), None, None, np.c_[margins, np.zeros(10)]), None, "calibration_bins=5"
    )
    assert result["rewards/ece"] == pytest.approx(error)
    assert result["by_confidence"]["rewards"] == rows
    assert result["rewards/brier"] == pytest.approx((3 * 0.16 + 0.36 + 3 * 0.01 + 0.81 + 2 * 0.25) / 10)
    nll = -(3 * math.log(0.6) + math.log(0.4) + 3 * math.log(0.9) + math.log(0.1) + 2 * math.log(0.5)) / 10
    assert result["rewards/nll"] == pytest.approx(nll)


def test_calibrated_and_overconfident_margins() -> None:
    """Labels are drawn with the probabilities that the margins say; ten times the margins say far too much."""
    rng = np.random.default_rng(11)
    logits = rng.normal(0.0, 1.5, 20_000)
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-logits)), logits, -logits)
    errors = [
        calibration_error(sigmoid(np.abs(m)) - correct(m), confidence_parts(m, 10)) for m in (margins, 10 * margins)
    ]
    assert errors[0] < 0.015
    assert errors[1] == pytest.approx(np.mean(1 / (1 + np.exp(-10 * np.abs(logits)))) - np.mean(margins > 0), abs=0.01)
    assert errors[1] > 0.2
    assert found(Judgement(np.ones((20_000, 2), int), np.c_[margins, 0 * margins] / BETA, beta=BETA), None)[
        "rewards/nll"
    ] < math.log(2)


def test_saturated_margins_are_finite() -> None:
    margins = np.array([5000.0, -5000.0, 4000.0, 300.0])
    result = found(Judgement(np.ones((4, 2), int), None, None, np.c_[margins, np.zeros(4)]))
    assert result["rewards/nll"] == pytest.approx(1250.0)
    assert result["rewards/brier"] == 0.25
    assert [row["confidence/mean"] for row in result["by_confidence"]["rewards"]] == [1.0]
    json.dumps(result, allow_nan=False)


def test_the_order_of_pairs_changes_nothing() -> None:
    judged, more = policy(), others()
    order = np.random.default_rng(12).permutation(COUNT)
    numbers = [numbers[order] for numbers in (judged.logps, judged.reference, judged.head) if numbers is not None]
    turned = Judgement(judged.lengths[order], *numbers, BETA)
    assert more.oracle is not None
    assert more.shaping is not None
    one, other = found(judged, more), found(turned, Others(more.oracle[order], more.shaping[order]))
    assert one.keys() == other.keys()
    for name in one:
        if name == "by_strength":
            assert [r["pairs"] for r in one[name]] == [r["pairs"] for r in other[name]]
        elif name != "by_confidence":
            assert one[name] == pytest.approx(other[name], abs=1e-9), name


FLAT = np.zeros((5, 2))
ODD = {
    "one pair": (policy(1), others(1)),
    "two pairs": (policy(2), others(2)),
    "all equal": (Judgement(np.full((5, 2), 3), FLAT - 7, FLAT - 7, FLAT, BETA), Others(FLAT, FLAT)),
    "all right": (Judgement(np.full((5, 2), 3), FLAT + [1, 0], None, None, BETA), Others(None, FLAT + [0, 1])),
    "a reward model": (Judgement(np.full((5, 2), 3), None, None, FLAT + [1, 0]), Others()),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_data_give_valid_json_without_a_warning(case: str) -> None:
    judged, more = ODD[case]
    for resamples in (100, 0):
        result = found(judged, more, f"resamples={resamples}")
        json.dumps(result, allow_nan=False)
        assert any(name.endswith("_interval") for name in result) == bool(resamples)
        json.dumps(pair_rows(judged), allow_nan=False)
    if case == "all right":
        assert result["rewards/accuracies"] == 1.0
        assert found(judged, more)["rewards/accuracies_interval"] == pytest.approx([0.025**0.2, 1.0])
        assert result["rewards/teacher_agreement"] == 0.0
        assert result["rewards/teacher_correlation"] is None
    if case == "all equal":
        assert result["rewards/teacher_agreement"] is None
        assert result["rewards/prefers_longer"] is None
        assert result["rewards/ece"] == 0.0, "sure of nothing, and right half of the time"


def test_the_numbers_of_pairs() -> None:
    judged = policy(3)
    assert judged.logps is not None
    rows = pair_rows(judged)
    assert [row["logps"] for row in rows] == judged.logps.tolist()
    for row in rows:
        (w, r), (rw, rl) = row["logps"], row["reference_logps"]
        assert row["rewards"] == pytest.approx([BETA * (w - rw), BETA * (r - rl)])
        assert row["margin"] == pytest.approx(row["rewards"][0] - row["rewards"][1])
        assert row["reward_head_margin"] == pytest.approx(row["reward_head"][0] - row["reward_head"][1])
