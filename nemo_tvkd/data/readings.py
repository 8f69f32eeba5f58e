"""Rows as several tokenizers read them: which of them all can read; and what is asked of every row, lists or lazy."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Chained, Hexadecimal, Lazy, Mapped, Selected
from nemo_tvkd.data.tokenized import Tokenized

Rows = Sequence[Tokenized]


def read_by_all(rows: Rows, others: Mapping[str, Rows]) -> tuple[Rows, dict[str, Rows]]:
    """The rows whose source is in each of `others`, and each of these in the rows' order."""
    if not others:
        return rows, {}
    if isinstance(rows, Lazy):
        return _found(rows, {name: other for name, other in others.items() if isinstance(other, Lazy)})
    by_source = {name: {row.source: row for row in other} for name, other in others.items()}
    kept = [row for row in rows if all(row.source in read for read in by_source.values())]
    return kept, {name: [read[row.source] for row in kept] for name, read in by_source.items()}


def _found(rows: Lazy[Tokenized], others: Mapping[str, Lazy[Tokenized]]) -> tuple[Rows, dict[str, Rows]]:
    """The same by the hashes of sources, 16 bytes a row; no row is read."""
    wanted = np.ascontiguousarray(rows.column("key"))
    places = {name: _places(np.ascontiguousarray(other.column("key")), wanted) for name, other in others.items()}
    kept = np.flatnonzero(np.all([place >= 0 for place in places.values()], axis=0))
    return Selected(rows, kept), {name: Selected(others[name], place[kept]) for name, place in places.items()}


def _places(there: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64: where each of `wanted` is in `there`; -1 for nowhere."""
    order = np.argsort(there, kind="stable")
    at = np.minimum(np.searchsorted(there[order], wanted), len(there) - 1)
    return np.where(there[order[at]] == wanted, order[at], -1)


def count_truncated(rows: Rows, others: Rows) -> int:
    """Of how many rows something was cut, by one or the other tokenizer."""
    if isinstance(rows, Lazy) and isinstance(others, Lazy):
        return int(np.count_nonzero(rows.column("truncated") | others.column("truncated")))
    return sum(row.truncated or other.truncated for row, other in zip(rows, others, strict=True))


def tokens_of(items: Sequence[Item]) -> Rows:
    """The rows that items were made of."""
    return Mapped(attrgetter("tokens"), items) if isinstance(items, Lazy) else [item.tokens for item in items]


def pair_ids(rows: Rows) -> Sequence[str]:
    """The pair_id of each row."""
    return Hexadecimal(rows.column("pair_id")) if isinstance(rows, Lazy) else [row.pair_id for row in rows]


def sources(rows: Rows) -> Sequence[str]:
    """The source of each row."""
    return Mapped(attrgetter("source"), rows) if isinstance(rows, Lazy) else [row.source for row in rows]


def with_others(rows: Rows, more: Rows) -> Rows:
    """`rows`, and those of `more` that are not among them, by their pair_id."""
    if isinstance(rows, Lazy) and isinstance(more, Lazy):
        one, other = (np.ascontiguousarray(each.column("pair_id")).view("S16").ravel() for each in (rows, more))
        return Chained([rows, Selected(more, np.flatnonzero(~np.isin(other, one)))])
    known = {row.pair_id for row in rows}
    return [*rows, *(row for row in more if row.pair_id not in known)]
