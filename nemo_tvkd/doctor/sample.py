"""A look at the rows that a stage will read."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nemo_tvkd.data.pairs import Row, read_rows
from nemo_tvkd.data.template import Tokenized, tokenize_rows

ROWS = 256
"""Rows that are tokenised; all of them are parsed."""


@dataclass(frozen=True)
class Sample:
    """Figures of the rows of one key."""

    rows: int
    """Good rows, before their lengths are looked at."""
    read: int
    """Rows that were tokenised."""
    sequences: int
    """Of a row: 2 of a pair, 1 of an example."""
    mean: float
    """Tokens of a row: of both responses, each with the prompt, or of the example."""
    responses: float
    """Share of the tokens that are responses'."""
    longest: int
    """Tokens of the longest single sequence."""
    truncated: float
    """Share of rows whose prompt or a response was cut."""
    bad: tuple[str, ...]


def read_sample(paths: tuple[str, ...], key: str, pairs: bool, encoder: Any, data: Any) -> Sample:
    """Read all rows and tokenise some, evenly spread.

    Raises:
        UserError: a file that cannot be used, or nothing but bad rows.
    """
    rows, bad = _rows(paths, key, pairs)
    some = rows[:: max(len(rows) // ROWS, 1)][:ROWS]
    lengths = {"max_length": data.max_length, "max_prompt_length": data.max_prompt_length}
    kept, made = tokenize_rows(some, encoder.template, on_bad_row="skip", **lengths)
    sizes = [[len(row.prompt_ids) + len(ids) for ids in _responses(row)] for row in kept]
    return Sample(
        rows=len(rows),
        read=len(some),
        sequences=2 if pairs else 1,
        mean=sum(map(sum, sizes)) / len(sizes),
        responses=sum(len(ids) for row in kept for ids in _responses(row)) / sum(map(sum, sizes)),
        longest=max(map(max, sizes)),
        truncated=sum(row.truncated for row in kept) / len(kept),
        bad=tuple(bad + made.bad),
    )


def _responses(row: Tokenized) -> list[Any]:
    return [ids for ids in (row.chosen_ids, row.rejected_ids) if ids is not None]


def count_rows(paths: tuple[str, ...], key: str, pairs: bool) -> int:
    """Good rows.

    Raises:
        UserError: as read_sample.
    """
    return len(_rows(paths, key, pairs)[0])


@lru_cache(maxsize=8)
def _rows(paths: tuple[str, ...], key: str, pairs: bool) -> tuple[list[Row], list[str]]:
    """Stages share their data."""
    rows, report = read_rows(list(paths), need_rejected=pairs, on_bad_row="skip", key=key)
    return rows, report.bad
