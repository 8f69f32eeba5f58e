"""What scores are bound to: the model and how it was asked, the tokenizer and template, the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

WHAT = ("value", "logprob", "reward")


@dataclass(frozen=True)
class Identity:
    """What the scores are bound to; kept in the plan and the manifest.

    `what` is put into the order of WHAT, so that the order in which it was asked for makes no difference;
    an unknown entry raises ValueError.
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
    value_kind: str
    """soft_value | max | margin | expectation (T+1 numbers per response) | logit | logprob (T); "" without value"""
    temperature: float
    """of soft_value, else 1.0"""
    max_length: int
    max_prompt_length: int
    data: str
    """data_fingerprint of all pair_ids in order"""
    precision: str = "fp32"
    """of the scoring model's parameters: fp32 | bf16"""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.what) - set(WHAT)):
            raise ValueError(f"unknown scores {unknown}: known are {', '.join(WHAT)}")
        object.__setattr__(self, "what", tuple(name for name in WHAT if name in self.what))
        object.__setattr__(self, "temperature", float(self.temperature))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Identity:
        """The identity in a plan or manifest; KeyError where a field is missing, ValueError for unknown scores."""
        return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def compared(self) -> dict[str, Any]:
        """The fields that must agree: all but the model's path."""
        return {name: value for name, value in asdict(self).items() if name != "model"}


def data_fingerprint(pair_ids: Sequence[str]) -> str:
    """sha256 (hex) over all pair_ids in order."""
    digest = hashlib.sha256()
    for pair_id in pair_ids:
        digest.update(f"{pair_id}\n".encode())
    return digest.hexdigest()
