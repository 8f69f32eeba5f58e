"""The numbers of the page: what is computed from values, log-probabilities and rewards by token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nemo_tvkd.commands.inspect.text import Pieces
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.losses.shaping import Shaping

PERCENTILE = 98
"""Of |x| over all tokens of the page: where a quantity's colours end, so that a few outliers do not take them all."""


def psi(rule: Shaping, values: np.ndarray) -> np.ndarray:
    """psi_1 .. psi_T float64 [T] from the teacher's values ([T + 1] by state, [T] by action)."""
    return rule.per_token(torch.from_numpy(values)).numpy()


@dataclass
class Response:
    """One response's numbers by token (float64 sums of float32 numbers)."""

    ids: np.ndarray
    pieces: Pieces
    psi: np.ndarray
    """[T], in the rule's unit."""
    logp: np.ndarray
    """[T], log pi(y_t | s_t), nats."""
    value: np.ndarray | None = None
    """[T + 1], V(s_1) .. V(s_{T+1}); None for a kind of actions."""
    ref: np.ndarray | None = None
    """[T], the reference's log-probabilities, nats."""
    reward: np.ndarray | None = None
    """[T + 1], the reward head's reading at s_1 .. s_{T+1}, reward units."""
    top_ids: np.ndarray | None = None
    top_p: np.ndarray | None = None
    label: float | None = None
    """The data's reward."""

    @property
    def shaping(self) -> float:
        """Psi(y)."""
        return float(self.psi.sum())

    @property
    def ends(self) -> float:
        """V(s_{T+1}) - V(s_1)."""
        assert self.value is not None
        return float(self.value[-1]) - float(self.value[0])


@dataclass
class Pair:
    """One pair of the page."""

    number: int
    """Of all pairs that were read, from 1."""
    row: Tokenized
    name: str | None
    """The data's id."""
    turns: list[Turn]
    chosen: Response
    rejected: Response
    rule: Shaping

    @property
    def sides(self) -> tuple[Response, Response]:
        return self.chosen, self.rejected

    @property
    def margin(self) -> float:
        """Psi_w - Psi_l."""
        return self.rule.margin(self.chosen.shaping, self.rejected.shaping)

    @property
    def agrees(self) -> str:
        """Whether the teacher's shaping prefers the response that the label prefers: agrees | disagrees | tie."""
        return verdict(self.margin)


@dataclass(frozen=True)
class Quantity:
    """Something that tokens are coloured by."""

    key: str
    """psi | value | logp | diff | reward | implicit."""
    name: str
    long: str
    unit: str
    limit: float
    """Where the colours end, on both sides of 0."""


@dataclass
class Figures:
    """All of the page."""

    pairs: list[Pair]
    rule: Shaping
    beta: float
    facts: list[tuple[str, str]]
    """What was read and how, by name."""
    notes: list[str]
    margins: list[tuple[float, int]]
    """(shaping margin, T_w - T_l) of every pair that was measured, shown or not."""
    words: dict[int, str] = field(default_factory=dict)

    @property
    def quantities(self) -> list[Quantity]:
        """Those that were computed, in the order of the page's switch."""
        unit, first = self.rule.unit, self.pairs[0].chosen
        named = [("psi", "shaping ψ", "shaping ψₜ of the token", unit)]
        if first.value is not None:
            named.append(("value", "value V", "value V(sₜ₊₁) behind the token, less V(s₁)", unit))
        named.append(("logp", "log π", "log-probability log π(yₜ | sₜ)", "nats"))
        if first.ref is not None:
            named.append(("diff", "log π − log ref", "log-probability less the reference's", "nats"))
        if first.reward is not None:
            named.append(("reward", "running reward", "reward if the response ended behind the token", "reward units"))
        elif first.ref is not None:
            named.append(("implicit", "implicit reward", "reward β (log π − log ref) of the token", "reward units"))
        return [Quantity(*each, limit=self._limit(each[0])) for each in named]

    def _limit(self, key: str) -> float:
        every = np.concatenate([series(side, key, self.beta) for pair in self.pairs for side in pair.sides])
        every = np.abs(every[np.isfinite(every)])
        return float(np.percentile(every, PERCENTILE)) if every.any() else 1.0

    @property
    def telescoped(self) -> float | None:
        """The largest |Psi - (V(s_{T+1}) - V(s_1))| of the page's responses; None without values of states."""
        if self.rule.of_actions:
            return None
        return max(abs(side.shaping - side.ends) for pair in self.pairs for side in pair.sides)


def series(side: Response, key: str, beta: float) -> np.ndarray:
    """A quantity by token, float64 [T]; the page's script computes the same."""
    if key == "value":
        assert side.value is not None
        return side.value[1:].astype(np.float64) - side.value[0]
    if key == "reward":
        assert side.reward is not None
        return side.reward[1:].astype(np.float64)
    if key in ("diff", "implicit"):
        assert side.ref is not None
        return (side.logp.astype(np.float64) - side.ref) * (beta if key == "implicit" else 1.0)
    return np.asarray(side.psi if key == "psi" else side.logp, dtype=np.float64)


def verdict(margin: float) -> str:
    """Of a shaping margin: agrees | disagrees | tie."""
    return "agrees" if margin > 0 else "disagrees" if margin < 0 else "tie"


def ranked(margins: Sequence[float], order: str) -> list[int]:
    """Pairs (from 0) in the order asked for: `margin` or `disagreement`; what is no number comes last."""
    keys = [-abs(m) if order == "margin" else m for m in margins]
    return sorted(range(len(keys)), key=lambda i: (math.isnan(keys[i]), keys[i]))
