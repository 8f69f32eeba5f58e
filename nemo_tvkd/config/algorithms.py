"""Configuration of the methods: one dataclass each, with the symbols of their papers."""

from dataclasses import dataclass

from nemo_tvkd.keys import key
from nemo_tvkd.parallel.statistic import VALUE_KINDS


@dataclass
class ShapingConfig:
    """TVKD's shaping term (gamma lives here only)."""

    value: str = key("soft_value", choices=VALUE_KINDS)
    """soft_value | max | margin | expectation (of the state), logit | logprob (of the action)."""
    form: str = key("potential_difference", choices=("potential_difference", "next_value"))
    """potential_difference (the paper) | next_value (the released code)."""
    terminal: str = key("bootstrap", choices=("bootstrap", "zero"))
    """V after the last response token: the teacher's (bootstrap) or 0 (zero)."""
    gamma: float = key(1.0, at_least=0)
    """Of psi_t = gamma V(s_{t+1}) - V(s_t). With 1 the sum telescopes, else it depends on length."""
    temperature: float | None = key(None, above=0)
    """tau of the soft value; algorithm.beta when null (Lemma 1)."""


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


@dataclass
class DpoConfig:
    """Rafailov et al. 2023, arXiv 2305.18290."""

    name: str = "dpo"
    beta: float = key(0.1, above=0)
    """Weight of the log-ratios to the reference: how dear it is to leave it."""
    label_smoothing: float = key(0.0, at_least=0, at_most=0.5)
    """Probability that a label is taken to be wrong (conservative DPO)."""


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


@dataclass
class DrdoConfig:
    """Nath et al. 2024, arXiv 2410.08458, Eq. 7."""

    name: str = "drdo"
    alpha: float = key(0.1, at_least=0)
    """Weight of the focal preference term."""
    gamma: float = key(2.0, at_least=0)
    """Exponent of the focal weight (1 - p_w)^gamma."""
    beta: float = key(0.1, above=0)
    """Of student_reward=implicit."""
    logprob: str = key("sum", choices=("sum", "mean"))
    """sum (the definition) | mean (per token): what the focal term calls log pi."""
    contrast: str = key("ratio", choices=("ratio", "product"))
    """ratio (log pi_w - log(1 - pi_l), as printed) | product (log pi_w + log(1 - pi_l))."""
    student_reward: str = key("head", choices=("head", "implicit"))
    """head | implicit (beta log pi)."""


@dataclass
class EdpoConfig:
    """Fisch et al. 2024, arXiv 2405.19316."""

    name: str = "edpo"
    beta: float = key(0.1, above=0)
    """Weight of the log-ratios to the reference."""
    ensemble: str = key("mean", choices=("mean", "min"))
    """mean (of the oracles' reward differences) | min (the oracle with the least loss over the global batch)."""


ALGORITHMS: dict[str, type] = {
    "tvkd": TvkdConfig,
    "dpo": DpoConfig,
    "sft": SftConfig,
    "reward": RewardConfig,
    "drdo": DrdoConfig,
    "edpo": EdpoConfig,
}
