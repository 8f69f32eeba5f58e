"""Supervised fine-tuning: the mean negative log-likelihood of a trained token.

    L = - sum_n log pi(y_n | x_n) / sum_n T_n

y_n is the last answer of conversation n (T_n tokens with its end), or with data.assistant_turns=all every answer in it,
each after all that stands before it: log pi(y_n | x_n) then sums over the tokens of answers alone, and T_n counts them.
Sums and the token count are returned; the division by the global batch's token count happens once.
"""

from torch import Tensor

METRICS = ("loss",)


def sft_loss(logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative log-likelihood of each example.

    Args:
        logps: [B], log pi(y|x) summed over trained tokens (nats).

    Returns:
        losses [B] (nats; not divided by the length) and metrics.
    """
    return -logps, {"loss": -logps}
