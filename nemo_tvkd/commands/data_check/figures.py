"""What is counted and measured of a data set, row by row; lengths, a hash and a place of each are kept."""

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from nemo_tvkd.commands.data_check.examples import rendered_text, rendered_tokens
from nemo_tvkd.data.pairs import ReadReport, Row, parse_rows
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError

UNLIMITED = 1 << 30
"""Tokens."""
LOOK = 200
"""Rows that are looked at to tell pairs from examples."""
PERCENTILES = (5, 25, 50, 75, 95, 99)
PLACES = 8
"""Places that are named of each kind of bad row, at least."""
TWINS = 3
"""Duplicates that are named."""


def reads_pairs(paths: Sequence[str], key: str, rows: str) -> bool:
    """Whether these are pairs: by `rows` (auto, pairs, examples), else where one of the first rows is one.

    Raises:
        UserError: nothing can be read.
    """
    if rows != "auto":
        return rows == "pairs"
    failed: UserError | None = None
    for pairs in (True, False):
        first = parse_rows(paths, need_rejected=pairs, key=key, report=ReadReport())
        try:
            if any(isinstance(row, Row) for _, row in islice(first, LOOK)):
                return pairs
        except UserError as error:  # a damaged file, or no split of this kind
            failed = failed or error
    if failed:
        raise failed
    return True


@dataclass
class Kind:
    """Bad rows that have the same wrong with them."""

    what: str
    """Of the first one."""
    count: int = 0
    places: list[str] = field(default_factory=list)
    """"file:line" of some."""


