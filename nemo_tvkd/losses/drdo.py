"""DRDO: reward distillation with a focal preference loss (Nath et al. 2024, arXiv 2410.08458, Eq. 7).

    L   = ( (r*_w - r*_l) - (rhat_w - rhat_l) )^2 - alpha (1 - p_w)^gamma log( pi(y_w) / (1 - pi(y_l)) )
    p_w = sigmoid( log pi(y_w) - log pi(y_l) )

r* are the oracle's rewards and rhat the student's. p_w is part of the gradient, as printed. No reference model.

With log pi summed over tokens, 1 - pi(y_l) is 1 to machine precision, and the ratio is log pi(y_w). Of the second term,
then: where p_w is near neither 0 nor 1, the gradient of the focal weight, scaled by |log pi(y_w)|, dominates and pushes
the two log-probs apart; near p_w = 0 only alpha times the chosen response's likelihood is left; near p_w = 1 nothing.
With means, `contrast=ratio` rewards a likely rejected response; `product` does not.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import dpo, rewards

LARGEST = -1e-12
"""Log-probabilities above it count as it: a response cannot be certain, and log(1 - 1) would be no number."""
METRICS = (
    *dpo.METRICS,
    "logps/accuracies",
    "reward_distillation/mse",
    "oracle/margins",
    "oracle/accuracies",
    "focal/weight",
    "focal/loss",
)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x <= 0 (nats), in x's dtype; value and gradient are finite for all of them.

    Near 0 by expm1, elsewhere by log1p (Maechler 2012), in fp32 at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(max=LARGEST)
    middle = -math.log(2)  # each branch is kept away from where it is not finite: 0 * inf is no gradient
    near = torch.log(-torch.expm1(wide.clamp(min=middle)))
    far = torch.log1p(-torch.exp(wide.clamp(max=middle)))
    return torch.where(wide > middle, near, far).to(x.dtype)


def drdo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    chosen_oracle: Tensor,
    rejected_oracle: Tensor,
    chosen_rewards: Tensor | None = None,
    rejected_rewards: Tensor | None = None,
    *,
    alpha: float,
    gamma: float,
    beta: float,
    logprob: str,
    contrast: str,
    student_reward: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_logps, rejected_logps: [B], log pi(y|x) summed over response tokens (nats).
        chosen_lengths, rejected_lengths: [B], response tokens.
        chosen_oracle, rejected_oracle: [B], r* (reward units); constants.
        chosen_rewards, rejected_rewards: [B], rhat of the student's head (reward units); None with
            student_reward="implicit", where rhat = beta log pi(y|x).
        alpha, gamma: weight and exponent of the focal term.
        beta: reward units per nat, of the implicit reward.
        logprob: what the focal term calls log pi: the `sum` over tokens (the definition), or its `mean`.
        contrast: `ratio`, log pi_w - log(1 - pi_l) (as printed), or `product`, log pi_w + log(1 - pi_l).

    Returns:
        losses [B] and metrics (each [B]; rewards are the student's; focal/loss without its weight alpha).
    """
    if student_reward == "implicit":
        chosen_rewards, rejected_rewards = beta * chosen_logps, beta * rejected_logps
    assert chosen_rewards is not None
    assert rejected_rewards is not None
    margins, oracle = chosen_rewards - rejected_rewards, chosen_oracle - rejected_oracle
    distillation = (oracle - margins).square()
    mean = logprob == "mean"
    log_w = chosen_logps / chosen_lengths if mean else chosen_logps
    log_l = rejected_logps / rejected_lengths if mean else rejected_logps
    weight = torch.exp(gamma * F.logsigmoid(log_l - log_w))  # (1 - p_w)^gamma
    excluded = log1mexp(log_l)
    focal = -weight * (log_w - excluded if contrast == "ratio" else log_w + excluded)
    losses = distillation + alpha * focal
    metrics = rewards.reward_metrics(losses, chosen_rewards, rejected_rewards) | {
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        "logps/accuracies": (chosen_logps > rejected_logps).to(losses.dtype),
        "reward_distillation/mse": distillation,
        "oracle/margins": oracle,
        "oracle/accuracies": (oracle > 0).to(losses.dtype),
        "focal/weight": weight,
        "focal/loss": focal,
    }
    return losses, metrics
