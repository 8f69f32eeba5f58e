"""The mathematics, and the table of methods. Losses are pure functions of tensors and import torch alone.

A method is one row of :data:`METHODS`: how its loss is called, what it needs and what it reports.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nemo_tvkd.losses import dpo, drdo, edpo, reward, sft, tvkd

TEACHER_VALUE = "teacher"
REFERENCE_LOGPS = "reference"
ORACLE_REWARDS = "oracle"


@dataclass
class LossInputs:
    """What a method may read: [N] numbers of responses, N = 2B (chosen first) for pairs, B for examples."""

    lengths: Tensor
    """Response tokens (of examples, those that are trained)."""
    logps: Tensor | None = None
    """Sums over these tokens (nats); [B] where the method reads the chosen responses' alone."""
    rewards: Tensor | None = None
    """Of the policy's reward head (reward units)."""
    shaping: Tensor | None = None
    """Psi (nats)."""
    reference_logps: Tensor | None = None
    """As `logps`, of the reference policy."""
    oracle_rewards: Tensor | None = None
    """[K, N], of K oracles (reward units)."""
    margins: Tensor | None = None
    """[B], of the data (reward units)."""

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """The chosen and rejected parts of a [2B] tensor."""
        chosen, rejected = getattr(self, name).chunk(2)
        return chosen, rejected

    @property
    def oracle_margins(self) -> Tensor:
        """[K, B] r*_w - r*_l of each oracle."""
        assert self.oracle_rewards is not None
        chosen, rejected = self.oracle_rewards.chunk(2, dim=1)
        return chosen - rejected


Loss = Callable[[LossInputs, Any], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Method:
    """One algorithm.

    Attributes:
        loss: (inputs, the algorithm's configuration) -> ([B] losses, metrics of [B]).
        metrics: names that the loss reports, in a fixed order (every rank knows it).
        pairs: whether it trains on preference pairs (else on examples).
        per_token: whether the loss is divided by the number of trained tokens (else by the number of pairs).
        needs: what frozen models must provide, from the algorithm's configuration.
        spread: metrics whose standard deviation over pairs is reported too.
        correlations: names of correlations over pairs, each of two metrics (both in `spread`).
        logps: which responses' log-probabilities it reads: "all", "chosen" or "" (none).
        reward_head: whether the policy has one.
        reward_model: whether what it trains is a reward model, and exported as one.
        errors: for a loss that takes the one oracle with the least loss over the global batch: (inputs, config) -> [K]
            summed losses, or None where there is nothing to choose.
    """

    loss: Loss
    metrics: tuple[str, ...]
    pairs: bool = True
    per_token: bool = False
    needs: Callable[[Any], frozenset[str]] = field(default=lambda config: frozenset())
    spread: tuple[str, ...] = ()
    correlations: dict[str, tuple[str, str]] = field(default_factory=dict)
    logps: Callable[[Any], str] = field(default=lambda config: "all")
    reward_head: Callable[[Any], bool] = field(default=lambda config: False)
    reward_model: bool = False
    errors: Callable[[LossInputs, Any], Tensor] | None = None


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


def _reward(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return reward.reward_loss(
        *inputs.halves("rewards"),
        inputs.logps,
        inputs.halves("lengths")[0],
        inputs.margins,
        alpha_sft=config.alpha_sft,
        center_rewards_coefficient=config.center_rewards_coefficient,
    )


def _drdo(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    assert inputs.oracle_rewards is not None
    return drdo.drdo_loss(
        *inputs.halves("logps"),
        *inputs.halves("lengths"),
        *((None, None) if inputs.rewards is None else inputs.halves("rewards")),
        *inputs.oracle_rewards[0].chunk(2),
        alpha=config.alpha,
        gamma=config.gamma,
        beta=config.beta,
        logprob=config.logprob,
        contrast=config.contrast,
        student_reward=config.student_reward,
    )


def _edpo(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    both = (*inputs.halves("logps"), *inputs.halves("reference_logps"))
    return edpo.edpo_loss(*both, inputs.oracle_margins, beta=config.beta)


def _edpo_errors(inputs: LossInputs, config: Any) -> Tensor:
    both = (*inputs.halves("logps"), *inputs.halves("reference_logps"))
    return edpo.oracle_errors(*both, inputs.oracle_margins, beta=config.beta)


def _sft(inputs: LossInputs, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    assert inputs.logps is not None
    return sft.sft_loss(inputs.logps)


DISTILLED = ("rewards/margins", "oracle/margins")
CORRELATION = {"reward_distillation/correlation": ("oracle/margins", "rewards/margins")}

METHODS: dict[str, Method] = {
    "tvkd": Method(
        loss=_tvkd,
        metrics=tvkd.METRICS,
        needs=lambda c: frozenset({TEACHER_VALUE, REFERENCE_LOGPS} if c.use_reference else {TEACHER_VALUE}),
        spread=("shaping/margins",),
    ),
    "dpo": Method(loss=_dpo, metrics=dpo.METRICS, needs=lambda c: frozenset({REFERENCE_LOGPS})),
    "sft": Method(loss=_sft, metrics=sft.METRICS, pairs=False, per_token=True),
    "reward": Method(
        loss=_reward,
        metrics=reward.METRICS,
        spread=("rewards/chosen", "rewards/rejected", "rewards/margins"),
        logps=lambda c: "chosen" if c.alpha_sft else "",
        reward_head=lambda c: True,
        reward_model=True,
    ),
    "drdo": Method(
        loss=_drdo,
        metrics=drdo.METRICS,
        needs=lambda c: frozenset({ORACLE_REWARDS}),
        reward_head=lambda c: c.student_reward == "head",
        spread=DISTILLED,
        correlations=CORRELATION,
    ),
    "edpo": Method(
        loss=_edpo,
        metrics=edpo.METRICS,
        needs=lambda c: frozenset({ORACLE_REWARDS, REFERENCE_LOGPS}),
        errors=_edpo_errors,
        spread=DISTILLED,
        correlations=CORRELATION,
    ),
}
