"""TVKD: preference distillation with the teacher's value (Kwon et al. 2025, arXiv 2509.16965).

    V(s)   = tau * logsumexp_a( z_phi(s)[a] / tau )                                       (Lemma 1)
    psi_t  = gamma * V(s_{t+1}) - V(s_t)
    Psi(y) = sum_t psi_t
    L      = -log sigmoid( beta (log pi(y_w) - log pi(y_l)) - alpha (Psi(y_w) - Psi(y_l)) )

With gamma = 1 Psi telescopes to V(s_{T+1}) - V(s_1), and V(s_1) is the same for both responses of a pair.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tvkd.losses import dpo, rewards

METRICS = (*dpo.METRICS, "shaping/chosen", "shaping/rejected", "shaping/margins", "shaping/accuracies")


def token_shaping(values: Tensor, *, form: str, terminal: str, gamma: float) -> Tensor:
    """psi_1 .. psi_T of one response from its state potentials.

    Args:
        values: [T + 1], V at s_1 .. s_{T+1} (nats).
        form: `potential_difference` (the paper) or `next_value` (psi_t = gamma V(s_{t+1}), the released code's).
        terminal: V(s_{T+1}) is the teacher's (`bootstrap`) or 0 (`zero`, Ng et al. 1999).

    Returns:
        [T] float64 (nats).
    """
    values = values.double()
    following = values[1:]
    if terminal == "zero":
        following = torch.cat([following[:-1], following.new_zeros(1)])
    if form == "next_value":
        return gamma * following
    return gamma * following - values[:-1]


def potential_shaping(values: Tensor, *, form: str, terminal: str, gamma: float) -> Tensor:
    """Psi(y), the sum of :func:`token_shaping` in float64: a scalar (nats)."""
    return token_shaping(values, form=form, terminal=terminal, gamma=gamma).sum()


def ends_suffice(*, kind: str, form: str, gamma: float) -> bool:
    """Whether Psi needs V(s_1) and V(s_{T+1}) alone: the sum telescopes, and `potential_shaping` of the two is it."""
    return kind not in ("logit", "logprob") and form == "potential_difference" and gamma == 1


def teacher_vanishes(*, kind: str, form: str, terminal: str, gamma: float, alpha: float) -> str | None:
    """Why the teacher does not enter the loss under these settings, or None.

    With gamma = 1 and V(s_{T+1}) = 0, Psi = -V(s_1) for both responses of a pair, and the pair's difference is 0.
    """
    if alpha == 0:
        return "algorithm.alpha=0"
    if kind in ("logit", "logprob"):
        return None
    if gamma == 0 and form == "next_value":
        return "algorithm.shaping.gamma=0 with form=next_value"
    if form == "potential_difference" and terminal == "zero" and gamma == 1:
        return "algorithm.shaping.terminal=zero with gamma=1 (the sum telescopes to -V(s_1), equal for both responses)"
    return None


def tvkd_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_shaping: Tensor,
    rejected_shaping: Tensor,
    *,
    beta: float,
    alpha: float,
    chosen_reference_logps: Tensor | None = None,
    rejected_reference_logps: Tensor | None = None,
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
