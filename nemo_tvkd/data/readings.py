"""Rows as several tokenizers read them: which of them all can read; and what is asked of every row."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Chained, Hexadecimal, Lazy, Mapped, Selected
from nemo_tvkd.data.tokenized import Tokenized

Rows = Lazy[Tokenized]


def read_by_all(rows: Rows, others: Mapping[str, Rows]) -> tuple[Rows, dict[str, Rows]]:
    """The rows whose source is in each of `others`, and each of these in the rows' order.

    They are matched by the hashes of their sources, 16 bytes a row; no row is read.
    """
    if not others:
        return rows, {}
    keys = rows.column("source_key")
    places = {name: _places(other.column("source_key"), keys) for name, other in others.items()}
    kept = np.flatnonzero(np.all([place >= 0 for place in places.values()], axis=0))
    return Selected(rows, kept), {name: Selected(others[name], place[kept]) for name, place in places.items()}


def _places(there: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64: where each of `keys` is in `there`; -1 for nowhere."""
    order = np.argsort(there, kind="stable")
    at = np.minimum(np.searchsorted(there[order], keys), len(there) - 1)
    return np.where(there[order[at]] == keys, order[at], -1)


def count_truncated(rows: Rows, others: Rows) -> int:
    """The number of rows of which one or the other tokenizer cut something."""
    return int(np.count_nonzero(rows.column("truncated") | others.column("truncated")))


def tokens_of(items: Sequence[Item]) -> Rows:
    """The rows that items were made of."""
    return Mapped(attrgetter("tokens"), items)


def pair_ids(rows: Sequence[Tokenized]) -> Sequence[str]:
    """The pair_id of each row; of rows in a file without reading these."""
    return Hexadecimal(rows.column("pair_id")) if isinstance(rows, Lazy) else [row.pair_id for row in rows]


def sources(rows: Sequence[Tokenized]) -> Sequence[str]:
    """The source of each row."""
    return Mapped(attrgetter("source"), rows)


def with_others(rows: Rows, more: Rows) -> Rows:
    """`rows`, and those of `more` that are not among them, by their pair_id."""
    one, other = (np.ascontiguousarray(each.column("pair_id")).view("S16").ravel() for each in (rows, more))
    return Chained([rows, Selected(more, np.flatnonzero(~np.isin(other, one)))])
