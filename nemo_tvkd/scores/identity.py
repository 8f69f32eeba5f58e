"""What scores are bound to (the model and how it was asked, tokenizer, template, data), and the JSON that says so."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_tvkd.config.commands import STORAGE
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic

FORMAT = 2
WHAT = ("value", "logprob", "reward")


@dataclass(frozen=True)
class Identity:
    """What the scores are bound to; kept in the plan and the manifest.

    `what` is put into the order of WHAT and `values` are sorted, so that the order in which they were asked for makes
    no difference; without "value" in `what` there are none, and `value_storage` is "all".

    Raises:
        ValueError: an unknown entry, "value" without values, two values of one name, the ends of an action's value.
    """

    model: str
    """path as given; informational, never compared"""
    weights: str
    """hash of the scoring model's weights"""
    tokenizer: str
    """fingerprint"""
    chat_template: str
    """fingerprint"""
    what: tuple[str, ...]
    """of value, logprob, reward"""
    values: tuple[Statistic, ...]
    """which values of each state, or action; in JSON a list of {"kind", "temperature"}"""
    max_length: int
    max_prompt_length: int
    data: str
    """data_fingerprint of all pair_ids in order"""
    precision: str = "fp32"
    """of the scoring model's parameters: fp32 | bf16"""
    value_storage: str = "all"
    """all: V at s_1..s_{T+1}, or psi_1..psi_T of the actions | ends: V(s_1) and V(s_{T+1})"""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.what) - set(WHAT)):
            raise ValueError(f"unknown scores {unknown}: known are {', '.join(WHAT)}")
        if self.value_storage not in STORAGE:
            raise ValueError(f"value_storage {self.value_storage!r} is none of {', '.join(STORAGE)}")
        object.__setattr__(self, "what", tuple(name for name in WHAT if name in self.what))
        asked = self.values if "value" in self.what else ()
        values = {Statistic(value.kind, float(value.temperature)) for value in asked}
        object.__setattr__(self, "values", tuple(sorted(values, key=lambda value: (value.kind, value.temperature))))
        if not values:
            object.__setattr__(self, "value_storage", "all")
        self._check_values()

    def _check_values(self) -> None:
        if bool(self.values) != ("value" in self.what):
            raise ValueError("value is to be stored, but none is named")
        if len({value.name for value in self.values}) < len(self.values):
            raise ValueError(f"two of the values have one name: {show(asdict(self)['values'])}")
        if self.value_storage == "ends" and any(value.kind in ACTION_KINDS for value in self.values):
            raise ValueError(f"{' and '.join(ACTION_KINDS)} are values of actions, of which the ends say nothing")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Identity:
        """The identity in a plan or manifest; KeyError, TypeError or ValueError where one says what none can say."""
        values = tuple(Statistic(entry["kind"], float(entry["temperature"])) for entry in stored["values"])
        return cls(**{**{field.name: stored[field.name] for field in fields(cls)}, "values": values})

    @property
    def value_stems(self) -> dict[str, Statistic]:
        """Each value by its stem: `value` where there is one, `value/NAME` where there are several."""
        if len(self.values) == 1:
            return {"value": self.values[0]}
        return {f"value/{value.name}": value for value in self.values}

    @property
    def stems(self) -> list[str]:
        """The names of the scores, that is of the columns without their side, in order."""
        return [*self.value_stems, *(name for name in self.what if name != "value")]

    def compared(self) -> dict[str, Any]:
        """The fields that must agree: all but the model's path."""
        return {name: value for name, value in asdict(self).items() if name != "model"}


def same(stored: Any, expected: Any) -> bool:
    """Whether two entries of an identity agree: floats up to a relative 1e-9."""
    if isinstance(stored, float):
        return math.isclose(stored, float(expected), rel_tol=1e-9)
    return stored == expected


def show(value: Any) -> str:
    """An entry of an identity, in a message."""
    return json.dumps(value)


def describe(value: Statistic) -> str:
    """A value, in a message: its temperature in full, where `Statistic.name` rounds it."""
    return f"soft_value at temperature {value.temperature}" if value.kind == "soft_value" else value.kind


def dump_json(content: Mapping[str, Any]) -> bytes:
    """A plan or manifest: the same bytes for the same content."""
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def read_json(path: Path, key: str, remedy: str) -> dict[str, Any]:
    """A plan or manifest of this format; else UserError, which names `key`, the file and the remedy."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is not readable JSON: {remedy}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(f"{key}: {path} has format {version}, this version reads format {FORMAT}: {remedy}")
    return content


def data_fingerprint(pair_ids: Sequence[str]) -> str:
    """sha256 (hex) over all pair_ids in order."""
    digest = hashlib.sha256()
    for pair_id in pair_ids:
        digest.update(f"{pair_id}\n".encode())
    return digest.hexdigest()
