"""TVKD: preference distillation with the teacher's value (Kwon et al. 2025, arXiv 2509.16965).

    V(s)   = tau * logsumexp_a( z_phi(s)[a] / tau )                                       (Lemma 1)
    psi_t  = gamma * V(s_{t+1}) - V(s_t)
    Psi(y) = sum_t psi_t
    L      = -log sigmoid( beta (log pi(y_w) - log pi(y_l)) - alpha (Psi(y_w) - Psi(y_l)) )

With gamma = 1 Psi telescopes to V(s_{T+1}) - V(s_1), and V(s_1) is the same for both responses of a pair. The rule
that makes Psi is :class:`nemo_tvkd.losses.shaping.Shaping`.
"""

import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import dpo, rewards

METRICS = (*dpo.METRICS, "shaping/chosen", "shaping/rejected", "shaping/margins", "shaping/accuracies")


def tvkd_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_shaping: Tensor,
    rejected_shaping: Tensor,
    chosen_reference_logps: Tensor | None = None,
    rejected_reference_logps: Tensor | None = None,
    *,
    beta: float,
    alpha: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_logps, rejected_logps: [B], log pi(y|x) summed over response tokens (nats).
        chosen_shaping, rejected_shaping: [B], Psi (nats); constants.
        chosen_reference_logps, rejected_reference_logps: [B], an optional reference policy's log-probs; the paper has
            none, as the shaping takes its place.

    Returns:
        losses [B] and metrics (each [B]; rewards in reward units: beta log pi - alpha Psi).
    """
    chosen_rewards = beta * chosen_logps - alpha * chosen_shaping
    rejected_rewards = beta * rejected_logps - alpha * rejected_shaping
    if chosen_reference_logps is not None and rejected_reference_logps is not None:
        chosen_rewards = chosen_rewards - beta * chosen_reference_logps
        rejected_rewards = rejected_rewards - beta * rejected_reference_logps
    losses = -F.logsigmoid(chosen_rewards - rejected_rewards)
    metrics = rewards.reward_metrics(losses, chosen_rewards, rejected_rewards) | {
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        "shaping/chosen": chosen_shaping,
        "shaping/rejected": rejected_shaping,
        "shaping/margins": chosen_shaping - rejected_shaping,
        "shaping/accuracies": (chosen_shaping > rejected_shaping).to(losses.dtype),
    }
    return losses, metrics
