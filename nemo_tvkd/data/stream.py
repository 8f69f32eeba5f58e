"""The order of training: which item is the n-th of a run, epoch after epoch, as a function of n and the seed alone.

So a run that is resumed after any step sees what the uninterrupted one would have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from nemo_tvkd.data.batch import Item
from nemo_tvkd.errors import UserError


@dataclass
class EpochStream(Dataset):
    """`length` items drawn epoch by epoch, each epoch in its own order, a function of (seed, epoch) alone."""

    items: Sequence[Item]
    length: int
    seed: int
    shuffle: bool = True
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        epoch, position = divmod(index, len(self.items))
        return self.items[self._order(epoch)[position]]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            count = len(self.items)
            order = np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)
            self._orders = {epoch: order}
        return self._orders[epoch]


@dataclass(frozen=True)
class Mixture:
    """Sources with weights: an epoch has as many rows as all of them together, drawn from each in its share."""

    rows: tuple[int, ...]
    """Of each source; their items lie one source after the other."""
    draws: tuple[int, ...]
    """How many rows of an epoch come from each source."""

    @classmethod
    def of(cls, paths: Sequence[str], weights: Sequence[float], rows: Sequence[int], key: str) -> "Mixture":
        """The shares of an epoch, to whole rows by their largest remainders.

        Raises:
            UserError: a weight so small that its source would give no row.
        """
        total, largest = sum(rows), max(weights)  # a sum of huge weights may be infinite
        scaled = [weight / largest for weight in weights]
        exact = [total * weight / math.fsum(scaled) for weight in scaled]
        draws = [math.floor(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: (draws[i] - exact[i], i))
        for i in by_remainder[: total - sum(draws)]:
            draws[i] += 1
        for path, weight, drawn in zip(paths, weights, draws, strict=True):
            if not drawn:
                raise UserError(
                    f"{key}: {path}:{weight:g}: its share of an epoch of {total} rows is less than one row: "
                    "raise its weight, or leave it out"
                )
        return cls(tuple(rows), tuple(draws))

    def describe(self, paths: Sequence[str], key: str) -> str:
        """What each source contributes, in a line."""
        total = sum(self.draws)
        parts = [
            f"{drawn} ({100 * drawn / total:.4g} %) from {path}, which has {rows}"
            for path, rows, drawn in zip(paths, self.rows, self.draws, strict=True)
        ]
        return f"{key}: of the {total} rows of an epoch {', '.join(parts)}"


@dataclass
class WeightedStream(Dataset):
    """`length` items of several sources, epoch by epoch, in the shares of a mixture.

    Which source is where in an epoch is a function of (seed, epoch). Each source goes through all of its rows before
    any of them comes again, whatever the epoch: its order is a permutation of (seed, source, pass). Without `shuffle`
    each source keeps its own order, and the sources take turns as evenly as their shares allow.
    """

    items: Sequence[Item]
    length: int
    seed: int
    mixture: Mixture
    shuffle: bool = True
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)
    _passes: dict[int, dict[int, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        assert sum(self.mixture.rows) == len(self.items), "a mixture of other items"
        self._starts = np.cumsum([0, *self.mixture.rows]).tolist()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        epoch, position = divmod(index, len(self.items))
        sources, turns = self._order(epoch)
        source = int(sources[position])
        drawn = epoch * self.mixture.draws[source] + int(turns[position])
        which, row = divmod(drawn, self.mixture.rows[source])
        return self.items[self._starts[source] + int(self._pass(source, which)[row])]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each position of an epoch: the source [N], and how many of the epoch's draws it had before [N]."""
        if epoch not in self._epochs:
            draws = self.mixture.draws
            sources = np.repeat(np.arange(len(draws), dtype=np.int32), draws)
            turns = np.concatenate([np.arange(count) for count in draws])
            if self.shuffle:
                sources = sources[np.random.default_rng([self.seed, epoch]).permutation(len(sources))]
            else:  # each source's k-th row of n lies in the middle of the k-th n-th of the epoch
                middle = (turns + 0.5) / np.repeat(draws, draws)
                sources = sources[np.argsort(middle, kind="stable")]
            order = np.empty_like(turns)
            order[np.argsort(sources, kind="stable")] = turns
            self._epochs = {epoch: (sources, order)}
        return self._epochs[epoch]

    def _pass(self, source: int, number: int) -> np.ndarray:
        """The order [rows] in which a source's rows are drawn in one pass through them."""
        known = self._passes.setdefault(source, {})
        number = number if self.shuffle else 0
        if number not in known:
            count = self.mixture.rows[source]
            while len(known) > 1:  # a micro-batch may lie across the end of a pass
                del known[min(known)]
            # NumPy pads a short seed with zeros: the 1 tells it from an epoch's
            rng = np.random.default_rng([self.seed, source, number, 1])
            known[number] = rng.permutation(count) if self.shuffle else np.arange(count)
        return known[number]


Stream = EpochStream | WeightedStream


def open_stream(items: Sequence[Item], length: int, seed: int, shuffle: bool, mixture: Mixture | None = None) -> Stream:
    """The order of a run's items, in the shares of a mixture where there is one."""
    if mixture is None:
        return EpochStream(items, length, seed, shuffle)
    return WeightedStream(items, length, seed, mixture, shuffle)
