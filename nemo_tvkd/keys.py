"""Keys of a configuration: a dataclass field holds its default and, as metadata, the values that it takes."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tvkd.errors import UserError


@dataclass(frozen=True)
class Values:
    """The values that a key takes beyond what its type says.

    Attributes:
        choices: the words that it takes; (): any.
        above, at_least, at_most: bounds of a number; NaN and infinity never pass a bound.
        suggested: words that completion offers; others will do.
        one_or_more: it takes a value or a list of values, each of which is checked; an empty list is refused.
    """

    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    one_or_more: bool = False
    suggested: tuple[str, ...] = ()

    def in_words(self) -> str:
        """The choices or the bounds; empty where every value of the key's type will do."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.above is not None:
            return f"more than {self.above:g}"
        if self.at_least is None:
            return ""
        return f"{self.at_least:g} or more" if self.at_most is None else f"from {self.at_least:g} to {self.at_most:g}"

    def check(self, key: str, value: Any) -> None:
        """Whether the value of `key`, null aside, is one of these.

        Raises:
            UserError: names the key, the value and what would be right.
        """
        if isinstance(value, Sequence) and not isinstance(value, str):
            if self.one_or_more and not value:
                raise UserError(f"{key}=[] is empty: give one value, or a list of some")
            for each in value:
                self._check_one(key, each)
        elif value is not None or self.one_or_more:
            self._check_one(key, value)

    def _check_one(self, key: str, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise UserError(f"{key}={value} is none of {', '.join(self.choices)}")
        low, high = self.above if self.above is not None else self.at_least, self.at_most
        if low is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key}={value} is not a number")
        if high is not None and not low <= value <= high:
            raise UserError(f"{key}={value} must lie between {low:g} and {high:g}")
        if not (low < value if self.above is not None else low <= value) or not value < math.inf:
            raise UserError(f"{key}={value} must be {self._sign(low)}")

    def _sign(self, low: float) -> str:
        if low != 0:
            return f"{self.in_words()} and finite"
        return "positive" if self.above is not None else "0 or positive"


def key(default: Any, **values: Any) -> Any:
    """A dataclass field with its default, copied where it can change, and the values it takes.

    Args:
        default: a value, or the dataclass of a section.
        values: the arguments of `Values`.
    """
    metadata = {Values: Values(**values)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def values_of(field: "dataclasses.Field[Any]") -> Values:
    """The values that the key of a dataclass field takes."""
    return field.metadata.get(Values, Values())


def leaves(kind: Any, prefix: str = "") -> "Iterator[tuple[str, dataclasses.Field[Any]]]":
    """Dotted name and field of every key of a dataclass and of the sections in it."""
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{name}.")
        else:
            yield name, field
