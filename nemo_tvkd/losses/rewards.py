"""The metrics that every method on pairs reports of its rewards, by TRL's names."""

from torch import Tensor

METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def reward_metrics(losses: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """METRICS, each [B], of losses [B] and the rewards [B] of both responses (reward units); a tie is not accurate."""
    margins = chosen - rejected
    accurate = (margins > 0).to(losses.dtype)
    return dict(zip(METRICS, (losses, chosen, rejected, margins, accurate), strict=True))