@dataclass
class Check:
    """Reads rows and keeps count; `template` None measures characters."""

    pairs: bool
    template: Any
    data: Any
    examples: int
    report: ReadReport = field(default_factory=ReadReport)
    error: str = ""
    """What ended the reading before its end, or why there is no row to train on."""
    usable: int = 0
    ids: int = 0
    rewards: int = 0
    agreeing: int = 0
    equal: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    rows_cut: int = 0
    lost: int = 0
    bad: dict[str, Kind] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    duplicates: int = 0
    twins: list[tuple[str, str]] = field(default_factory=list)
    prompt: "array[int]" = field(default_factory=lambda: array("q"))
    chosen: "array[int]" = field(default_factory=lambda: array("q"))
    rejected: "array[int]" = field(default_factory=lambda: array("q"))
    _seen: dict[bytes, str] = field(default_factory=dict)

    def read(self, paths: Sequence[str], key: str, report_count: Callable[[int], None]) -> None:
        """Every row; `report_count` gets how many there are now and then."""
        rows = parse_rows(paths, need_rejected=self.pairs, key=key, report=self.report)
        try:
            for number, (source, row) in enumerate(rows, 1):
                self._add(source, row)
                if number % 500 == 0:
                    report_count(number)
        except UserError as error:
            self.error = str(error)
        if not self.usable and not self.error:
            for first in islice(self.bad.values(), 1):
                count = sum(kind.count for kind in self.bad.values())
                self.error = f"{key}: each of the {count} rows is bad; the first: {first.places[0]}: {first.what}"
                return
            self.error = f"{key}: there is no pair in its rows: {self.report.left_out}"

    def _add(self, source: str, row: Row | UserError) -> None:
        if isinstance(row, UserError):
            self._bad(source, row)
            return
        self.ids += row.id is not None
        if row.chosen_reward is not None and row.rejected_reward is not None:
            self.rewards += 1
            self.agreeing += row.chosen_reward > row.rejected_reward
            self.equal += row.chosen_reward == row.rejected_reward
        tokens = None
        if self.template is None:
            texts = (row.plain_prompt, row.chosen, row.rejected)
            self._measure(*(None if text is None else len(text) for text in texts))
        elif (tokens := self._tokens(row)) is None:
            return
        self.usable += 1
        self._look_for_twin(row, tokens)
        if len(self.shown) < self.examples:
            self.shown.append(rendered_tokens(self.template.tokenizer, tokens) if tokens else rendered_text(row))

    def _tokens(self, row: Row) -> Tokenized | None:
        """The row as it would be trained on; None where it is bad."""
        turns = "last" if self.pairs else self.data.assistant_turns
        limits = (self.data.max_length, self.data.max_prompt_length)
        try:
            whole = self.template.encode(row, UNLIMITED, None, turns=turns)
        except UserError as error:
            self._bad(row.source, error)
            return None
        sizes = [len(ids) for ids in (whole.chosen_ids, whole.rejected_ids) if ids is not None]
        self._measure(len(whole.prompt_ids), *sizes)
        if len(whole.prompt_ids) + max(sizes) <= limits[0] and len(whole.prompt_ids) <= (limits[1] or UNLIMITED):
            return whole
        try:
            cut = self.template.encode(row, *limits, turns=turns)
        except UserError as error:
            self.lost += 1
            self._bad(row.source, error)
            return None
        left = [len(ids) for ids in (cut.chosen_ids, cut.rejected_ids) if ids is not None]
        self.prompts_cut += len(cut.prompt_ids) < len(whole.prompt_ids)
        self.responses_cut += sum(short < size for short, size in zip(left, sizes, strict=True))
        self.rows_cut += cut.truncated
        return cut

    def _measure(self, prompt: int | None, chosen: int | None, rejected: int | None = None) -> None:
        for kept, size in ((self.prompt, prompt), (self.chosen, chosen), (self.rejected, rejected)):
            if size is not None:
                kept.append(size)

    def _bad(self, source: str, error: UserError) -> None:
        what = str(error).removeprefix(f"{source}: ")
        alike = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+", "#", what.split("; found: ")[0])
        kind = self.bad.setdefault(alike, Kind(what))
        kind.count += 1
        if len(kind.places) < max(self.examples, PLACES):
            kind.places.append(source)

    def _look_for_twin(self, row: Row, tokens: Tokenized | None) -> None:
        """Pairs are one where their ids are (without a tokenizer: their texts)."""
        texts = repr((row.plain_prompt, row.chosen, row.rejected))
        name = bytes.fromhex(tokens.pair_id) if tokens else hashlib.sha256(texts.encode()).digest()[:16]
        if first := self._seen.get(name):
            self.duplicates += 1
            if len(self.twins) < TWINS:
                self.twins.append((first, row.source))
        else:
            self._seen[name] = row.source

    def figures(self) -> dict[str, Any]:
        """All of it, as JSON."""
        report, template = self.report, self.template
        chosen, rejected = (np.asarray(sizes) for sizes in (self.chosen, self.rejected))
        kinds = sorted(self.bad.values(), key=lambda kind: -kind.count)
        return {
            "files": [{"path": p, "format": f, "records": n} for (p, f), n in report.files.items()],
            "public_sets": dict(report.sets),
            "layouts": dict(report.layouts),
            "rows": "pairs" if self.pairs else "examples",
            "records": report.files.total(),
            "usable": self.usable,
            "bad": sum(kind.count for kind in kinds),
            "bad_rows": [{"what": kind.what, "count": kind.count, "examples": kind.places} for kind in kinds],
            "without_preference": report.ties,
            "without_partner": report.single,
            "with_id": self.ids,
            "with_rewards": self.rewards,
            "rewards": {
                "chosen_higher": self.agreeing,
                "equal": self.equal,
                "rejected_higher": self.rewards - self.agreeing - self.equal,
            },
            "duplicates": {"count": self.duplicates, "examples": [list(twins) for twins in self.twins]},
            "template": template.name if template else None,
            "unit": "tokens" if template else "characters",
            "lengths": self._lengths(),
            "chosen_longer": {
                "longer": int((chosen > rejected).sum()) if self.pairs else 0,
                "same": int((chosen == rejected).sum()) if self.pairs else 0,
                "shorter": int((chosen < rejected).sum()) if self.pairs else 0,
            },
            "truncation": self._truncation(),
            "examples": self.shown,
            "error": self.error or None,
        }

    def _lengths(self) -> dict[str, dict[str, float]]:
        """Of every row that was measured, before anything is cut; total: the prompt with the longer response."""
        prompt, chosen, rejected = (np.asarray(sizes) for sizes in (self.prompt, self.chosen, self.rejected))
        if not len(prompt):
            return {}
        total = prompt + (np.maximum(chosen, rejected) if self.pairs else chosen)
        named = {"prompt": prompt, "chosen" if self.pairs else "response": chosen, "rejected": rejected, "total": total}
        return {name: _spread(sizes) for name, sizes in named.items() if len(sizes)}

    def _truncation(self) -> dict[str, Any] | None:
        if self.template is None:
            return None
        return {
            "max_length": self.data.max_length,
            "max_prompt_length": self.data.max_prompt_length,
            "prompts_cut": self.prompts_cut,
            "responses_cut": self.responses_cut,
            "rows_cut": self.rows_cut,
            "rows_lost": self.lost,
        }


def _spread(sizes: Any) -> dict[str, float]:
    """Percentiles are lengths that occur (the smallest that so many per cent do not exceed)."""
    at = np.percentile(sizes, PERCENTILES, method="inverted_cdf")
    named = {f"p{q}": int(size) for q, size in zip(PERCENTILES, at, strict=True)}
    return {"mean": round(float(sizes.mean()), 1), "min": int(sizes.min()), **named, "max": int(sizes.max())}
