"""Confidence intervals of figures, by the bootstrap over pairs (scipy.stats.bootstrap)."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

BCA_PAIRS = 5000
"""Up to so many pairs intervals are BCa (bias-corrected and accelerated). The acceleration takes time that grows with
the square of the pairs, and what it corrects vanishes with them: for more, intervals are percentiles."""
ELEMENTS = 1 << 24
"""Resampled numbers that are held at a time."""
Interval = tuple[float, float] | None


def mean(*columns: np.ndarray, axis: int = -1) -> Any:
    """The statistic of most figures."""
    return columns[0].mean(axis=axis)


@dataclass(frozen=True)
class Figure:
    """A number of some pairs.

    Attributes:
        columns: what it is computed from, each [n]: numbers of the n pairs that it is about.
        statistic: (*columns [..., n], axis) -> [...].
        share: whether it is one of pairs: the mean of noughts and ones.
        where: [n] which of the P pairs it is about; None: all of them.
    """

    columns: tuple[np.ndarray, ...]
    statistic: Callable[..., Any] = mean
    share: bool = False
    where: np.ndarray | None = None

    @property
    def value(self) -> float | None:
        """None where it is not defined: no pair, or a correlation with what does not vary."""
        if not self.columns[0].size:
            return None
        with quiet():
            found = float(self.statistic(*self.columns, axis=-1))
        return found if math.isfinite(found) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Resamples in which nothing varies divide by 0, which shows as NaN and is dealt with."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def intervals(figures: Mapping[str, Figure], confidence: float, resamples: int, seed: int) -> dict[str, Interval]:
    """An interval for each figure; None where the pairs say nothing about it (a single pair, no value).

    A share that is 0 or 1 varies in no resample: its interval is the exact one (Clopper-Pearson). Whatever else is
    equal for all pairs has an interval of no width. The order of pairs makes no difference.
    """
    found: dict[str, Interval] = {}
    together: dict[int, list[str]] = {}
    for name, figure in figures.items():
        count = figure.columns[0].size
        value = figure.value
        found[name] = None
        if value is None:
            continue
        if all(np.ptp(column) == 0 for column in figure.columns):
            if figure.share:
                found[name] = _exact_share(round(value * count), count, confidence)
            elif count > 1:
                found[name] = (value, value)
        elif figure.statistic is mean:
            together.setdefault(count, []).append(name)
        else:
            found[name] = bootstrap(figure.columns, figure.statistic, confidence, resamples, seed)[0]
    for names in together.values():  # means of equally many pairs share their resamples
        stack = np.stack([figures[name].columns[0] for name in names])
        found |= dict(zip(names, bootstrap((stack,), mean, confidence, resamples, seed), strict=True))
    return found


def bootstrap(
    columns: Sequence[np.ndarray], statistic: Callable[..., Any], confidence: float, resamples: int, seed: int
) -> list[Interval]:
    """Intervals of a statistic of columns [n], or of each row of one column [k, n].

    BCa where it is defined, else percentiles (it is not where all resamples lie on one side of the value, as those of
    a calibration error near 0 may, which resampling makes larger); always wide enough to hold the value itself.
    """
    from scipy import stats

    rows = np.concatenate([np.atleast_2d(column) for column in columns])
    order = np.lexsort(rows[::-1])  # the first column decides: those after it do not change its interval
    data = tuple(np.asarray(column, dtype=np.float64)[..., order] for column in columns)
    options: dict[str, Any] = {"paired": True, "vectorized": True, "axis": -1, "confidence_level": confidence}
    options |= {"n_resamples": resamples, "batch": max(1, ELEMENTS // rows.size), "rng": np.random.default_rng(seed)}
    count = rows.shape[1]
    with quiet():
        done = stats.bootstrap(data, statistic, method="BCa" if count <= BCA_PAIRS else "percentile", **options)
        edges = np.array([done.confidence_interval.low, done.confidence_interval.high]).reshape(2, -1).T
        if count <= BCA_PAIRS and not np.isfinite(edges).all():
            drawn = np.atleast_2d(done.bootstrap_distribution)
            tail = (1 - confidence) / 2
            plain = np.quantile(drawn, [tail, 1 - tail], axis=-1).T
            edges = np.where(np.isfinite(edges).all(axis=1, keepdims=True), edges, plain)
        values = np.atleast_1d(statistic(*columns, axis=-1))
    edges = np.stack([np.minimum(edges[:, 0], values), np.maximum(edges[:, 1], values)], axis=1)
    return [(float(low), float(high)) if math.isfinite(low + high) else None for low, high in edges]


def _exact_share(right: int, count: int, confidence: float) -> Interval:
    from scipy import stats

    low, high = stats.binomtest(right, count).proportion_ci(confidence)
    return float(low), float(high)
