"""Supervised fine-tuning: the mean negative log-likelihood of a response token.

    L = - sum_n log pi(y_n | x_n) / sum_n T_n

Sums and the token count are returned; the division by the global batch's token count happens once.
"""

from torch import Tensor

METRICS = ("loss",)


def sft_loss(logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative log-likelihood of each example.

    Args:
        logps: [B], log pi(y|x) summed over response tokens (nats).

    Returns:
        losses [B] (nats; not divided by the length) and metrics.
    """
    return -logps, {"loss": -logps}
