"""The figures of one checkpoint, from what it, its reference, an oracle and a teacher say of each pair."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_tvkd.commands.evaluate.calibration import (
    brier_scores,
    by_confidence,
    calibration_error,
    confidence_parts,
    correct,
    label_losses,
    sigmoid,
)
from nemo_tvkd.commands.evaluate.intervals import Figure, intervals
from nemo_tvkd.commands.evaluate.metrics import (
    agreeing,
    by_strength,
    implicit_rewards,
    margins_of,
    preference_metrics,
    rounded,
)

REWARD_PREFIXES = ("rewards", "reward_head")
"""A policy's implicit rewards, or a reward model's own; those of the head of a policy that has one."""


@dataclass
class Judgement:
    """What one checkpoint says of P pairs, and what they look like to it.

    Attributes:
        lengths: [P, 2] response tokens, end token included.
        logps: [P, 2] log pi (nats); None of a reward model.
        reference: [P, 2] log pi of the reference (nats).
        head: [P, 2] rewards of its reward head (reward units).
        beta: of its implicit rewards.
    """

    lengths: np.ndarray
    logps: np.ndarray | None = None
    reference: np.ndarray | None = None
    head: np.ndarray | None = None
    beta: float = 0.1
    rewards: dict[str, np.ndarray] = field(init=False)
    """[P, 2] by prefix: the implicit ones of a policy, and those of its head under their own name; a reward model has
    those of its head alone, as `rewards`."""

    def __post_init__(self) -> None:
        self.rewards = {}
        if self.logps is not None:
            self.rewards["rewards"] = implicit_rewards(self.logps, self.reference, self.beta)
        if self.head is not None:
            self.rewards["reward_head" if self.rewards else "rewards"] = self.head

    @property
    def is_reward_model(self) -> bool:
        return self.logps is None


@dataclass
class Others:
    """What other judges say of the same pairs: [P, 2] an oracle's rewards, and a teacher's Psi (nats)."""

    oracle: np.ndarray | None = None
    shaping: np.ndarray | None = None


def figures_of(judged: Judgement, others: Others, calibration_bins: int) -> dict[str, Figure]:
    """Everything that has an interval, by its name in the result.

    `logps/per_token_accuracies` compares log pi / T, without a reference; `lengths/longer_accuracies` is what always
    preferring the longer response would reach, and `PREFIX/prefers_longer` how often rewards prefer it, of the pairs
    whose lengths differ.
    """
    found: dict[str, Figure] = {}
    for prefix, rewards in judged.rewards.items():
        found |= _of_pairs(rewards, prefix) | _calibrated(margins_of(rewards), prefix, calibration_bins)
        found[f"{prefix}/prefers_longer"] = _agreeing(rewards, margins_of(judged.lengths))
        if others.oracle is not None:
            found[f"{prefix}/oracle_correlation"] = _correlated(rewards, others.oracle, pearson)
        if others.shaping is not None:
            found[f"{prefix}/teacher_agreement"] = _agreeing(rewards, margins_of(others.shaping))
            found[f"{prefix}/teacher_correlation"] = _correlated(rewards, others.shaping, pearson)
            found[f"{prefix}/teacher_rank_correlation"] = _correlated(rewards, others.shaping, spearman)
    if judged.logps is not None:
        per_token = judged.logps / judged.lengths
        for name, numbers in (("", judged.logps), ("per_token_", per_token)):
            for side, which in enumerate(("chosen", "rejected")):
                found[f"logps/{name}{which}"] = Figure((numbers[:, side],))
        found["logps/per_token_accuracies"] = _share(margins_of(per_token) > 0)
    for side, which in enumerate(("chosen", "rejected")):
        found[f"lengths/{which}"] = Figure((judged.lengths[:, side].astype(np.float64),))
    found["lengths/longer_accuracies"] = _share(margins_of(judged.lengths) > 0)
    for prefix, judge in (("shaping", others.shaping), ("oracle", others.oracle)):
        if judge is not None:
            found |= _of_pairs(judge, prefix)
    return found


def result_of(judged: Judgement, others: Others, figures: dict[str, Figure], config: Any) -> dict[str, Any]:
    """What is written: `figures` (of :func:`figures_of`) by name, with NAME_stderr and NAME_interval beside them, and
    tables by confidence and strength."""
    result: dict[str, Any] = {"pairs": len(judged.lengths)}
    for prefix, rewards in judged.rewards.items():
        result |= preference_metrics(rewards, prefix)
    for prefix, judge in (("shaping", others.shaping), ("oracle", others.oracle)):
        if judge is not None:
            result |= preference_metrics(judge, prefix)
    result |= {name: figure.value for name, figure in figures.items()}
    if config.resamples:
        edges = intervals(figures, config.confidence, config.resamples, config.seed)
        result |= {f"{name}_interval": None if edge is None else list(edge) for name, edge in edges.items()}
    result["by_confidence"] = {
        prefix: by_confidence(margins_of(rewards), config.calibration_bins)
        for prefix, rewards in judged.rewards.items()
    }
    if others.oracle is not None:
        result["by_strength"] = by_strength(judged.rewards, others.oracle, config.strength_bins, others.shaping)
    return result


def _of_pairs(numbers: np.ndarray, prefix: str) -> dict[str, Figure]:
    margins = margins_of(numbers)
    return {
        f"{prefix}/accuracies": _share(margins > 0),
        f"{prefix}/margins": Figure((margins,)),
        f"{prefix}/chosen": Figure((numbers[:, 0],)),
        f"{prefix}/rejected": Figure((numbers[:, 1],)),
        f"{prefix}/mean": Figure((numbers.mean(1),)),
    }


def _calibrated(margins: np.ndarray, prefix: str, bins: int) -> dict[str, Figure]:
    """See `evaluate.calibration`. The bins of the error are those of all pairs in every resample."""
    gap = sigmoid(np.abs(margins)) - correct(margins)
    return {
        f"{prefix}/ece": Figure((gap, confidence_parts(margins, bins).astype(np.float64)), calibration_error),
        f"{prefix}/brier": Figure((brier_scores(margins),)),
        f"{prefix}/nll": Figure((label_losses(margins),)),
    }


def _share(yes: np.ndarray, where: np.ndarray | None = None) -> Figure:
    return Figure((yes.astype(np.float64),), share=True, where=where)


def _agreeing(rewards: np.ndarray, other_margins: np.ndarray) -> Figure:
    """The share that prefers what another judge prefers, of the pairs where that one prefers either."""
    where, agrees = agreeing(rewards, other_margins)
    return _share(agrees, where)


def _correlated(rewards: np.ndarray, other: np.ndarray, statistic: Any) -> Figure:
    return Figure((rounded(margins_of(rewards)), rounded(margins_of(other))), statistic)


def pearson(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
    """Correlation of two columns; NaN where one does not vary."""
    vary = (np.ptp(one, axis=axis) > 0) & (np.ptp(other, axis=axis) > 0)
    one, other = (values - values.mean(axis=axis, keepdims=True) for values in (one, other))
    scale = np.sqrt((one**2).sum(axis=axis) * (other**2).sum(axis=axis))
    return np.clip(np.where(vary, (one * other).sum(axis=axis) / scale, np.nan), -1, 1)


def spearman(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
    """Correlation of two columns' ranks; equal numbers have their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(one, axis=axis), rankdata(other, axis=axis), axis=axis)


def pair_rows(judged: Judgement) -> list[dict[str, Any]]:
    """Each pair's numbers as this checkpoint has them, [chosen, rejected] by name, and its margins."""
    columns: dict[str, np.ndarray] = {"lengths": judged.lengths}
    if judged.logps is not None:
        columns["logps"] = judged.logps
    if judged.reference is not None:
        columns["reference_logps"] = judged.reference
    columns |= judged.rewards
    margins = {"margin" if p == "rewards" else f"{p}_margin": margins_of(r) for p, r in judged.rewards.items()}
    columns |= margins
    lists = {name: numbers.tolist() for name, numbers in columns.items()}
    return [{name: numbers[i] for name, numbers in lists.items()} for i in range(len(judged.lengths))]
