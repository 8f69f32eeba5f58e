"""The mathematics, and the table of methods. Losses are pure functions of tensors and import torch alone.

A method is one row of :data:`METHODS`: how its loss is called, what it needs and what it reports.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nemo_tvkd.losses import dpo, sft, tvkd

TEACHER_VALUE = "teacher"
REFERENCE_LOGPS = "reference"


@dataclass
class LossInputs:
    """What a method may read: [N] sums over response tokens, N = 2B (chosen first) for pairs, B for examples."""

    logps: Tensor
    shaping: Tensor | None = None
    reference_logps: Tensor | None = None

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """The chosen and rejected parts of a [2B] tensor."""
        chosen, rejected = getattr(self, name).chunk(2)
        return chosen, rejected


Loss = Callable[[LossInputs, Any], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Method:
    """One algorithm.

    Attributes:
        loss: (inputs, the algorithm's configuration) -> ([B] losses, metrics of [B]).
        metrics: names that the loss reports, in a fixed order (every rank knows it).
        pairs: whether it trains on preference pairs (else on examples).
        per_token: whether the loss is divided by the number of response tokens (else by the number of pairs).
        needs: what frozen models must provide, from the algorithm's configuration.
        spread: metrics whose standard deviation over pairs is reported too.
    """

    loss: Loss
    metrics: tuple[str, ...]
    pairs: bool = True
    per_token: bool = False
    needs: Callable[[Any], frozenset[str]] = field(default=lambda config: frozenset())
    spread: tuple[str, ...] = ()


def _tvkd(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    reference = (None, None) if inputs.reference_logps is None else inputs.halves("reference_logps")
    return tvkd.tvkd_loss(
        *inputs.halves("logps"),
        *inputs.halves("shaping"),
        beta=config.beta,
        alpha=config.alpha,
        chosen_reference_logps=reference[0],
        rejected_reference_logps=reference[1],
    )


def _dpo(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return dpo.dpo_loss(
        *inputs.halves("logps"),
        *inputs.halves("reference_logps"),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
    )


METHODS: dict[str, Method] = {
    "tvkd": Method(
        loss=_tvkd,
        metrics=tvkd.METRICS,
        needs=lambda c: frozenset({TEACHER_VALUE, REFERENCE_LOGPS} if c.use_reference else {TEACHER_VALUE}),
        spread=("shaping/margins",),
    ),
    "dpo": Method(loss=_dpo, metrics=dpo.METRICS, needs=lambda c: frozenset({REFERENCE_LOGPS})),
    "sft": Method(loss=lambda inputs, c: sft.sft_loss(inputs.logps), metrics=sft.METRICS, pairs=False, per_token=True),
}
