"""TVKD's shaping rule, the one definition of it: which value of the teacher, and how values become Psi.

    V(s)   = tau * logsumexp_a( z_phi(s)[a] / tau )        (Kwon et al. 2025, arXiv 2509.16965, Lemma 1)
    psi_t  = gamma * V(s_{t+1}) - V(s_t)
    Psi(y) = sum_t psi_t

Training, evaluate, inspect, bench and score stores all use it. Importing this module imports no torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("potential_difference", "next_value")
"""psi_t = gamma V(s_{t+1}) - V(s_t) (the paper), or gamma V(s_{t+1}) (the authors' released code)."""
TERMINALS = ("bootstrap", "zero")
"""V(s_{T+1}) is the teacher's, or 0 (Ng et al. 1999)."""


@dataclass(frozen=True)
class Shaping:
    """One shaping rule.

    Attributes:
        statistic: V or, of an action kind, psi itself; with its temperature tau.
        form, terminal, gamma: see FORMS, TERMINALS and psi_t above.
    """

    statistic: Statistic
    form: str = "potential_difference"
    terminal: str = "bootstrap"
    gamma: float = 1.0

    @classmethod
    def of(cls, section: Any, beta: float) -> "Shaping":
        """The rule of a configuration section with `value`, `form`, `terminal`, `gamma` and `temperature`; tau is the
        temperature, or `beta` where that is null (Lemma 1)."""
        tau = float(section.temperature or beta) if section.value == "soft_value" else 1.0
        return cls(Statistic(section.value, tau), section.form, section.terminal, float(section.gamma))

    @property
    def of_actions(self) -> bool:
        """Whether the statistic is psi itself, so that form, terminal and gamma do not apply."""
        return self.statistic.kind in ACTION_KINDS

    @property
    def telescopes(self) -> bool:
        """Whether V(s_1) and V(s_{T+1}) alone give Psi: the values between them cancel."""
        return not self.of_actions and self.form == "potential_difference" and self.gamma == 1

    @property
    def states(self) -> str:
        """The states at which the statistic is needed (see `parallel.sequence.STATES`)."""
        return "actions" if self.of_actions else "ends" if self.telescopes else "all"

    @property
    def unit(self) -> str:
        return "probability" if self.statistic.kind in ("max", "margin") else "nats"

    def vanishes(self, alpha: float = 1.0, prefix: str = "") -> str | None:
        """Why the teacher does not enter the loss of a pair, in terms of keys below `prefix`; None where it does.

        With gamma = 1 and V(s_{T+1}) = 0, Psi = -V(s_1) for both responses of a pair, and their difference is 0.
        """
        if alpha == 0:
            return f"{prefix}alpha=0"
        if self.of_actions:
            return None
        if self.gamma == 0 and self.form == "next_value":
            return f"{prefix}shaping.gamma=0 with form=next_value"
        if self.telescopes and self.terminal == "zero":
            return (
                f"{prefix}shaping.terminal=zero with gamma=1 (the sum telescopes to -V(s_1), equal for both responses)"
            )
        return None

    def margin(self, chosen: float, rejected: float) -> float:
        """Psi_w - Psi_l; exactly 0 where it can only differ by rounding."""
        return 0.0 if self.vanishes() else chosen - rejected

    def per_token(self, values: "Tensor") -> "Tensor":
        """psi_1 .. psi_T of one response, float64 [T] (nats).

        Args:
            values: [T + 1], V at s_1 .. s_{T+1}; of an action kind [T], which is psi.
        """
        values = values.double()
        if self.of_actions:
            return values
        following = values[1:].clone()
        if self.terminal == "zero":
            following[-1] = 0
        return self.gamma * following - (0 if self.form == "next_value" else values[:-1])

    def total(self, values: "Tensor") -> "Tensor":
        """Psi(y), the sum of :meth:`per_token`: a float64 scalar; of what telescopes, the two end values suffice."""
        return self.per_token(values).sum()
