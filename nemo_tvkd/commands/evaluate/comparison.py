"""Several checkpoints on the same pairs: differences with intervals, and whether chance alone would make them.

Pairs are paired: each difference is between what two checkpoints say of one pair. Two questions are asked of each
comparison with the first checkpoint, one of accuracy and one of the mean margin, and the p-values of each question are
corrected for the number of comparisons (Holm): `p_holm`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_tvkd.commands.evaluate.figures import Judgement
from nemo_tvkd.commands.evaluate.intervals import ELEMENTS, Figure, intervals, mean, quiet
from nemo_tvkd.commands.evaluate.metrics import margins_of

PERMUTATIONS = 9999
"""Drawn at random where there are more than so many; p is then at least 2 in 10,000."""
OWN = ("rewards/", "reward_head/", "logps/")
"""Figures of a checkpoint, rather than of the pairs or other judges."""
OF_TOKENS = ("logps/per_token_chosen", "logps/per_token_rejected")
"""These have another unit for another tokenizer."""
EVERYTHING = "all figures"
ACCURACY = "accuracy alone: rewards of a reward model and of a policy have different units"


def compare(
    first: tuple[Judgement, dict[str, Figure]], others: Sequence[tuple[Judgement, dict[str, Figure]]], config: Any
) -> list[dict[str, Any]]:
    """What each of the others does differently from the first, in their order.

    Returns:
        of each: `compared` (all figures, or what alone and why), `differences` (of figures: other less first, with the
        bootstrap's interval) and `tests` (of PREFIX/accuracies and PREFIX/margins).
    """
    rows = [_compare_two(*first, *other, config) for other in others]
    for name in {name for row in rows for name in row["tests"]}:
        tests = [row["tests"][name] for row in rows if name in row["tests"]]
        for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = corrected
    return rows


def _compare_two(
    judged_a: Judgement, figures_a: dict[str, Figure], judged_b: Judgement, figures_b: dict[str, Figure], config: Any
) -> dict[str, Any]:
    alike = judged_a.is_reward_model == judged_b.is_reward_model
    prefixes = [p for p in judged_a.rewards if p in judged_b.rewards and (alike or p == "rewards")]
    differing = differences(figures_a, figures_b)
    if not alike:
        differing = {name: figure for name, figure in differing.items() if name == "rewards/accuracies"}
    edges = intervals(differing, config.confidence, config.resamples, config.seed) if config.resamples else {}
    rows: dict[str, dict[str, Any]] = {}
    for name, figure in differing.items():
        edge = edges.get(name)
        rows[name] = {"difference": figure.value}
        if config.resamples:
            rows[name]["interval"] = None if edge is None else list(edge)
    tests: dict[str, dict[str, Any]] = {}
    for prefix in prefixes:
        one, other = margins_of(judged_a.rewards[prefix]), margins_of(judged_b.rewards[prefix])
        tests[f"{prefix}/accuracies"] = mcnemar(one > 0, other > 0)
        if alike:
            tests[f"{prefix}/margins"] = sign_flips(other - one, config.seed)
    return {"compared": EVERYTHING if alike else ACCURACY, "differences": rows, "tests": tests}


def differences(first: dict[str, Figure], other: dict[str, Figure]) -> dict[str, Figure]:
    """Figures that both have of the same pairs, as figures of their difference: the other's less the first's."""
    found = {}
    for name in first.keys() & other.keys():
        a, b = first[name], other[name]
        same = a.columns[0].size == b.columns[0].size and np.array_equal(_where(a), _where(b))
        if not name.startswith(OWN) or name in OF_TOKENS or not same:
            continue
        if a.statistic is mean:
            found[name] = Figure((b.columns[0] - a.columns[0],))
        else:
            found[name] = Figure((*a.columns, *b.columns), _Difference(a.statistic, len(a.columns)))
    return {name: found[name] for name in first if name in found}


def _where(figure: Figure) -> np.ndarray:
    return np.arange(figure.columns[0].size) if figure.where is None else figure.where


class _Difference:
    """A statistic of the second half of columns less that of the first half."""

    def __init__(self, statistic: Any, count: int) -> None:
        self.statistic, self.count = statistic, count

    def __call__(self, *columns: np.ndarray, axis: int = -1) -> Any:
        one, other = columns[: self.count], columns[self.count :]
        return self.statistic(*other, axis=axis) - self.statistic(*one, axis=axis)


def mcnemar(first: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test: of the pairs that one of two gets right, each is as likely to be the other's.

    Args:
        first, other: [P] bool, which pairs each gets right.
    """
    from scipy import stats

    gained, lost = int((other & ~first).sum()), int((first & ~other).sum())
    p = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return {"test": "exact McNemar", "gained": gained, "lost": lost, "p": p}


def sign_flips(differences: np.ndarray, seed: int) -> dict[str, Any]:
    """Paired permutation test of the mean: without a difference, each pair's two margins could change places.

    It asks about the mean, the figure that is reported; Wilcoxon's signed ranks would ask about another one, and want
    a symmetric distribution for it. Nothing is assumed of the distribution here. Exact for few pairs, else from
    :data:`PERMUTATIONS` random ones.

    Args:
        differences: [P] of margins.
    """
    from scipy import stats

    moved = np.sort(differences[differences != 0])
    result: dict[str, Any] = {"test": "sign-flip permutation", "p": 1.0}
    if moved.size > 1:  # of one alone both signs are as extreme
        options: dict[str, Any] = {"permutation_type": "samples", "vectorized": True, "n_resamples": PERMUTATIONS}
        batch, rng = max(1, ELEMENTS // moved.size), np.random.default_rng(seed)
        with quiet():
            done = stats.permutation_test((moved,), mean, batch=batch, rng=rng, **options)
        result["p"] = float(done.pvalue)
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests (Scandinavian Journal of Statistics 6, 1979), in their order."""
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
