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
tokens of the responses are trained; count: pairs (or examples); teacher_values: N arrays; reference_logps [N];
oracle_rewards [K, N]; margins [B]; readings: the pairs' OtherReadings, by online model."""


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
    teacher_values: tuple[np.ndarray, np.ndarray] | None = None
    """float32 V(s_1..s_{T+1}) (or psi_1..psi_T) of the chosen and the rejected response, nats."""
    reference_logps: tuple[float, float] | None = None
    """log-probabilities of the two responses under the reference policy, nats."""
    oracle_rewards: tuple[tuple[float, float], ...] | None = None
    """rewards of the two responses, of each oracle, reward units."""
    readings: dict[str, OtherReading] = field(default_factory=dict)
    """Of online models that do not read the student's ids."""

    def flipped(self) -> "Item":
        """The pair with its label changed: what was said of a response stays with it."""
        rewards = self.oracle_rewards and tuple((rejected, chosen) for chosen, rejected in self.oracle_rewards)
        readings = {name: reading.flipped() for name, reading in self.readings.items()}
        scores = (_swap(self.teacher_values), _swap(self.reference_logps))
        return Item(flip(self.tokens), *scores, rewards, readings)

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
    if all(item.teacher_values is not None for item in items):
        sides = zip(*(item.teacher_values for item in items if item.teacher_values is not None), strict=True)
        batch["teacher_values"] = [torch.from_numpy(np.asarray(v, dtype=np.float32)) for side in sides for v in side]
    if all(item.reference_logps is not None for item in items):
        sides = zip(*(item.reference_logps for item in items if item.reference_logps is not None), strict=True)
        batch["reference_logps"] = torch.tensor([v for side in sides for v in side], dtype=torch.float64)
    if all(item.oracle_rewards is not None for item in items):
        batch["oracle_rewards"] = _by_oracle([item.oracle_rewards for item in items if item.oracle_rewards is not None])
    if all(getattr(item.tokens, "margin", None) is not None for item in items):
        batch["margins"] = torch.tensor([item.tokens.margin for item in items], dtype=torch.float64)
    if names := set(items[0].readings):
        batch["readings"] = {name: [item.readings[name] for item in items] for name in names}
    return batch


def _loss_mask(tokens: "Tokenized") -> np.ndarray:
    """[T], of an example."""
    assert tokens.rejected_ids is None, f"{tokens.source}: pairs have no turns to choose from"
    return np.ones(len(tokens.chosen_ids), dtype=bool) if tokens.chosen_mask is None else tokens.chosen_mask


def _by_oracle(rewards: list[tuple[tuple[float, float], ...]]) -> Tensor:
    """[K, N] float64, chosen first, from each pair's rewards by each of K oracles."""
    return torch.cat(torch.tensor(rewards, dtype=torch.float64).permute(1, 2, 0).unbind(1), dim=1)


def _row(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; host lists stay."""
    moved: Batch = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
        elif name == "teacher_values":
            value = [v.to(device, non_blocking=True) for v in value]
        moved[name] = value
    return moved


def next_batch(iterator: Iterator[Any]) -> Batch:
    """The next micro-batch of a loader; Lightning wraps it as (batch, batch index, loader index)."""
    batch = next(iterator)
    return batch[0] if isinstance(batch, tuple) else batch


def micro_batches(items: Sequence[Item], size: int, multiple: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """This data-parallel rank's share of `items`, in order, `size` at a time; the last batch may be smaller."""
    mine = items[rank::ranks]
    for start in range(0, len(mine), size):
        yield collate(mine[start : start + size], multiple)
