"""The table of methods and their settings, with the symbols of their papers. Imports no torch.

A new method is a loss file, a settings dataclass and a row here, a YAML file in conf/algorithm and a test file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.keys import key
from nemo_tvkd.losses.method import Method
from nemo_tvkd.losses.reads import DATA, Column, Length, LogProb, Psi, Read, Reads, Reward, both
from nemo_tvkd.losses.shaping import FORMS, TERMINALS, Shaping
from nemo_tvkd.parallel.statistic import VALUE_KINDS

DEFAULT_PATHS: Mapping[str, str] = {"reference": "student.path"}
"""Frozen models that need not be named: the key whose model they are otherwise."""


@dataclass
class ShapingConfig:
    """TVKD's shaping term (gamma lives here only)."""

    value: str = key("soft_value", choices=VALUE_KINDS)
    """The teacher's value: soft_value | max | margin | expectation (of the state), logit | logprob (of the action)."""
    form: str = key("potential_difference", choices=FORMS)
    """Shaping term of a token: potential_difference (the paper) | next_value (the released code)."""
    terminal: str = key("bootstrap", choices=TERMINALS)
    """Value after the last response token: the teacher's (bootstrap) or 0 (zero)."""
    gamma: float = key(1.0, at_least=0)
    """Discount in psi_t = gamma V(s_{t+1}) - V(s_t). With 1 the sum telescopes, else it depends on length."""
    temperature: float | None = key(None, above=0)
    """Temperature tau of the soft value; beta when null (Lemma 1)."""


@dataclass
class TvkdConfig:
    """Kwon et al. 2025, arXiv 2509.16965."""

    name: str = "tvkd"
    beta: float = key(0.01, above=0)
    """Weight of the student's log-probabilities, and tau of the soft value (Lemma 1)."""
    alpha: float = key(0.7, at_least=0)
    """Weight of the teacher's shaping; 0 takes the teacher away."""
    use_reference: bool = False
    """Add DPO's reference term; the paper has none."""
    shaping: ShapingConfig = key(ShapingConfig)


def _tvkd_reads(config: Any) -> Reads:
    psi = both("shaping", Psi(Shaping.of(config.shaping, config.beta)), "teacher")
    reference = both("reference_logps", LogProb(), "reference") if config.use_reference else {}
    return both("logps", LogProb()) | psi | reference


def _tvkd_check(config: Any) -> list[str]:
    reason = Shaping.of(config.shaping, config.beta).vanishes(config.alpha, "algorithm.")
    return [f"the teacher does not enter the loss: {reason}. The loss is reference-free DPO."] if reason else []


@dataclass
class DpoConfig:
    """Rafailov et al. 2023, arXiv 2305.18290."""

    name: str = "dpo"
    beta: float = key(0.1, above=0)
    """Strength of the KL constraint: larger values keep the policy closer to the reference."""
    label_smoothing: float = key(0.0, at_least=0, at_most=0.5)
    """Probability that a label is taken to be wrong (conservative DPO)."""


def _against_reference(config: Any) -> Reads:
    return both("logps", LogProb()) | both("reference_logps", LogProb(), "reference")


@dataclass
class SimpoConfig:
    """Meng, Xia, Chen 2024, arXiv 2405.14734."""

    name: str = "simpo"
    beta: float = key(2.0, above=0)
    """Scale of the difference of mean log-probabilities, reward units per nat and token."""
    gamma_beta_ratio: float = key(0.5, at_least=0)
    """Target margin of the means in nats per token: the paper's gamma divided by beta."""
    loss_type: str = key("sigmoid", choices=("sigmoid", "hinge"))
    """Function of the margin d: sigmoid (the paper) | hinge (max(0, 1 - d))."""
    label_smoothing: float = key(0.0, at_least=0, at_most=0.5)
    """Probability that a label is taken to be wrong; with loss_type=sigmoid."""
    sft_weight: float = key(0.0, at_least=0)
    """Weight of the chosen response's mean negative log-likelihood; the paper has none."""


def _simpo_check(config: Any) -> list[str]:
    if config.loss_type == "hinge" and config.label_smoothing:
        raise UserError(
            f"algorithm.label_smoothing={config.label_smoothing} applies to algorithm.loss_type=sigmoid alone: "
            "leave it at 0 with loss_type=hinge"
        )
    return []


@dataclass
class SftConfig:
    """Supervised fine-tuning on responses."""

    name: str = "sft"


@dataclass
class RewardConfig:
    """The oracle of DRDO: Nath et al. 2024, arXiv 2410.08458, Eq. 6."""

    name: str = "reward"
    alpha_sft: float = key(0.01, at_least=0)
    """Weight of the language-modelling term on the chosen response; 0: a model without an output layer."""
    center_rewards_coefficient: float = key(0.0, at_least=0)
    """Weight of (r_w + r_l)^2, which keeps rewards near 0 (arXiv 2312.09244)."""
    use_margin: bool = False
    """Subtract the data's column `margin` from the reward difference (arXiv 2307.09288)."""


