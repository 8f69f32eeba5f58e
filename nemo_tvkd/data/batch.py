"""Packed micro-batches: sequences laid end to end in one row, so that no padding is computed.

A micro-batch of B pairs is N = 2B sequences (B chosen, then B rejected); of B examples, N = B. The row has T tokens;
where the layout needs a multiple (sequence parallelism), one more, meaningless sequence fills it up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nemo_tvkd.data.noise import flip

if TYPE_CHECKING:
    from nemo_tvkd.data.tokenized import Tokenized

Batch = dict[str, Any]
"""tokens, position_ids [1, T] and labels [T] int64; cu_seqlens [N + 1] int32; lengths (with filler), prompt_lengths,
response_lengths: host lists of N ints; loss_masks (where an example has one): a host list of N bool arrays [T], which
tokens of the responses are trained; count: pairs (or examples); numbers: of frozen models, by name (teacher.value): [N]
float64, or a list of N float32 tensors by state; columns: [B] float64 of the data, by name; readings: the pairs'
OtherReadings, by online model."""


@dataclass
class OtherReading:
    """A pair as a frozen model with another tokenizer or chat template reads it."""

    tokens: "Tokenized"
    states: tuple[np.ndarray, np.ndarray] | None = None
    """int64 [T + 1] for the chosen and the rejected response: for each of the student's states the index of the
    teacher's; None: the model's numbers are used as they are."""

    def flipped(self) -> "OtherReading":
        return OtherReading(flip(self.tokens), _swap(self.states))

    def at_students_states(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """The teacher's values (arrays or tensors, chosen and rejected) at the student's states."""
        chosen, rejected = values
        if self.states is None:
            return chosen, rejected
        return chosen[self.states[0]], rejected[self.states[1]]


@dataclass
class Item:
    """One pair (or example) and what frozen models said about it (None where a score is not needed or not cached)."""

    tokens: "Tokenized"
    numbers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """By name (see `losses.reads.source`: teacher.value, oracle/1.reward), of the chosen and the rejected response: a
    number each (nats or reward units), or float32 arrays of V(s_1..s_{T+1}) or psi_1..psi_T (nats)."""
    readings: dict[str, OtherReading] = field(default_factory=dict)
    """Of online models that do not read the student's ids."""

    def flipped(self) -> "Item":
        """The pair with its label changed: what was said of a response stays with it."""
        numbers = {name: (rejected, chosen) for name, (chosen, rejected) in self.numbers.items()}
        return Item(flip(self.tokens), numbers, {name: reading.flipped() for name, reading in self.readings.items()})

    def sequences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(prompt, response) of the chosen and, for pairs, the rejected response."""
        both = [self.tokens.chosen_ids, self.tokens.rejected_ids]
        return [(self.tokens.prompt_ids, response) for response in both if response is not None]


def trained_lengths(batch: Batch) -> list[int]:
    """Of each response, how many tokens are trained: all of them, unless its turns are not all the assistant's."""
    masks = batch.get("loss_masks")
    return batch["response_lengths"] if masks is None else [int(mask.sum()) for mask in masks]


def _swap(both: Any) -> Any:
    return both and (both[1], both[0])


def collate(items: Sequence[Item], multiple: int = 1) -> Batch:
    """Pack items into one row whose length is a multiple of `multiple`."""
    per_item = [item.sequences() for item in items]
    sequences = [s for side in zip(*per_item, strict=True) for s in side]
    lengths = [len(p) + len(r) for p, r in sequences]
    tokens = [np.concatenate(s) for s in sequences]
    labels = [np.concatenate([t[1:], [0]]) for t in tokens]
    positions = [np.arange(n) for n in lengths]
    if filler := -sum(lengths) % multiple:
        lengths.append(filler)
        for rows in (tokens, labels, positions):
            rows.append(np.zeros(filler, dtype=np.int64))
    batch: Batch = {
        "tokens": _row(tokens)[None],
        "position_ids": _row(positions)[None],
        "labels": _row(labels),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "lengths": lengths,
        "prompt_lengths": [len(p) for p, _ in sequences],
        "response_lengths": [len(r) for _, r in sequences],
        "count": len(items),
    }
    if any(getattr(item.tokens, "chosen_mask", None) is not None for item in items):
        batch["loss_masks"] = [_loss_mask(item.tokens) for item in items]
    batch["numbers"] = {name: _by_response([item.numbers[name] for item in items]) for name in _shared_numbers(items)}
    if all(getattr(item.tokens, "margin", None) is not None for item in items):
        margins = torch.tensor([item.tokens.margin for item in items], dtype=torch.float64)
        batch["columns"] = {"margin": margins}
    if names := set(items[0].readings):
        batch["readings"] = {name: [item.readings[name] for item in items] for name in names}
    return batch


def _loss_mask(tokens: "Tokenized") -> np.ndarray:
    """[T], of an example."""
    assert tokens.rejected_ids is None, f"{tokens.source}: pairs have no turns to choose from"
    return np.ones(len(tokens.chosen_ids), dtype=bool) if tokens.chosen_mask is None else tokens.chosen_mask


def _shared_numbers(items: Sequence[Item]) -> list[str]:
    """Names of the numbers that all items have, in their order: those of some rows are of no use."""
    return [name for name in items[0].numbers if all(name in item.numbers for item in items)]


def _by_response(pairs: Sequence[tuple[Any, Any]]) -> Tensor | list[Tensor]:
    """[N] float64 of N numbers, chosen first; of arrays a list of N float32 tensors."""
    flat = [number for side in zip(*pairs, strict=True) for number in side]
    if np.ndim(flat[0]):
        return [torch.from_numpy(np.asarray(values, dtype=np.float32)) for values in flat]
    return torch.tensor(flat, dtype=torch.float64)


def _row(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; host lists stay."""
    moved: Batch = {}
    for name, value in batch.items():
        if name in ("numbers", "columns"):
            value = {key: _moved(numbers, device) for key, numbers in value.items()}
        moved[name] = _moved(value, device) if isinstance(value, Tensor) else value
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [part.to(device, non_blocking=True) for part in value]


def next_batch(iterator: Iterator[Any]) -> Batch:
    """The next micro-batch of a loader; Lightning wraps it as (batch, batch index, loader index)."""
    batch = next(iterator)
    return batch[0] if isinstance(batch, tuple) else batch


def micro_batches(items: Sequence[Item], size: int, multiple: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """This data-parallel rank's share of `items`, in order, `size` at a time; the last batch may be smaller."""
    mine = items[rank::ranks]
    for start in range(0, len(mine), size):
        yield collate(mine[start : start + size], multiple)
