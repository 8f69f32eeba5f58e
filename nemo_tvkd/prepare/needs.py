"""What a job reads pairs with: the tokenizers, the frozen models that run online, and the score stores.

A teacher or an oracle may have another tokenizer and chat template than the student. It then reads the pairs its own
way. Rewards are numbers of responses, but a teacher's values live at its own states: sums that telescope need their
ends alone; others take, at each of the student's states, the value of the teacher's state that has read as many
characters (:mod:`nemo_tvkd.data.align`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.data.align import align_states
from nemo_tvkd.data.batch import Item, OtherReading
from nemo_tvkd.data.lazy import Lazy, Mapped
from nemo_tvkd.data.readings import count_truncated, pair_ids, read_by_all, sources
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.reads import Quantity, base
from nemo_tvkd.prepare.encoder import Encoder
from nemo_tvkd.scores.store import ScoreStore

Say = Callable[[str], None]


def title(name: str) -> str:
    """What a model is called in a sentence: the teacher, oracle[1]."""
    section, _, index = name.partition("/")
    return f"{section}[{index}]" if index else f"the {section}"


def option(name: str, entry: str) -> str:
    """The configuration key of a frozen model: teacher.path, or oracle.path[1] of a further oracle."""
    section, _, index = name.partition("/")
    return f"{section}.{entry}[{index}]" if index else f"{section}.{entry}"


@dataclass
class Needs:
    """Everything that a job reads pairs with."""

    encoder: Encoder
    pairs: bool
    """Whether the rows are pairs (else examples)."""
    key: str = "student.path"
    """The key of the model whose tokens count."""
    owner: str = "the student"
    """What that model is called in a sentence."""
    quantities: dict[str, list[Quantity]] = field(default_factory=dict)
    """What is asked of frozen models, by name: that of their section; a further oracle is oracle/1, and so on."""
    frozen: dict[str, Checkpoint] = field(default_factory=dict)
    """Models that run online."""
    stores: dict[str, tuple[ScoreStore, dict[str, str]]] = field(default_factory=dict)
    """By model: its store, and by quantity name the stem of the scores that are read."""
    readers: dict[str, Encoder] = field(default_factory=dict)
    """How models read the pairs that do not read them as the owner does."""
    aligned: set[str] = field(default_factory=set)
    """Models whose states must be aligned to the owner's."""
    require: dict[str, str] = field(default_factory=dict)
    """Columns that every row must have, and why."""
    columns: dict[str, str] = field(default_factory=dict)
    """Models whose numbers are columns of the data, and what these are."""

    def read(self, paths: list[str], key: str, say: Say) -> Lazy[Item]:
        """The rows of `paths` as items, with what the stores say about them; each is made when it is asked for."""
        rows = self.encoder.read(paths, key, self.pairs, say, bool(self.aligned), self.require)
        theirs = {name: self._read_as(name, paths, key, say) for name in self.readers}
        rows, views = read_by_all(rows, theirs)
        if not rows:
            who = " and ".join(f"{title(name)}'s" for name in theirs)
            raise UserError(f"{key}: no pair is usable with {self.owner}'s and {who} tokenizer alike")
        for name, view in views.items():
            if cut := count_truncated(rows, view):
                what = " and ".join(quantity.title for quantity in self.quantities.get(name, [])) or "log-probability"
                say(
                    f"warning: {key}: {cut} of {len(rows)} pairs are cut to length by {self.owner}'s tokens or "
                    f"{title(name)}'s; where they end at different characters {title(name)}'s {what} is of another text"
                )
        return self.join(rows, views)

    def _read_as(self, name: str, paths: list[str], key: str, say: Say) -> Lazy[Tokenized]:
        """The rows as a model reads them."""

        def report(line: str) -> None:
            say(f"for {title(name)}: {line}")

        return self.readers[name].read(paths, key, self.pairs, report, name in self.aligned)

    def join(self, rows: Sequence[Tokenized], views: Mapping[str, Sequence[Tokenized]] | None = None) -> Lazy[Item]:
        """Items of `rows`; `views` are the same rows as models read them that do not read as the owner does."""
        views = views or {}
        for name, (store, _) in self.stores.items():
            store.check_covers(pair_ids(views.get(name, rows)), sources(rows), option(name, "scores"))
        joiner = Joiner(self.stores, tuple(views), self.columns, self.aligned)
        return Mapped(joiner, rows, *views.values())

    def of_section(self, section: str) -> list[str]:
        """The models of a section, in their order."""
        return [name for name in self.quantities if base(name) == section]


@dataclass
class Joiner:
    """Makes an item of a row and of the same row as other models read it."""

    stores: dict[str, tuple[ScoreStore, dict[str, str]]]
    names: tuple[str, ...]
    """The other models, in their order."""
    columns: dict[str, str]
    aligned: set[str]

    def __call__(self, row: Tokenized, *others: Tokenized) -> Item:
        views = dict(zip(self.names, others, strict=True))
        item = Item(row)
        readings = {
            name: OtherReading(other, _states(row, other) if name in self.aligned else None)
            for name, other in views.items()
        }
        item.readings = {name: reading for name, reading in readings.items() if name not in self.stores}
        for name, (store, stems) in self.stores.items():
            scores = store.get(views.get(name, row).pair_id).scores
            for quantity, stem in stems.items():
                numbers = scores[stem]
                if name in readings and np.ndim(numbers[0]):
                    numbers = readings[name].at_students_states(numbers)
                item.numbers[f"{name}.{quantity}"] = numbers
        for number in self.columns.values():
            assert row.chosen_reward is not None
            assert row.rejected_reward is not None
            item.numbers[number] = (row.chosen_reward, row.rejected_reward)
        return item


def _states(row: Tokenized, other: Tokenized) -> tuple[Any, Any]:
    """For each of the owner's states, the index of the other model's, of both responses."""
    sides = ((row.chosen_positions, other.chosen_positions), (row.rejected_positions, other.rejected_positions))
    chosen, rejected = (align_states(own, theirs) for own, theirs in sides if own is not None and theirs is not None)
    return chosen, rejected
