"""A look at the rows that a stage will read."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.pairs import ReadReport, Row, iter_rows
from nemo_tvkd.data.tokenized import Tokenized

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
    """Share of the tokens that are responses' (of examples, those that are trained)."""
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
    count, some, bad = _rows(paths, key, pairs)
    how = {"max_length": data.max_length, "max_prompt_length": data.max_prompt_length}
    how["turns"] = "last" if pairs else getattr(data, "assistant_turns", "last")
    kept, made = tokenize_rows(some, encoder.template, on_bad_row="skip", **how)
    sizes = [[len(row.prompt_ids) + len(ids) for ids in _responses(row)] for row in kept]
    return Sample(
        rows=count,
        read=len(some),
        sequences=2 if pairs else 1,
        mean=sum(map(sum, sizes)) / len(sizes),
        responses=sum(map(_read, kept)) / sum(map(sum, sizes)),
        longest=max(map(max, sizes)),
        truncated=sum(row.truncated for row in kept) / len(kept),
        bad=tuple(bad + made.bad),
    )


def _responses(row: Tokenized) -> list[Any]:
    return [ids for ids in (row.chosen_ids, row.rejected_ids) if ids is not None]


def _read(row: Tokenized) -> int:
    """Tokens whose log-probability is asked for."""
    return sum(map(len, _responses(row))) if row.chosen_mask is None else int(row.chosen_mask.sum())


def count_rows(paths: tuple[str, ...], key: str, pairs: bool) -> int:
    """Good rows.

    Raises:
        UserError: as read_sample.
    """
    return _rows(paths, key, pairs)[0]


@lru_cache(maxsize=8)
def _rows(paths: tuple[str, ...], key: str, pairs: bool) -> tuple[int, list[Row], list[str]]:
    """The number of good rows, some of them, evenly spread, and the bad ones. Stages share their data."""
    report = ReadReport()
    kept: list[Row] = []
    step = 1
    rows = iter_rows(list(paths), need_rejected=pairs, on_bad_row="skip", key=key, report=report)
    for number, row in enumerate(rows):
        if number % step == 0:
            kept.append(row)
        if len(kept) == 2 * ROWS:
            kept, step = kept[::2], 2 * step
    some = [kept[number * len(kept) // ROWS] for number in range(ROWS)] if len(kept) > ROWS else kept
    return report.rows, some, report.bad
