"""Paired tests by hand and by enumeration; checkpoints compared with themselves, and with ones known to differ."""

import itertools
from math import comb
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.commands.evaluate.comparison import compare, holm, mcnemar, sign_flips
from nemo_tvkd.commands.evaluate.figures import Judgement, Others, figures_of
from nemo_tvkd.config.compose import compose


def test_mcnemar_by_hand() -> None:
    """10 discordant pairs, 2 one way and 8 the other: p = 2 P(X <= 2), X heads of 10 coins = 2 (1 + 10 + 45) / 1024."""
    first = np.array([True] * 30 + [True] * 8 + [False] * 2 + [False] * 20)
    other = np.array([True] * 30 + [False] * 8 + [True] * 2 + [False] * 20)
    found = mcnemar(first, other)
    assert (found["gained"], found["lost"]) == (2, 8)
    assert found["p"] == pytest.approx(2 * 56 / 1024)
    assert mcnemar(other, first)["p"] == pytest.approx(2 * 56 / 1024)
    assert mcnemar(first, first) == {"test": "exact McNemar", "gained": 0, "lost": 0, "p": 1.0}


def test_mcnemar_of_a_textbook_table() -> None:
    """Agresti's two surveys of a prime minister: 794 and 570 alike, 150 and 86 not (chi-squared 17.36, p = 0.00003)."""
    cells = [(794, True, True), (150, True, False), (86, False, True), (570, False, False)]
    first, other = (np.concatenate([np.full(row[0], row[side]) for row in cells]) for side in (1, 2))
    found = mcnemar(first, other)
    assert (found["gained"], found["lost"]) == (86, 150)
    assert found["p"] == pytest.approx(2 * sum(comb(236, k) for k in range(87)) / 2**236)
    assert found["p"] == pytest.approx(3.1e-5, rel=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_all_of_few(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, 1.0, 9)
    sums = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=9)]
    low, high = (np.mean([s * sign <= values.sum() * sign + 1e-12 for s in sums]) for sign in (1, -1))
    assert sign_flips(np.append(values, 0.0), 0)["p"] == pytest.approx(min(1, 2 * min(low, high)))


def test_sign_flips_of_many_are_as_the_t_test_says() -> None:
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(3).normal(0.13, 1.0, 300)
    assert sign_flips(values, 0)["p"] == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flips(np.zeros(5), 0)["p"] == 1.0
    assert sign_flips(np.array([0.0, 2.0]), 0)["p"] == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def config(*options: str) -> Any:
    return compose("evaluate", ["resamples=200", *options])


def judged(seed: int, shift: float = 0.0, pairs: int = 200, head: bool = False) -> Judgement:
    """Log-probs (or rewards) that have the pairs in common, and noise of their own."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    numbers = common.normal(-50, 10, (pairs, 2)) + own.normal(0, 3, (pairs, 2)) + [shift, 0.0]
    lengths = np.random.default_rng(1).integers(3, 30, (pairs, 2))
    return Judgement(lengths, None, None, numbers) if head else Judgement(lengths, numbers)


def compared(
    *all_judged: Judgement, others: Others | None = None, options: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    first, *rest = [(one, figures_of(one, others or Others(), 10)) for one in all_judged]
    return compare(first, rest, config(*options))


def test_a_checkpoint_does_not_differ_from_itself() -> None:
    (row,) = compared(judged(1), judged(1), others=Others(shaping=judged(5).logps, oracle=judged(6).logps))
    assert row["compared"] == "all figures"
    assert "rewards/teacher_rank_correlation" in row["differences"]
    for name, found in row["differences"].items():
        assert found == {"difference": 0.0, "interval": [0.0, 0.0]}, name
    assert {test["p"] for test in row["tests"].values()} == {1.0}
    assert set(row["tests"]) == {"rewards/accuracies", "rewards/margins"}


def test_a_known_difference_is_found_and_its_size_too() -> None:
    first, better, same = judged(1), judged(2, shift=8.0), judged(3)
    found, none = compared(first, better, same)
    assert first.logps is not None
    assert better.logps is not None
    margins = [0.1 * (one.logps[:, 0] - one.logps[:, 1]) for one in (first, better) if one.logps is not None]
    right = [m > 0 for m in margins]
    gain = found["differences"]["rewards/accuracies"]
    assert gain["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert 0 < gain["interval"][0] < gain["difference"] < gain["interval"][1]
    moved = found["differences"]["rewards/margins"]
    assert moved["difference"] == pytest.approx((margins[1] - margins[0]).mean())
    assert 0.6 < moved["interval"][0] < moved["difference"] < moved["interval"][1] < 1.2  # 8 nats, times beta
    assert found["tests"]["rewards/margins"]["p"] == pytest.approx(2 / 10_000)
    assert found["tests"]["rewards/margins"]["p_holm"] == pytest.approx(4 / 10_000)
    assert found["tests"]["rewards/accuracies"]["gained"] == int((right[1] & ~right[0]).sum())
    assert found["tests"]["rewards/accuracies"]["p_holm"] < 0.01
    assert none["tests"]["rewards/margins"]["p_holm"] > 0.05
    quiet = none["differences"]["rewards/margins"]["interval"]
    assert quiet[0] < 0 < quiet[1]


def test_a_reward_model_and_a_policy_share_their_accuracy_alone() -> None:
    policy, oracle, other = judged(1), judged(2, head=True), judged(3)
    mixed, alike = compared(policy, oracle, other)
    assert list(mixed["differences"]) == list(mixed["tests"]) == ["rewards/accuracies"]
    assert "different units" in mixed["compared"]
    assert "rewards/ece" in alike["differences"]
    p = mixed["tests"]["rewards/accuracies"]["p"]
    assert mixed["tests"]["rewards/accuracies"]["p_holm"] >= p
    assert alike["tests"]["rewards/margins"]["p_holm"] == alike["tests"]["rewards/margins"]["p"], "a family of one"


def test_without_resamples_there_are_tests_and_no_intervals() -> None:
    (row,) = compared(judged(1), judged(2, shift=2.0), options=("resamples=0",))
    assert set(row["differences"]["rewards/margins"]) == {"difference"}
    assert 0 < row["tests"]["rewards/margins"]["p"] < 1


def test_the_order_of_pairs_changes_no_comparison() -> None:
    order = np.random.default_rng(4).permutation(200)
    first, other = judged(1), judged(2, shift=1.0)
    turned = [Judgement(one.lengths[order], one.logps[order]) for one in (first, other) if one.logps is not None]
    (row,), (again,) = compared(first, other), compared(*turned)
    assert row["tests"] == again["tests"]
    for name, found in row["differences"].items():
        assert found["interval"] == pytest.approx(again["differences"][name]["interval"], abs=1e-9), name
