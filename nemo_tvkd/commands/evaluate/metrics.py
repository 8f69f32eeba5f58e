"""Figures of an evaluation: means over preference pairs, and the same apart for weak and strong preferences."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Pairs = Any
"""[P, 2] numbers: one of the chosen and one of the rejected response, of each of P pairs."""


def margins_of(pairs: Pairs) -> np.ndarray:
    """[P] float64, the chosen response's number less the rejected one's."""
    values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0] - values[:, 1]


def implicit_rewards(logps: Pairs, reference: Pairs | None, beta: float) -> np.ndarray:
    """[P, 2] beta (log pi - log ref), or beta log pi without a reference (reward units)."""
    values = np.asarray(logps, dtype=np.float64)
    return beta * (values if reference is None else values - np.asarray(reference, dtype=np.float64))


def preference_metrics(rewards: Pairs, prefix: str = "rewards") -> dict[str, float]:
    """Means over pairs: accuracy (a tie is not accurate), margin with the standard error of both, rewards, spread."""
    values = np.asarray(rewards, dtype=np.float64)
    margins = margins_of(values)
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


def by_strength(
    rewards: Mapping[str, Pairs], oracle: Pairs, bins: int, teacher: Pairs | None = None
) -> list[dict[str, Any]]:
    """The same apart for preferences of different strength: quantiles of the oracle's |reward difference|.

    Args:
        rewards: by prefix, as in `preference_metrics`.
        oracle: r* of each pair (reward units).
        bins: how many parts of equal size; pairs of equal strength are never parted, so there may be fewer.
        teacher: Psi of each pair (nats).

    Returns:
        from the weakest: least and greatest strength, pairs, the share that the oracle prefers as labelled, how often
        the rewards agree with the oracle (where it has a preference), and the metrics; with a teacher its own accuracy
        by Psi and how often the rewards agree with it.
    """
    margins = margins_of(oracle)
    strength = rounded(np.abs(margins))
    part = equal_parts(strength, bins)
    rows = []
    for index in range(part.max() + 1):
        chosen = np.flatnonzero(part == index)
        row: dict[str, Any] = {
            "strength/least": float(strength[chosen].min()),
            "strength/greatest": float(strength[chosen].max()),
            "pairs": len(chosen),
            "oracle/accuracies": float((margins[chosen] > 0).mean()),
        }
        shaping = None if teacher is None else margins_of(teacher)[chosen]
        if shaping is not None:
            row["shaping/accuracies"] = float((shaping > 0).mean())
        for prefix, pairs in rewards.items():
            values = np.asarray(pairs, dtype=np.float64)[chosen]
            row |= preference_metrics(values, prefix)
            row[f"{prefix}/agreement"] = agreement(values, margins[chosen])
            if shaping is not None:
                row[f"{prefix}/teacher_agreement"] = agreement(values, shaping)
        rows.append(row)
    return rows


def equal_parts(values: np.ndarray, bins: int) -> np.ndarray:
    """[P] numbers 0, 1, ... of parts of about equal size by value; equal values are never parted, no part is empty."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1]


def rounded(values: Any) -> Any:
    """Without the last digits, in which differences of equal decimals differ (2.7 - 2.0, 0.7 - 0.0)."""
    largest = float(np.abs(values).max())
    return np.round(values, 12 - math.ceil(math.log10(largest))) if largest else values


def agreement(rewards: Pairs, other_margins: Any) -> float | None:
    """How often rewards prefer what another judge prefers, of the pairs where it prefers either; None without such."""
    agrees = agreeing(rewards, other_margins)[1]
    return float(agrees.mean()) if len(agrees) else None


def agreeing(rewards: Pairs, other_margins: Any) -> tuple[np.ndarray, np.ndarray]:
    """[n] which pairs another judge prefers either response of, and [n] bool, whether rewards prefer the same one."""
    where = np.flatnonzero(np.asarray(other_margins))
    return where, np.sign(margins_of(rewards)[where]) == np.sign(np.asarray(other_margins)[where])
