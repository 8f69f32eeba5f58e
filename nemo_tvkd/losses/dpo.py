"""DPO (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7): the teacher's training and the baseline.

L = -log sigmoid( beta [ (log pi_w - log ref_w) - (log pi_l - log ref_l) ] )
"""

import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import rewards

METRICS = (*rewards.METRICS, "logps/chosen", "logps/rejected")


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_reference_logps: Tensor,
    rejected_reference_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_logps, rejected_logps: [B], log pi(y|x) summed over response tokens (nats).
        chosen_reference_logps, rejected_reference_logps: [B], the reference policy's; zeros give the reference-free
            loss.
        label_smoothing: probability that a label is flipped (conservative DPO), in [0, 0.5).

    Returns:
        losses [B] and metrics (each [B]; reward = beta (log pi - log ref)).
    """
    chosen_rewards = beta * (chosen_logps - chosen_reference_logps)
    rejected_rewards = beta * (rejected_logps - rejected_reference_logps)
    margins = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    metrics = rewards.reward_metrics(losses, chosen_rewards, rejected_rewards) | {
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return losses, metrics
