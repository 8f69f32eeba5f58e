"""What a method reads: quantities, of which model, for which responses. Imports no torch.

A method's loss is a pure function of tensors. Its row in :mod:`nemo_tvkd.losses.methods` declares, for each of the
loss's arguments, a :class:`Read`. Three consumers answer it and know no method by name: the policy's readout
(:mod:`nemo_tvkd.models.readout`), the frozen models of the job (:mod:`nemo_tvkd.models.online`) and the score stores
(:mod:`nemo_tvkd.prepare.needs`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.parallel.statistic import Statistic

if TYPE_CHECKING:
    from torch import Tensor

POLICY, DATA = "policy", "data"
"""Models that are not frozen: the one in training, and none at all. Every other name is a frozen model's, and the
section of the configuration that says where it comes from."""
SIDES = ("both", "chosen", "rejected", "difference")


@dataclass(frozen=True)
class Quantity:
    """Numbers of responses. Subclasses name a kind; a consumer that answers it registers under the class."""

    head: ClassVar[str] = ""
    """The output of a model that it is read from: "lm" (the vocabulary's logits) or "reward"."""
    name: ClassVar[str] = ""
    """What a score store calls it (score.what); "" where none can hold it."""
    title: ClassVar[str] = ""
    """What a message calls it."""

    @property
    def statistic(self) -> Statistic | None:
        """The statistic per state that it is made of, where a store may hold several."""
        return None

    @property
    def states(self) -> str:
        """The states of a response that it needs (see `parallel.sequence.STATES`)."""
        return "actions"

    def reduce(self, numbers: Any) -> "Tensor":
        """[N] float64 from what a frozen model reported of N responses."""
        return numbers


@dataclass(frozen=True)
class LogProb(Quantity):
    """log pi(y|x), the sum over (trained) response tokens, nats."""

    head: ClassVar[str] = "lm"
    name: ClassVar[str] = "logprob"
    title: ClassVar[str] = "log-probability"


@dataclass(frozen=True)
class Reward(Quantity):
    """The reward head's output at the last response token, reward units."""

    head: ClassVar[str] = "reward"
    name: ClassVar[str] = "reward"
    title: ClassVar[str] = "reward"

    @property
    def states(self) -> str:
        return "last"


@dataclass(frozen=True)
class Psi(Quantity):
    """TVKD's shaping term of a response, nats."""

    rule: Shaping
    head: ClassVar[str] = "lm"
    name: ClassVar[str] = "value"
    title: ClassVar[str] = "last value"

    @property
    def statistic(self) -> Statistic:
        return self.rule.statistic

    @property
    def states(self) -> str:
        return self.rule.states

    def reduce(self, numbers: Any) -> "Tensor":
        """[N] from N tensors of values by state."""
        import torch

        return torch.stack([self.rule.total(values) for values in numbers])


@dataclass(frozen=True)
class Length(Quantity):
    """Response tokens (of an example, those that are trained)."""


@dataclass(frozen=True)
class Column(Quantity):
    """[B], a column of the data, which every row must have."""

    column: str
    key: str
    """The setting that asks for it, as in algorithm.use_margin=true."""


@dataclass(frozen=True)
class Read:
    """One argument of a loss.

    Attributes:
        what: the quantity.
        of: the model: "policy" (with gradient), "data", or a frozen one's name; of a quantity that relates frozen
            models to the policy, one name or several.
        side: "both" ([N], chosen first; of examples all), "chosen" or "rejected" ([B]), "difference" (chosen less
            rejected, [B]).
        every: of all K models of that name (oracle, oracle/1, ...), stacked: [K, N] or [K, B].
    """

    what: Quantity
    of: str | tuple[str, ...] = POLICY
    side: str = "both"
    every: bool = False

    def __post_init__(self) -> None:
        assert self.side in SIDES, self.side

    @property
    def models(self) -> tuple[str, ...]:
        """The names of `of`."""
        return (self.of,) if isinstance(self.of, str) else self.of

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those of frozen models."""
        return tuple(name for name in self.models if name not in (POLICY, DATA))


Reads = Mapping[str, Read]
"""By argument of the loss."""


def both(name: str, what: Quantity, of: str = POLICY) -> dict[str, Read]:
    """The arguments chosen_NAME and rejected_NAME."""
    return {f"{side}_{name}": Read(what, of, side) for side in ("chosen", "rejected")}


def source(model: str, what: Quantity) -> str:
    """The name of a frozen model's numbers in items and batches: teacher.value, oracle/1.reward."""
    return f"{model}.{what.name}"


def base(model: str) -> str:
    """The configuration section of a frozen model; a further oracle is oracle/1, and so on."""
    return model.partition("/")[0]


def select(values: "Tensor", side: str) -> "Tensor":
    """One side of [..., N] values, chosen first."""
    if side == "both":
        return values
    chosen, rejected = values.chunk(2, dim=-1)
    return {"chosen": chosen, "rejected": rejected}[side] if side != "difference" else chosen - rejected
