"""Sequences whose elements are made when they are asked for, so that data may be larger than memory.

They pickle as what they are made of. Columns are NumPy arrays over all elements, for what is asked of every one.
"""

import bisect
import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from operator import index as as_int
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Lazy(Sequence[T]):
    """What the sequences here share; a slice of one is lazy, too."""

    @abstractmethod
    def _one(self, index: int) -> T:
        """The element, 0 <= index < len(self)."""

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """[N] of a column of `token_table.SCHEMA`, one entry an element; [N, 16] uint8 of pair_id."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Selected[T]": ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Selected(self, range(*index.indices(len(self))))
        place = as_int(index)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"{as_int(index)} of {len(self)}")
        return self._one(place)


class Selected(Lazy[T]):
    """Some elements of another sequence, in the order of `indices` (a range or an array of int64)."""

    def __init__(self, base: Lazy[T], indices: range | np.ndarray) -> None:
        self.base, self.indices = base, indices

    def __len__(self) -> int:
        return len(self.indices)

    def _one(self, index: int) -> T:
        return self.base[int(self.indices[index])]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # slices of slices stay flat
            return Selected(self.base, self.indices[index])
        return super().__getitem__(index)

    def column(self, name: str) -> np.ndarray:
        return self.base.column(name)[np.asarray(self.indices, dtype=np.int64)]


class Chained(Lazy[T]):
    """One sequence after the other."""

    def __init__(self, parts: Sequence[Lazy[T]]) -> None:
        self.parts = list(parts)
        self._ends = list(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def _one(self, index: int) -> T:
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - self._ends[part] + len(self.parts[part])]

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([part.column(name) for part in self.parts])


class Mapped(Lazy[T]):
    """`function` of the elements of one or more sequences of one length; its columns are the first one's.

    Args:
        function: something that pickles.
    """

    def __init__(self, function: Callable[..., T], *parts: Any) -> None:
        assert len({len(part) for part in parts}) == 1, "sequences of several lengths"
        self.function, self.parts = function, parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def _one(self, index: int) -> T:
        return self.function(*(part[index] for part in self.parts))

    def column(self, name: str) -> np.ndarray:
        return self.parts[0].column(name)


class Hexadecimal(Sequence[str]):
    """Numbers of 16 bytes ([N, 16] uint8) as texts of 32 hex digits."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        rows = self.numbers[index]
        return Hexadecimal(rows) if isinstance(index, slice) else rows.tobytes().hex()
