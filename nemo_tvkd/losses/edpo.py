"""e-DPO: reward differences distilled into DPO's implicit reward (Fisch et al. 2024, arXiv 2405.19316).

    L = ( (r*_w - r*_l) - beta [ (log pi_w - log ref_w) - (log pi_l - log ref_l) ] )^2

Of several oracles, either the averaged difference enters (`ensemble=mean`), or the pessimistic form is taken (`min`):
the one oracle whose mean loss over the global batch is the smallest. That this is the paper's exact form is unverified.
"""

from torch import Tensor

from nemo_tvkd.losses import dpo

METRICS = (*dpo.METRICS, "reward_distillation/mse", "oracle/margins", "oracle/accuracies")


def edpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_reference_logps: Tensor,
    rejected_reference_logps: Tensor,
    oracle_margins: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair and its metrics.

    Args:
        chosen_logps, rejected_logps: [B], log pi(y|x) summed over response tokens (nats).
        chosen_reference_logps, rejected_reference_logps: [B], the reference policy's.
        oracle_margins: [K, B], r*_w - r*_l of each oracle that enters (reward units); constants, averaged.
        beta: reward units per nat.

    Returns:
        losses [B] and metrics (each [B]; reward = beta (log pi - log ref)).
    """
    both = (chosen_logps, rejected_logps, chosen_reference_logps, rejected_reference_logps)
    _, metrics = dpo.dpo_loss(*both, beta=beta)
    oracle = oracle_margins.mean(0)
    losses = (oracle - metrics["rewards/margins"]).square()
    metrics |= {
        "loss": losses,
        "reward_distillation/mse": losses,
        "oracle/margins": oracle,
        "oracle/accuracies": (oracle > 0).to(losses.dtype),
    }
    return losses, metrics


def oracle_errors(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_reference_logps: Tensor,
    rejected_reference_logps: Tensor,
    oracle_margins: Tensor,
    *,
    beta: float,
) -> Tensor:
    """[K] each oracle's own loss, summed over these pairs; arguments as :func:`edpo_loss`."""
    margins = (chosen_logps - chosen_reference_logps) - (rejected_logps - rejected_reference_logps)
    return (oracle_margins - beta * margins).square().sum(1)
