"""The score store: what frozen models said about preference pairs, so that training needs none of them.

    STORE/plan.json             written first: what the scores are bound to, number and size of the parts
    STORE/part-000000.parquet   pairs 0 .. part_size-1 in the data's order, one row per pair; and so on
    STORE/manifest.json         written last: the identity, every part with its rows and sha256, totals

Every file appears whole or not at all, holds no time, host or rank, and depends on the scores alone (and on the
pyarrow version, which Parquet records). So a killed job that runs again writes the parts that are missing and ends
with the bytes of a job that was never killed, whatever the data-parallel layout of either.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.identity import Identity, describe, read_json, same, show
from nemo_tvkd.scores.shard import MANIFEST, PLAN, SIDES, PairScores, decode, part_file, read_part

if TYPE_CHECKING:
    import pyarrow as pa

HELD_BYTES = 2**30
"""Decoded parts that a process keeps of a store; another one costs a few milliseconds when it is needed."""
CHUNK = 1 << 16
"""Pairs that are looked up at a time."""


class PairIndex:
    """pair_id -> row in the whole store, in 40 bytes a pair. The same pair twice: its first row counts."""

    def __init__(self, pair_ids: Iterable[Sequence[str]]) -> None:
        """`pair_ids`: those of each part."""
        parts = [np.array(ids, dtype=bytes) for ids in pair_ids]
        ids = np.concatenate(parts) if parts else np.empty(0, dtype="S1")
        self._rows = np.argsort(ids, kind="stable")
        self._ids = ids[self._rows]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, pair_ids: Sequence[str]) -> np.ndarray:
        """int64: the row of each pair; -1 where it is not there."""
        requested = np.array(list(pair_ids), dtype=bytes)
        if not len(self._ids):
            return np.full(len(requested), -1)
        at = np.minimum(np.searchsorted(self._ids, requested), len(self._ids) - 1)
        return np.where(self._ids[at] == requested, self._rows[at], -1)

    def missing(self, pair_ids: Sequence[str]) -> np.ndarray:
        """Which of the pairs are not there, by number."""
        rows = [self.find(pair_ids[start : start + CHUNK]) for start in range(0, len(pair_ids), CHUNK)]
        return np.flatnonzero(np.concatenate(rows) < 0) if rows else np.empty(0, dtype=np.int64)


class ScoreStore:
    """A finished store, read: pair_id to scores. Parts are kept decoded, the last ones used, up to HELD_BYTES.

    A store that travels to another process is little more than its path: what is needed there is read again.
    """

    def __init__(self, path: Path, identity: Identity, part_size: int, parts: int) -> None:
        """Use `open`."""
        self.path = path
        self.identity = identity
        self._part_size = part_size
        self._parts = range(parts)
        self._held: dict[int, pa.Table] = {}
        self._bytes = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], key: str = "teacher.scores") -> ScoreStore:
        """Read a store and verify every byte of it.

        Raises UserError, which names `key` (the configuration key the path came from) and the file, if the store is
        not there, unfinished or of another version, or if a part is missing, truncated or corrupted.
        """
        path = Path(path)
        again = "run the same score command again"
        if not (path / MANIFEST).exists():
            if (path / PLAN).exists():
                raise UserError(f"{key}: the score store {path} is unfinished ({MANIFEST} is missing): {again}")
            raise UserError(f"{key}: no score store at {path}: give a directory that `nemo-tvkd score` wrote")
        manifest = read_json(path / MANIFEST, key, again)
        try:
            listed = [(path / entry["file"], entry["sha256"]) for entry in manifest["parts"]]
            identity, part_size = Identity.from_json(manifest["identity"]), int(manifest["part_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{key}: {path / MANIFEST} is damaged: {again}") from error
        store = cls(path, identity, part_size, len(listed))
        tables = (read_part(file, sha256, identity, key) for file, sha256 in listed)
        store._index = PairIndex(store._hold(part, table)["pair_id"].to_pylist() for part, table in enumerate(tables))
        return store

    @cached_property
    def _index(self) -> PairIndex:
        return PairIndex(self._table(part)["pair_id"].to_pylist() for part in self._parts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_index"} | {"_held": {}, "_bytes": 0}

    def _hold(self, part: int, table: pa.Table) -> pa.Table:
        """Keep a part in memory, in place of the ones that were used longest ago where there is no room."""
        self._held[part] = table
        self._bytes += table.nbytes
        while self._bytes > HELD_BYTES and len(self._held) > 1:
            self._bytes -= self._held.pop(next(iter(self._held))).nbytes
        return table

    def _table(self, part: int) -> pa.Table:
        if (table := self._held.pop(part, None)) is not None:
            self._held[part] = table  # the last one used
            return table
        return self._hold(part, decode(part_file(self.path, part).read_bytes()))

    def __len__(self) -> int:
        """The number of rows: pairs of the data, repeated ones included."""
        return len(self._index)

    def check(self, *, what: Sequence[str], key: str, **expected: Any) -> None:
        """Raise UserError unless the store holds `what` and its identity's fields are as `expected`.

        An expected None is not compared; floats are compared with a relative tolerance of 1e-9. The message names
        `key` and each field that differs, with what the store has and what is expected.
        """
        here = self.identity.compared()
        unknown = set(expected) - (set(here) - {"what", "values"})
        assert not unknown, f"not fields of a store: {sorted(unknown)}"
        faults = [
            f"{name} is {show(here[name])} in the store and {show(value)} is expected"
            for name, value in expected.items()
            if value is not None and not same(here[name], value)
        ]
        if missing := [name for name in what if name not in self.identity.what]:
            faults.insert(0, f"what is {show(self.identity.what)} in the store and {show(missing)} is missing")
        if faults:
            raise self._misfit(key, "; ".join(faults), "score the data again")

    def value_stem(self, value: Statistic, key: str) -> str:
        """The stem under which this value is stored; temperatures agree up to a relative 1e-9.

        Raises UserError, which names `key` and the values that are there, if it is not.
        """
        for stem, stored in self.identity.value_stems.items():
            agree = stored.kind != "soft_value" or same(stored.temperature, value.temperature)
            if stored.kind == value.kind and agree:
                return stem
        there = ", ".join(describe(stored) for stored in self.identity.values) or "no value"
        tau = f" score.temperature={value.temperature}" if value.kind == "soft_value" else ""
        fault = f"it has {there} and {describe(value)} is needed"
        raise self._misfit(key, fault, f"score the data again with score.value_kind={value.kind}{tau}")

    def _misfit(self, key: str, fault: str, remedy: str) -> UserError:
        return UserError(
            f"{key}: the score store {self.path} (scored by {self.identity.model}) does not fit: "
            f"{fault}; {remedy}, or give the store that fits"
        )

    def check_covers(self, pair_ids: Sequence[str], sources: Sequence[str], key: str) -> None:
        """Raise UserError unless every pair is in the store; `sources` says where each comes from, as FILE:LINE."""
        missing = self._index.missing(pair_ids)
        if len(missing):
            raise UserError(
                f"{key}: {len(missing)} of {len(pair_ids)} pairs are not in the store {self.path}, "
                f"first {sources[int(missing[0])]}; it was made from other data or lengths: score this data"
            )

    def numbers(self, stem: str) -> np.ndarray:
        """A score that is one number a response, of all pairs: the chosen responses', then the rejected ones'."""
        tables = [self._table(part) for part in self._parts]
        return np.concatenate([table.column(f"{side}_{stem}").to_numpy() for side in SIDES for table in tables])

    def get(self, pair_id: str) -> PairScores:
        """The scores of a pair: values as new float32 arrays. KeyError where `check_covers` would have complained."""
        (place,) = self._index.find([pair_id]).tolist()
        if place < 0:
            raise KeyError(pair_id)
        part, row = divmod(place, self._part_size)
        table = self._table(part)
        scores = {}
        for stem in self.identity.stems:
            chosen, rejected = (table.column(f"{side}_{stem}")[row] for side in SIDES)
            if stem in self.identity.value_stems:
                # Copies of the few numbers of one response: Arrow's own buffers are read-only, which torch dislikes.
                scores[stem] = chosen.values.to_numpy().copy(), rejected.values.to_numpy().copy()
            else:
                scores[stem] = chosen.as_py(), rejected.as_py()
        return PairScores(pair_id, scores)
