"""The oracle: a reward model with a language-modelling regulariser (DRDO, Nath et al. 2024, arXiv 2410.08458, Eq. 6).

    L = -log sigmoid( r(x, y_w) - r(x, y_l) - m ) - alpha_sft * log pi(y_w|x) / T_w + c (r(x, y_w) + r(x, y_l))^2

m is a margin per pair (Touvron et al. 2023, arXiv 2307.09288), 0 in the paper; c centres rewards, which the loss leaves
free up to a constant (Eisenstein et al. 2023, arXiv 2312.09244), 0 in the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import rewards

METRICS = (*rewards.METRICS, "sft/loss")


def reward_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_logps: Tensor | None = None,
    chosen_lengths: Tensor | None = None,
    margins: Tensor | None = None,
    *,
    alpha_sft: float,
    center_rewards_coefficient: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_rewards, rejected_rewards: [B], the head's output at the last response token (reward units).
        chosen_logps: [B], log pi(y_w|x) summed over response tokens (nats); read when alpha_sft > 0.
        chosen_lengths: [B], T_w.
        margins: [B], how much better a chosen response must be (reward units); None: 0.
        alpha_sft: weight of the regulariser.
        center_rewards_coefficient: weight c of the squared sum of a pair's rewards.

    Returns:
        losses [B] and metrics (each [B]); sft/loss in nats per token, without its weight.
    """
    difference = chosen_rewards - rejected_rewards
    losses = -F.logsigmoid(difference if margins is None else difference - margins)
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * (chosen_rewards + rejected_rewards).square()
    likelihood = torch.zeros_like(losses)
    if alpha_sft:
        assert chosen_logps is not None
        assert chosen_lengths is not None
        likelihood = -chosen_logps / chosen_lengths
        losses = losses + alpha_sft * likelihood
    metrics = rewards.reward_metrics(losses, chosen_rewards, rejected_rewards) | {"sft/loss": likelihood}
    return losses, metrics
