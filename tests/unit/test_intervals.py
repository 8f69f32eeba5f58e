"""Bootstrap intervals: how often they hold the truth, and data that say nothing about it."""

import warnings

import numpy as np
import pytest

from nemo_tvkd.commands.evaluate.calibration import calibration_error, confidence_parts, correct, sigmoid
from nemo_tvkd.commands.evaluate.figures import pearson, spearman
from nemo_tvkd.commands.evaluate.intervals import BCA_PAIRS, Figure, bootstrap, intervals, mean

SETS, PAIRS = 200, 80


def coverage(draws: list[np.ndarray], truth: float, **kwargs: bool) -> float:
    held = []
    for index, values in enumerate(draws):
        found = intervals({"figure": Figure((values,), **kwargs)}, 0.95, 500, index)["figure"]
        assert found is not None
        held.append(found[0] <= truth <= found[1])
    return float(np.mean(held))


def test_95_percent_intervals_hold_the_truth_that_often() -> None:
    rng = np.random.default_rng(5)
    right = [(rng.random(PAIRS) < 0.7).astype(float) for _ in range(SETS)]
    skewed = [rng.exponential(2.0, PAIRS) for _ in range(SETS)]
    assert 0.90 <= coverage(right, 0.7, share=True) <= 0.985
    assert 0.90 <= coverage(skewed, 2.0) <= 0.985


def test_an_interval_of_a_correlation_holds_the_truth() -> None:
    rng = np.random.default_rng(6)
    held = []
    for index in range(60):
        one, other = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], PAIRS).T
        found = intervals({"r": Figure((one, other), pearson)}, 0.95, 500, index)["r"]
        assert found is not None
        held.append(found[0] <= 0.6 <= found[1])
    assert np.mean(held) >= 0.88


def test_many_pairs_have_percentiles() -> None:
    """Against the normal approximation, which is right for so many."""
    values = np.random.default_rng(7).normal(3.0, 2.0, BCA_PAIRS + 1)
    ((low, high),) = [edge for edge in bootstrap((values[None],), mean, 0.9, 500, 0) if edge]
    error = 1.6449 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.15 * error)


def test_means_of_a_stack_have_the_intervals_of_each_alone() -> None:
    """Of the first, whose numbers are told apart; the others' resamples then are the same pairs."""
    rng = np.random.default_rng(8)
    one, other = rng.normal(size=40), rng.normal(size=40)
    alone = intervals({"one": Figure((one,))}, 0.95, 300, 1)
    both = intervals({"one": Figure((one,)), "other": Figure((other,))}, 0.95, 300, 1)
    assert both["one"] == pytest.approx(alone["one"])


def test_the_order_of_pairs_makes_no_difference() -> None:
    rng = np.random.default_rng(9)
    one, other = rng.normal(size=50), rng.normal(size=50)
    order = rng.permutation(50)
    figures = [
        {"m": Figure((x,)), "r": Figure((x, y), spearman)} for x, y in ((one, other), (one[order], other[order]))
    ]
    found, again = (intervals(figure, 0.9, 200, 3) for figure in figures)
    assert found["m"] == pytest.approx(again["m"])
    assert found["r"] == pytest.approx(again["r"])


def test_an_interval_holds_its_own_value() -> None:
    """150 of 200 pairs are right at a confidence of 3/4: the error is 0, and larger in all resamples.

    Those are about half-normal, of the deviation sqrt(3/16 / 200); 97.5 % of them are below 2.2414 times that.
    """
    margins = np.repeat([np.log(3.0), -np.log(3.0)], [150, 50])
    gap, part = sigmoid(np.abs(margins)) - correct(margins), confidence_parts(margins, 10)
    figure = Figure((gap, part.astype(float)), calibration_error)
    found = intervals({"ece": figure}, 0.95, 2000, 0)["ece"]
    assert figure.value == pytest.approx(0.0, abs=1e-12)
    assert found == pytest.approx((0.0, 2.2414 * np.sqrt(0.1875 / 200)), abs=0.006)


ONES, NONE = np.ones(12), np.zeros(12)
DEGENERATE = {
    # exact: (alpha/2)^(1/12), and 1 less it
    "all right": (Figure((ONES,), share=True), 1.0, (0.025 ** (1 / 12), 1.0)),
    "all wrong": (Figure((NONE,), share=True), 0.0, (0.0, 1 - 0.025 ** (1 / 12))),
    "one pair, right": (Figure((np.ones(1),), share=True), 1.0, (0.025, 1.0)),
    "equal margins": (Figure((2.5 * ONES,)), 2.5, (2.5, 2.5)),
    "one pair": (Figure((np.array([3.0]),)), 3.0, None),
    "no pair": (Figure((np.empty(0),)), None, None),
    "nothing varies": (Figure((ONES, NONE), pearson), None, None),
    "one does not vary": (Figure((np.arange(12.0), NONE), spearman), None, None),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_data_that_say_little(case: str) -> None:
    figure, value, interval = DEGENERATE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure.value == value
        found = intervals({"figure": figure}, 0.95, 200, 0)["figure"]
    assert found == (None if interval is None else pytest.approx(interval))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_few_pairs_are_no_crash_and_no_nan(count: int) -> None:
    rng = np.random.default_rng(count)
    one, other = rng.normal(size=count), rng.normal(size=count)
    figures = {"m": Figure((one,)), "r": Figure((one, other), pearson), "s": Figure(((one > 0) * 1.0,), share=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervals(figures, 0.95, 100, 0)
    for name, edges in found.items():
        assert edges is None or np.isfinite(edges).all(), name
    assert found["m"] is not None
    assert found["m"][0] <= one.mean() <= found["m"][1]
