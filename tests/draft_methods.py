"""Two rows of methods to come (ADPA, token-level KL): the declarations hold what their engine will be asked for.

Gao et al. 2025, arXiv 2502.17927 (ADPA: two frozen teachers); Hinton et al. 2015 (KL of a teacher to the student, by
token). `Divergence` and `Advantage` relate frozen models to the policy at each state; only their sums over a response
reach the loss. mypy checks this file with the package.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from nemo_tvkd.losses.method import Method
from nemo_tvkd.losses.reads import DATA, Length, LogProb, Quantity, Read, Reads


@dataclass(frozen=True)
class Divergence(Quantity):
    """sum_t D(frozen || policy) over a response's states, nats."""

    kind: str = "forward_kl"
    head: ClassVar[str] = "lm"


@dataclass(frozen=True)
class Advantage(Quantity):
    """sum_t sum_a pi(a) (log p(a) - log p0(a)) over the `top` likeliest tokens a of p, nats."""

    top: int = 50
    head: ClassVar[str] = "lm"


@dataclass
class KdConfig:
    name: str = "kd"
    weight: float = 0.1
    sft_weight: float = 0.0


def kd_loss(
    chosen_divergence: Tensor,
    chosen_lengths: Tensor,
    chosen_logps: Tensor | None = None,
    *,
    weight: float,
    sft_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    losses = weight * chosen_divergence / chosen_lengths
    if chosen_logps is not None:
        losses = losses - sft_weight * chosen_logps / chosen_lengths
    return losses, {"loss": losses, "kd/forward_kl": chosen_divergence / chosen_lengths}


def kd_reads(config: Any) -> Reads:
    reads = {
        "chosen_divergence": Read(Divergence(), ("policy", "teacher"), "chosen"),
        "chosen_lengths": Read(Length(), DATA, "chosen"),
    }
    return reads | ({"chosen_logps": Read(LogProb(), side="chosen")} if config.sft_weight else {})


@dataclass
class AdpaConfig:
    name: str = "adpa"
    advantage_weight: float = 1.6
    top: int = 50


def adpa_loss(
    chosen_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_advantage: Tensor,
    rejected_lengths: Tensor,
    *,
    advantage_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    advantage = rejected_advantage / rejected_lengths
    losses = -chosen_logps / chosen_lengths - advantage_weight * advantage
    return losses, {"loss": losses, "adpa/advantage": advantage}


def adpa_reads(config: Any) -> Reads:
    teachers = ("policy", "teacher", "teacher_reference")
    return {
        "chosen_logps": Read(LogProb(), side="chosen"),
        "chosen_lengths": Read(Length(), DATA, "chosen"),
        "rejected_advantage": Read(Advantage(top=config.top), teachers, "rejected"),
        "rejected_lengths": Read(Length(), DATA, "rejected"),
    }


METRICS = ("loss",)
DRAFTS = {
    "kd": Method("token-level distillation", f"{__name__}:kd_loss", KdConfig, kd_reads),
    "adpa": Method("advantage of two teachers", f"{__name__}:adpa_loss", AdpaConfig, adpa_reads),
}
