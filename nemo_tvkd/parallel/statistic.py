"""What is asked of a token's logits, and what one sweep over them must collect for it. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STATE_KINDS = ("soft_value", "max", "margin", "expectation")
"""Values of a state: potentials (Kwon et al. 2025, arXiv 2509.16965, Table 5)."""
ACTION_KINDS = ("logit", "logprob")
"""Values of an action, psi_t itself."""
VALUE_KINDS = STATE_KINDS + ACTION_KINDS
"""TVKD's choices of V."""
KINDS = (*VALUE_KINDS, "entropy", "sum_of_squares")
"""Everything that can be asked of a token's logits."""


@dataclass(frozen=True)
class Statistic:
    """A number per token that is asked of a model's logits z, with pi = softmax(z).

    `soft_value` is tau * logsumexp(z / tau) (TVKD, Lemma 1), `max` the largest probability, `margin` the difference of
    the two largest, `expectation` sum_a pi(a) z[a], `entropy` -sum_a pi(a) log pi(a), `sum_of_squares` sum_a pi(a)^2,
    `logit` z[label] and `logprob` log pi(label).

    Raises:
        ValueError: an unknown kind or a temperature that is not positive.
    """

    kind: str
    temperature: float = 1.0
    """tau; read by `soft_value` alone, 1.0 for every other kind."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is none of {', '.join(KINDS)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is not positive and finite")

    @property
    def name(self) -> str:
        """`max`, `soft_value@0.01`: unique and fit for a column name."""
        return f"{self.kind}@{self.temperature:g}" if self.kind == "soft_value" else self.kind


LOGPROB = Statistic("logprob")


@dataclass(frozen=True)
class Sweep:
    """What one pass over the logits collects: the rows of a partial result [P, T] fp32, in this order.

    peak: the largest logit; for each tau, sum exp((z - peak) / tau); if `weighted`, sum (z - peak) exp(z - peak); if
    `labels`, the label's logit (0 on ranks that do not hold it); if `second`, the second largest logit.
    """

    temperatures: tuple[float, ...] = ()
    weighted: bool = False
    labels: bool = False
    second: bool = False

    @classmethod
    def over(cls, statistics: Sequence[Statistic]) -> "Sweep":
        """The least that these statistics can be computed from."""
        kinds = {s.kind for s in statistics}
        taus = {s.temperature for s in statistics if s.kind == "soft_value"}
        if kinds - {"soft_value", "logit"}:
            taus.add(1.0)
        if "sum_of_squares" in kinds:
            taus.add(0.5)  # exp(2 z) = exp(z / 0.5)
        return cls(
            temperatures=tuple(sorted(taus)),
            weighted=bool(kinds & {"expectation", "entropy"}),
            labels=bool(kinds & set(ACTION_KINDS)),
            second="margin" in kinds,
        )

    @property
    def sums(self) -> int:
        """Rows that are added up over ranks."""
        return len(self.temperatures) + self.weighted + self.labels

    @property
    def rows(self) -> int:
        return 1 + self.sums + self.second

    def total(self, tau: float) -> int:
        """The row of sum exp((z - peak) / tau)."""
        return 1 + self.temperatures.index(tau)

    @property
    def weighted_row(self) -> int:
        return 1 + len(self.temperatures)

    @property
    def label_row(self) -> int:
        return self.sums
