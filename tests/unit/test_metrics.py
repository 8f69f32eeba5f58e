"""Figures of evaluations, by hand."""

import math

import pytest

from nemo_tvkd.commands.evaluate.figures import pearson
from nemo_tvkd.commands.evaluate.intervals import Figure
from nemo_tvkd.commands.evaluate.metrics import (
    agreement,
    by_strength,
    implicit_rewards,
    margins_of,
    preference_metrics,
    rounded,
)

LOGPS = [(-1.0, -3.0), (-4.0, -2.0), (-5.0, -5.0), (-2.0, -8.0)]


def test_rewards_without_a_reference() -> None:
    found = preference_metrics(implicit_rewards(LOGPS, None, 0.5))
    margins = [0.5 * m for m in (2, -2, 0, 6)]
    spread = math.sqrt(sum((m - 0.75) ** 2 for m in margins) / 4)
    values = [0.5 * v for pair in LOGPS for v in pair]
    mean = sum(values) / 8
    assert found == pytest.approx(
        {
            "rewards/accuracies": 0.5,  # 2 of 4: the tie is not accurate
            "rewards/accuracies_stderr": 0.25,
            "rewards/margins": 0.75,
            "rewards/margins_stderr": spread / 2,
            "rewards/chosen": 0.5 * -12 / 4,
            "rewards/rejected": 0.5 * -18 / 4,
            "rewards/mean": mean,
            "rewards/std": math.sqrt(sum((v - mean) ** 2 for v in values) / 8),
        }
    )


def test_rewards_against_a_reference() -> None:
    reference = [(-1.0, -2.0), (-5.0, -1.0), (-6.0, -5.0), (-1.0, -9.0)]
    found = preference_metrics(implicit_rewards(LOGPS, reference, 0.5), "head")
    # log-ratios: (0, -1), (1, -1), (1, 0), (-1, 1)
    assert found["head/accuracies"] == 0.75
    assert found["head/margins"] == pytest.approx(0.5 * (1 + 2 + 1 - 2) / 4)
    assert found["head/chosen"] == pytest.approx(0.5 * 1 / 4)


def correlation(ours: list, theirs: list) -> float | None:
    return Figure((rounded(margins_of(ours)), rounded(margins_of(theirs))), pearson).value


ORACLE = [(3.0, 1.0), (1.0, 1.5), (0.0, 0.0), (5.0, 1.0), (1.0, 7.0), (2.0, 1.0)]  # strengths 2, 0.5, 0, 4, 6, 1
OURS = [(1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 2.0), (4.0, 0.0)]


def test_weak_and_strong_preferences_are_told_apart() -> None:
    rows = by_strength({"rewards": OURS, "head": ORACLE}, ORACLE, 3)
    assert [(r["strength/least"], r["strength/greatest"], r["pairs"]) for r in rows] == [
        (0.0, 0.5, 2),
        (1.0, 2.0, 2),
        (4.0, 6.0, 2),
    ]
    assert [r["rewards/accuracies"] for r in rows] == [1.0, 1.0, 0.0]
    assert [r["rewards/margins"] for r in rows] == [1.0, 2.5, -1.5]
    assert [r["oracle/accuracies"] for r in rows] == [0.0, 1.0, 0.5]
    assert [r["rewards/agreement"] for r in rows] == [0.0, 1.0, 0.5]  # the tie of the oracle counts for neither
    assert [r["head/agreement"] for r in rows] == [1.0, 1.0, 1.0]


def test_a_teacher_is_judged_apart_too() -> None:
    rows = by_strength({"rewards": OURS}, ORACLE, 3, teacher=[(1, 0), (0, 1), (2, 2), (5, 1), (3, 0), (0, 0)])
    assert [r["shaping/accuracies"] for r in rows] == [0.0, 0.5, 1.0]  # a tie of the teacher is not accurate
    assert [r["rewards/teacher_agreement"] for r in rows] == [0.0, 1.0, 0.0]  # and counts for neither


def test_equal_strengths_are_never_parted() -> None:
    oracle = [(1.0, 0.0)] * 7 + [(5.0, 0.0)]
    rows = by_strength({"rewards": oracle}, oracle, 4)
    assert [(r["strength/greatest"], r["pairs"]) for r in rows] == [(1.0, 7), (5.0, 1)]
    assert [r["pairs"] for r in by_strength({"rewards": oracle}, oracle, 1)] == [8]
    assert [r["pairs"] for r in by_strength({"rewards": oracle[:1]}, oracle[:1], 4)] == [1]


def test_decimals_that_differ_in_their_last_digit_are_equal() -> None:
    oracle = [(2.7, 2.0), (0.7, 0.0), (1.9, 1.2), (4.3, 0.0)]
    assert len({w - r for w, r in oracle}) == 3
    assert [r["pairs"] for r in by_strength({"rewards": oracle}, oracle, 4)] == [3, 1]
    assert correlation([(0.1, 0.0), (5.0, 1.0), (2.0, 0.0)], [(0.7, 0.6), (0.3, 0.2), (0.5, 0.4)]) is None


def test_nothing_to_agree_or_correlate_with() -> None:
    assert agreement(OURS, [0.0] * 6) is None
    assert correlation(OURS, [(1.0, 0.0)] * 6) is None
    assert correlation(ORACLE, ORACLE) == pytest.approx(1.0)
    assert correlation([(r, w) for w, r in ORACLE], ORACLE) == pytest.approx(-1.0)
    rows = by_strength({"rewards": OURS[:1]}, [(1.0, 1.0)], 4)
    assert rows[0]["rewards/agreement"] is None
