"""Figures of an evaluation: means over preference pairs, and the same apart for weak and strong preferences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Pairs = Sequence[tuple[float, float]]
"""A number of the chosen and one of the rejected response, of each pair."""


def implicit_rewards(logps: Pairs, reference: Pairs | None, beta: float) -> list[tuple[float, float]]:
    """beta (log pi - log ref), or beta log pi without a reference (reward units)."""
    reference = reference or [(0.0, 0.0)] * len(logps)
    both = zip(logps, reference, strict=True)
    return [(beta * (chosen - rw), beta * (rejected - rl)) for (chosen, rejected), (rw, rl) in both]


def preference_metrics(rewards: Pairs, prefix: str = "rewards") -> dict[str, float]:
    """Means over pairs: accuracy (a tie is not accurate), margin with the standard error of both, rewards, spread."""
    values = np.asarray(rewards, dtype=np.float64)
    margins = values[:, 0] - values[:, 1]
    accuracy, count = float((margins > 0).mean()), len(margins)
    figures = {
        "accuracies": accuracy,
        "accuracies_stderr": math.sqrt(accuracy * (1 - accuracy) / count),
        "margins": float(margins.mean()),
        "margins_stderr": float(margins.std()) / math.sqrt(count),
        "chosen": float(values[:, 0].mean()),
        "rejected": float(values[:, 1].mean()),
        "mean": float(values.mean()),
        "std": float(values.std()),
    }
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def by_strength(rewards: Mapping[str, Pairs], oracle: Pairs, bins: int) -> list[dict[str, Any]]:
    """The same apart for preferences of different strength: quantiles of the oracle's |reward difference|.

    Args:
        rewards: by prefix, as in `preference_metrics`.
        oracle: r* of each pair (reward units).
        bins: how many parts of equal size; pairs of equal strength are never parted, so there may be fewer.

    Returns:
        from the weakest: least and greatest strength, pairs, the share that the oracle prefers as labelled, how often
        the rewards agree with the oracle (where it has a preference), and the metrics.
    """
    margins = np.subtract(*np.asarray(oracle, dtype=np.float64).T)
    strength = _rounded(np.abs(margins))
    edges = np.unique(np.quantile(strength, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    part = np.searchsorted(edges, strength, side="left")
    rows = []
    for index in range(len(edges) + 1):
        chosen = np.flatnonzero(part == index)
        if not len(chosen):
            continue
        row: dict[str, Any] = {
            "strength/least": float(strength[chosen].min()),
            "strength/greatest": float(strength[chosen].max()),
            "pairs": len(chosen),
            "oracle/accuracies": float((margins[chosen] > 0).mean()),
        }
        for prefix, pairs in rewards.items():
            values = np.asarray(pairs, dtype=np.float64)[chosen]
            row |= preference_metrics([(w, r) for w, r in values], prefix)
            row[f"{prefix}/agreement"] = agreement([(w, r) for w, r in values], margins[chosen])
        rows.append(row)
    return rows


def _rounded(values: Any) -> Any:
    """Without the last digits, in which differences of equal decimals differ (2.7 - 2.0, 0.7 - 0.0)."""
    largest = float(np.abs(values).max())
    return np.round(values, 12 - math.ceil(math.log10(largest))) if largest else values


def agreement(rewards: Pairs, oracle_margins: Any) -> float | None:
    """How often rewards prefer what the oracle prefers, of the pairs where it prefers either; None without such."""
    decided = np.flatnonzero(np.asarray(oracle_margins))
    if not len(decided):
        return None
    margins = np.subtract(*np.asarray(rewards, dtype=np.float64).T)
    return float((np.sign(margins[decided]) == np.sign(np.asarray(oracle_margins)[decided])).mean())


def correlation(rewards: Pairs, oracle: Pairs) -> float | None:
    """Pearson's, of reward differences; None where one of the two does not vary."""
    ours, theirs = (_rounded(np.subtract(*np.asarray(pairs, dtype=np.float64).T)) for pairs in (rewards, oracle))
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return float(np.corrcoef(ours, theirs)[0, 1])


def table(rows: Sequence[dict[str, Any]], prefix: str) -> str:
    """The parts of :func:`by_strength` as text."""
    lines = [
        f"{'|oracle difference|':>22} {'pairs':>6} {'accuracy':>17} {'reward advantage':>22} {'oracle agrees':>14}"
    ]
    for row in rows:
        span = f"{row['strength/least']:.3g} to {row['strength/greatest']:.3g}"
        accuracy = f"{row[f'{prefix}/accuracies']:.3f} +- {row[f'{prefix}/accuracies_stderr']:.3f}"
        margin = f"{row[f'{prefix}/margins']:.4g} +- {row[f'{prefix}/margins_stderr']:.2g}"
        agrees = row[f"{prefix}/agreement"]
        lines.append(
            f"{span:>22} {row['pairs']:>6} {accuracy:>17} {margin:>22} {'-' if agrees is None else f'{agrees:.3f}':>14}"
        )
    return "\n".join(lines)
