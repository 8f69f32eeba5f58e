"""Whether a margin is as sure as it is right: sigmoid(margin) read as the probability of the label (Bradley-Terry).

For a reward model the margin is r_w - r_l, and its training loss says that sigmoid of it is that probability. A
policy's margin is beta (log pi_w - log pi_l), less the reference's where there is one: beta scales it, so these figures
are about a policy together with its beta (and DPO's loss at that beta is `nll`). Without a reference the margin also
holds how long and how usual the two texts are, and says little about preference.

A tie says 1/2 and is right half of the time: it counts as half a correct answer here.
"""

from typing import Any

import numpy as np

from nemo_tvkd.commands.evaluate.metrics import equal_parts, rounded


def sigmoid(margins: np.ndarray) -> np.ndarray:
    """The probability of the label, [P]."""
    from scipy.special import expit

    return expit(margins)


def correct(margins: np.ndarray) -> np.ndarray:
    """[P] 1 where the margin is on the label's side, 0 where it is not, 1/2 for a tie."""
    return (np.sign(margins) + 1) / 2


def confidence_parts(margins: np.ndarray, bins: int) -> np.ndarray:
    """[P] the bin of each pair: equal counts by confidence sigmoid(|margin|); equal ones are never parted."""
    return equal_parts(rounded(sigmoid(np.abs(margins))), bins)


def by_confidence(margins: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """From the least sure bin: least, greatest and mean confidence, the share of correct answers, and pairs."""
    confidence, right, part = sigmoid(np.abs(margins)), correct(margins), confidence_parts(margins, bins)
    rows = []
    for index in range(part.max() + 1):
        inside = part == index
        rows.append(
            {
                "confidence/least": float(confidence[inside].min()),
                "confidence/greatest": float(confidence[inside].max()),
                "confidence/mean": float(confidence[inside].mean()),
                "accuracies": float(right[inside].mean()),
                "pairs": int(inside.sum()),
            }
        )
    return rows


def calibration_error(gap: np.ndarray, part: np.ndarray, axis: int = -1) -> Any:
    """Expected calibration error: sum over bins of (their share of the pairs) |mean confidence - accuracy|.

    Chance alone makes it positive: even a calibrated model shows about sqrt(bins / pairs) / 2.

    Args:
        gap: [..., P] confidence less correctness of each pair.
        part: [..., P] its bin.
    """
    total = np.zeros(np.delete(gap.shape, axis))
    for index in np.unique(part):
        total += np.abs(np.sum(np.where(part == index, gap, 0.0), axis=axis))
    return total / gap.shape[axis]


def brier_scores(margins: np.ndarray) -> np.ndarray:
    """[P] (1 - sigmoid(margin))^2, whose mean is the Brier score: 0 is best, 1/4 says nothing."""
    return sigmoid(-margins) ** 2


def label_losses(margins: np.ndarray) -> np.ndarray:
    """[P] -log sigmoid(margin) in nats, whose mean is the negative log-likelihood of the labels; ln 2 says nothing."""
    return np.logaddexp(0.0, -margins)
