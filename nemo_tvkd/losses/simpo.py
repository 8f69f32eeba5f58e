"""SimPO: reference-free preference optimisation with a margin (Meng, Xia, Chen 2024, arXiv 2405.14734).

    m = log pi(y_w) / T_w - log pi(y_l) / T_l
    d = beta ( m - rho )
    L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d) - w_sft log pi(y_w) / T_w

rho is `gamma_beta_ratio`: the paper's margin gamma is beta * rho, as in the authors' code (princeton-nlp/SimPO). T
counts response tokens, the end token included.
"""

import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import dpo, rewards

METRICS = (*dpo.METRICS, "logps/mean_chosen", "logps/mean_rejected", "simpo/margin_met", "sft/loss")


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_logps, rejected_logps: [B], log pi(y|x) summed over response tokens (nats).
        chosen_lengths, rejected_lengths: [B], response tokens.
        beta: reward units per nat and token.
        gamma_beta_ratio: the target margin rho of the means (nats per token).
        loss_type: `sigmoid` (above), or `hinge`: max(0, 1 - d), to which label smoothing does not apply.
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        sft_weight: weight w_sft of the chosen response's mean negative log-likelihood.

    Returns:
        losses [B] and metrics (each [B]; reward = beta log pi / T, without the margin; sft/loss in nats per token,
        without its weight; simpo/margin_met is 1 where m > rho).
    """
    mean_chosen, mean_rejected = chosen_logps / chosen_lengths, rejected_logps / rejected_lengths
    margins = mean_chosen - mean_rejected
    d = beta * (margins - gamma_beta_ratio)
    if loss_type == "hinge":
        losses = F.relu(1 - d)
    else:
        losses = -(1 - label_smoothing) * F.logsigmoid(d) - label_smoothing * F.logsigmoid(-d)
    losses = losses - sft_weight * mean_chosen
    metrics = rewards.reward_metrics(losses, beta * mean_chosen, beta * mean_rejected) | {
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        "logps/mean_chosen": mean_chosen,
        "logps/mean_rejected": mean_rejected,
        "simpo/margin_met": (margins > gamma_beta_ratio).to(losses.dtype),
        "sft/loss": -mean_chosen,
    }
    return losses, metrics
