"""The formulas of reward models, DRDO and e-DPO in float64, for numbers of pairs; `reference_rewards` feeds them.

`*_pairs` return [B] losses and metrics ([B] each). A pair counts as accurate when the chosen side is strictly greater.
"""

from __future__ import annotations

from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = -1e-12
"""What log1mexp takes a log-probability for that is nearer to 0."""


class _Log1mExp(torch.autograd.Function):
    """log(1 - exp(x)) in 60 digits; its slope is -1 / (exp(-x) - 1), and 0 where x is cut to ``LEAST``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with mpmath.workdps(60):
            values = [float(mpmath.log1p(-mpmath.exp(min(v, LEAST)))) for v in x.flatten().tolist()]
        return torch.tensor(values, dtype=torch.float64).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with mpmath.workdps(60):
            slopes = [0.0 if v > LEAST else float(-1 / mpmath.expm1(-mpmath.mpf(v))) for v in x.flatten().tolist()]
        return grads[0] * torch.tensor(slopes, dtype=torch.float64).reshape(x.shape)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, float64; x in (-1e-12, 0] counts as -1e-12."""
    assert x.dtype == torch.float64
    assert (x <= 0).all()
    return _Log1mExp.apply(x)


def reward_metrics(rewards: Tensor) -> dict[str, Tensor]:
    """``rewards`` [B, 2] (chosen, rejected)."""
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).double(),
    }


def reward_pairs(
    rewards: Tensor,
    logps: Tensor | None = None,
    lengths: Tensor | None = None,
    margins: Tensor | None = None,
    *,
    alpha_sft: float,
    center_rewards_coefficient: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2 - alpha_sft log pi(y_w|x) / T_w, [B].

    ``rewards`` [B, 2]; ``logps``, ``lengths`` [B] of the chosen responses; ``margins`` m, [B], default 0.
    """
    m = torch.zeros(len(rewards), dtype=torch.float64) if margins is None else margins
    z = rewards[:, 0] - rewards[:, 1] - m
    losses = torch.logaddexp(torch.zeros_like(z), -z) + center_rewards_coefficient * rewards.sum(1) ** 2
    sft = torch.zeros_like(z)
    if alpha_sft > 0:
        assert logps is not None
        assert lengths is not None
        sft = -logps / lengths
        losses = losses + alpha_sft * sft
    return losses, {"loss": losses, **reward_metrics(rewards), "sft/loss": sft}


def drdo_pairs(
    logps: Tensor,
    lengths: Tensor,
    rewards: Tensor | None,
    oracle: Tensor,
    *,
    alpha: float,
    gamma: float,
    beta: float,
    logprob: str,
    contrast: str,
    student_reward: str,
    detach_weight: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """((r*_w - r*_l) - (rhat_w - rhat_l))^2 - alpha (1 - p_w)^gamma * contrast, [B]; all arguments [B, 2].

    contrast: `ratio` is lw - log(1 - exp(ll)), `product` lw + log(1 - exp(ll)); lw and ll are log-probabilities, by
    `logprob` sums or per-token means; p_w = sigmoid(lw - ll). `student_reward`: `head` takes ``rewards``; `implicit`
    takes beta * log pi(y|x), sums always. ``detach_weight`` is the formula that the specification does not want.
    """
    assert student_reward in ("head", "implicit")
    student = {"head": rewards, "implicit": beta * logps}[student_reward]
    assert student is not None
    lw, ll = {"sum": logps, "mean": logps / lengths}[logprob].unbind(1)
    oracle_margins, margins = oracle[:, 0] - oracle[:, 1], student[:, 0] - student[:, 1]
    mse = (oracle_margins - margins) ** 2
    weight = torch.exp(gamma * F.logsigmoid(ll - lw))  # 1 - sigmoid(x) is sigmoid(-x)
    if detach_weight:
        weight = weight.detach()
    log_not_rejected = log1mexp(ll)
    focal = -weight * {"ratio": lw - log_not_rejected, "product": lw + log_not_rejected}[contrast]
    losses = mse + alpha * focal
    return losses, {
        "loss": losses,
        **reward_metrics(student),
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
        "logps/accuracies": (logps[:, 0] > logps[:, 1]).double(),
        "reward_distillation/mse": mse,
        "oracle/margins": oracle_margins,
        "oracle/accuracies": (oracle_margins > 0).double(),
        "focal/weight": weight,
        "focal/loss": focal,
    }


def edpo_pairs(
    logps: Tensor, reference_logps: Tensor, oracle_margins: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """(mean_k delta_k - beta [(log pi_w - log ref_w) - (log pi_l - log ref_l)])^2, [B].

    ``logps`` and ``reference_logps`` [B, 2]; ``oracle_margins`` delta, [K, B].
    """
    student = beta * (logps - reference_logps)
    delta = oracle_margins.mean(0)
    losses = (delta - (student[:, 0] - student[:, 1])) ** 2
    return losses, {
        "loss": losses,
        **reward_metrics(student),
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
        "reward_distillation/mse": losses,
        "oracle/margins": delta,
        "oracle/accuracies": (delta > 0).double(),
    }


def edpo_errors(logps: Tensor, reference_logps: Tensor, oracle_margins: Tensor, *, beta: float) -> Tensor:
    """[K]: the sum over pairs of the loss that each oracle would give alone."""
    return torch.stack([edpo_pairs(logps, reference_logps, d[None], beta=beta)[0].sum() for d in oracle_margins])