def _reward_reads(config: Any) -> Reads:
    reads = both("rewards", Reward())
    if config.alpha_sft:
        reads["chosen_logps"] = Read(LogProb(), side="chosen")
        reads["chosen_lengths"] = Read(Length(), DATA, "chosen")
    if config.use_margin:
        reads["margins"] = Read(Column("margin", "algorithm.use_margin=true"), DATA)
    return reads


@dataclass
class DrdoConfig:
    """Nath et al. 2024, arXiv 2410.08458, Eq. 7."""

    name: str = "drdo"
    alpha: float = key(0.1, at_least=0)
    """Weight of the focal preference term."""
    gamma: float = key(2.0, at_least=0)
    """Exponent of the focal weight (1 - p_w)^gamma."""
    beta: float = key(0.1, above=0)
    """Reward units per nat, with student_reward=implicit."""
    logprob: str = key("sum", choices=("sum", "mean"))
    """What the focal term takes for log pi: sum (the definition) | mean (per token)."""
    contrast: str = key("ratio", choices=("ratio", "product"))
    """Contrast of the focal term: ratio (log pi_w - log(1 - pi_l), as printed) | product (log pi_w + log(1 - pi_l))."""
    student_reward: str = key("head", choices=("head", "implicit"))
    """Where the student's reward comes from: head (a linear reward head) | implicit (beta log pi)."""


def _drdo_reads(config: Any) -> Reads:
    reads = both("logps", LogProb()) | both("lengths", Length(), DATA) | both("oracle", Reward(), "oracle")
    return reads | (both("rewards", Reward()) if config.student_reward == "head" else {})


def _drdo_check(config: Any) -> list[str]:
    if config.logprob == "mean" and config.contrast == "ratio" and config.alpha:
        return [
            "algorithm.logprob=mean with algorithm.contrast=ratio rewards a likely rejected response: "
            "-log(1 - pi_l) grows with pi_l; algorithm.contrast=product does not"
        ]
    return []


@dataclass
class EdpoConfig:
    """Fisch et al. 2024, arXiv 2405.19316."""

    name: str = "edpo"
    beta: float = key(0.1, above=0)
    """Strength of the KL constraint: larger values keep the policy closer to the reference."""
    ensemble: str = key("mean", choices=("mean", "min"))
    """Use of several oracles: mean (of their reward differences) | min (the one with the least loss over the global
    batch)."""


def _edpo_reads(config: Any) -> Reads:
    margins = Read(Reward(), "oracle", side="difference", every=True)
    return {**_against_reference(config), "oracle_margins": margins}


DISTILLED = ("rewards/margins", "oracle/margins")
CORRELATION = {"reward_distillation/correlation": ("oracle/margins", "rewards/margins")}

METHODS: dict[str, Method] = {
    "tvkd": Method(
        summary="preference distillation with a teacher's soft value (Kwon et al. 2025)",
        loss="tvkd.tvkd_loss",
        config=TvkdConfig,
        reads=_tvkd_reads,
        spread=("shaping/margins",),
        check=_tvkd_check,
    ),
    "dpo": Method(
        summary="direct preference optimisation (Rafailov et al. 2023)",
        loss="dpo.dpo_loss",
        config=DpoConfig,
        reads=_against_reference,
    ),
    "simpo": Method(
        summary="reference-free preference optimisation with a margin (Meng et al. 2024)",
        loss="simpo.simpo_loss",
        config=SimpoConfig,
        reads=lambda config: both("logps", LogProb()) | both("lengths", Length(), DATA),
        check=_simpo_check,
    ),
    "sft": Method(
        summary="supervised fine-tuning on responses",
        loss="sft.sft_loss",
        config=SftConfig,
        reads=lambda config: {"logps": Read(LogProb())},
        rows="examples",
        per_token=True,
    ),
    "reward": Method(
        summary="a reward model: DRDO's oracle (Nath et al. 2024, Eq. 6)",
        loss="reward.reward_loss",
        config=RewardConfig,
        reads=_reward_reads,
        spread=("rewards/chosen", "rewards/rejected", "rewards/margins"),
        reward_model=True,
    ),
    "drdo": Method(
        summary="reward distillation with a focal preference loss (Nath et al. 2024, Eq. 7)",
        loss="drdo.drdo_loss",
        config=DrdoConfig,
        reads=_drdo_reads,
        spread=DISTILLED,
        correlations=CORRELATION,
        check=_drdo_check,
    ),
    "edpo": Method(
        summary="reward differences distilled into DPO's implicit reward (Fisch et al. 2024)",
        loss="edpo.edpo_loss",
        config=EdpoConfig,
        reads=_edpo_reads,
        spread=DISTILLED,
        correlations=CORRELATION,
        choice=lambda config: "edpo.oracle_errors" if config.ensemble == "min" else "",
    ),
}
