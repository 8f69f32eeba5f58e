"""The score store: what frozen models said about preference pairs, so that training needs none of them.

    STORE/plan.json             written first: what the scores are bound to, number and size of the parts
    STORE/part-000000.parquet   pairs 0 .. part_size-1 in the data's order, one row per pair; and so on
    STORE/manifest.json         written last: the identity, every part with its rows and sha256, totals

Every file appears whole or not at all, holds no time, host or rank, and depends on the scores alone (and on the
pyarrow version, which Parquet records). So a killed job that runs again writes the parts that are missing and ends
with the bytes of a job that was never killed, whatever the data-parallel layout of either.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.identity import FORMAT, Identity, data_fingerprint, describe, dump_json, read_json, same, show
from nemo_tvkd.scores.mapped import PairIndex, mapped_tables, unpacked
from nemo_tvkd.scores.shard import MANIFEST, OUTPUT, SIDES, PairScores, encode, holds, read_part, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MANIFEST", "PLAN", "Identity", "PairScores", "ScoreStore", "StoreWriter", "data_fingerprint"]

PLAN = "plan.json"
T = TypeVar("T")


class StoreWriter:
    """Writes a store, one part at a time, from any number of processes.

    Rank 0 calls `prepare`; after a barrier, rank r of dp writes those parts with part % dp == r that are not
    complete; after another barrier rank 0 calls `finish`. A part is never written by two processes at a time.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: Identity, pair_ids: Sequence[str], part_size: int = 1024
    ) -> None:
        """`pair_ids` are those of the whole data, in its order, on every rank; `part_size` counts pairs."""
        assert identity.what, "a store without scores"
        assert part_size > 0
        assert identity.data == data_fingerprint(pair_ids), "the identity belongs to other data"
        self.path = Path(path)
        self.identity = identity
        self.part_size = part_size
        self._pair_ids = pair_ids

    def parts(self) -> range:
        """The numbers of all parts."""
        return range(math.ceil(len(self._pair_ids) / self.part_size))

    def part_rows(self, part: int, rows: Sequence[T]) -> Sequence[T]:
        """Those of the data's rows (or what belongs to them, one by one) that are in a part."""
        return rows[part * self.part_size : (part + 1) * self.part_size]

    def part_pair_ids(self, part: int) -> Sequence[str]:
        """The pair_ids of a part, in the order of its rows."""
        return self.part_rows(part, self._pair_ids)

    def check_output(self) -> None:
        """Whether this job may write here; changes nothing.

        Raises UserError (key score.output) if the directory is not empty and no store, or holds scores of another
        identity or part size; that message names each field that differs with both its values.
        """
        plan = self.path / PLAN
        if plan.exists():
            self._check_plan(read_json(plan, OUTPUT, "give another directory, or remove this one to start afresh"))
        elif self.path.exists() and set(self.path.iterdir()) - set(self._temporaries()):
            raise UserError(
                f"{OUTPUT}: {self.path} is not empty and holds no score store ({PLAN} is missing); "
                "give an empty or a new directory"
            )

    def prepare(self) -> None:
        """Rank 0, before anybody writes: create or take up the directory, remove what killed jobs left half-written.

        Raises UserError (key score.output) as `check_output`, and if the directory cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{OUTPUT}: cannot create the directory {self.path}: {error.strerror}") from error
        self.check_output()
        for temporary in self._temporaries():
            temporary.unlink(missing_ok=True)
        if not (self.path / PLAN).exists():
            write_whole(self.path / PLAN, dump_json(self._plan()))
        self._reopen_if_damaged()

    def is_complete(self, part: int) -> bool:
        """Whether the part is there, of this identity, with its pairs in their order and every number as written."""
        try:
            return holds(self._file(part).read_bytes(), self.identity, self.part_pair_ids(part))
        except (OSError, ValueError, MemoryError, NotImplementedError):  # what pyarrow raises for damaged files
            return False

    def write_part(self, part: int, scores: Sequence[PairScores]) -> None:
        """Write one part, whole or not at all; an earlier file of this part is replaced.

        `scores` follow `part_pair_ids(part)` and hold exactly the identity's stems (asserted).
        Raises UserError for a score that is NaN or infinite (named by pair_id) and for a disk that is full.
        """
        assert [row.pair_id for row in scores] == list(self.part_pair_ids(part)), f"part {part}: other pairs"
        write_whole(self._file(part), encode(self.identity, scores))

    def finish(self) -> None:
        """Rank 0, after everybody has written: write the manifest; again on a finished store, change nothing.

        Raises UserError if a part is missing or damaged.
        """
        missing = [part for part in self.parts() if not self.is_complete(part)]
        if missing:
            raise UserError(
                f"{OUTPUT}: {self.path} lacks {len(missing)} of {len(self.parts())} parts, "
                f"first {self._file(missing[0]).name}: run the same score command again"
            )
        plan = read_json(self.path / PLAN, OUTPUT, "run the same score command again")
        entries = [
            {"file": file.name, "rows": len(self.part_pair_ids(part)), "sha256": _sha256(file)}
            for part in self.parts()
            for file in [self._file(part)]
        ]
        size = sum(self._file(part).stat().st_size for part in self.parts())
        totals = {"bytes": size, "parts": len(entries), "rows": len(self._pair_ids)}
        # The plan's identity: the model's path is then the one the job started with, however often it ran again.
        manifest = dump_json({**plan, "parts": entries, "totals": totals})
        file = self.path / MANIFEST
        if not file.exists() or file.read_bytes() != manifest:
            write_whole(file, manifest)

    def _file(self, part: int) -> Path:
        return self.path / f"part-{part:06d}.parquet"

    def _plan(self) -> dict[str, Any]:
        identity = asdict(self.identity)
        return {"format": FORMAT, "identity": identity, "part_size": self.part_size, "parts": len(self.parts())}

    def _temporaries(self) -> list[Path]:
        return [file for name in (PLAN, MANIFEST, "part-*.parquet") for file in self.path.glob(f".{name}.*.tmp")]

    def _check_plan(self, plan: dict[str, Any]) -> None:
        try:
            there = {**Identity.from_json(plan["identity"]).compared(), "part_size": plan["part_size"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{OUTPUT}: {self.path / PLAN} is not a plan of this version; give another directory"
            ) from error
        here = {**self.identity.compared(), "part_size": self.part_size}
        if differing := [name for name in here if there[name] != here[name]]:
            raise UserError(
                f"{OUTPUT}: {self.path} holds other scores: "
                + "; ".join(f"{name} is {show(there[name])} there and {show(here[name])} here" for name in differing)
                + "; give another directory, or remove this one to start afresh"
            )

    def _reopen_if_damaged(self) -> None:
        """A finished store that no longer matches its manifest becomes an unfinished one without the bad parts."""
        manifest = self.path / MANIFEST
        if not manifest.exists():
            return
        try:
            listed = {entry["file"]: entry["sha256"] for entry in json.loads(manifest.read_bytes())["parts"]}
        except (ValueError, KeyError, TypeError):
            listed = {}
        files = [self._file(part) for part in self.parts()]
        damaged = [file for file in files if file.name in listed and _sha256(file) != listed[file.name]]
        if damaged or len(listed) != len(files):
            # The manifest goes last: killed in between, the next run still knows which parts are bad.
            for file in [*damaged, manifest]:
                file.unlink(missing_ok=True)


class ScoreStore:
    """A finished store, read: pair_id to scores. It is held in memory, 4 bytes per stored value, or mapped."""

    def __init__(
        self, path: Path, identity: Identity, part_size: int, tables: Sequence[pa.Table] | None, mapped: Path | None
    ) -> None:
        """Use `open`."""
        self.path = path
        self.identity = identity
        self._part_size = part_size
        self._mapped = mapped
        self._tables = mapped_tables(mapped) if mapped is not None else tables or []
        self._index = PairIndex(self._tables)

    def __reduce__(self) -> tuple[Any, ...]:
        """A mapped store travels as the name of its file."""
        tables = None if self._mapped else self._tables
        return ScoreStore, (self.path, self.identity, self._part_size, tables, self._mapped)

    @classmethod
    def open(cls, path: str | os.PathLike[str], key: str = "teacher.scores", mapped: bool = False) -> ScoreStore:
        """Read a store and verify every byte of it.

        Args:
            mapped: unpack it once into a file, which is verified then, and read scores from there (data.streaming).

        Raises UserError, which names `key` (the configuration key the path came from) and the file, if the store is
        not there, unfinished or of another version, or if a shard is missing, truncated or corrupted.
        """
        path = Path(path)
        again = "run the same score command again"
        if not (path / MANIFEST).exists():
            if (path / PLAN).exists():
                raise UserError(f"{key}: the score store {path} is unfinished ({MANIFEST} is missing): {again}")
            raise UserError(f"{key}: no score store at {path}; give a directory that `nemo-tvkd score` wrote")
        manifest = read_json(path / MANIFEST, key, again)
        try:
            identity, part_size = Identity.from_json(manifest["identity"]), int(manifest["part_size"])
            listed = [(path / entry["file"], entry["sha256"]) for entry in manifest["parts"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{key}: {path / MANIFEST} is damaged: {again}") from error
        tables = (read_part(file, sha256, identity, key) for file, sha256 in listed)
        if mapped:
            file = unpacked((path / MANIFEST).read_bytes(), lambda: tables, path, key)
            return cls(path, identity, part_size, None, file)
        return cls(path, identity, part_size, list(tables), None)

    def __len__(self) -> int:
        """The number of rows: pairs of the data, repeated ones included."""
        return sum(table.num_rows for table in self._tables)

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

    def value_stem(self, wanted: Statistic, key: str) -> str:
        """The stem under which this value is stored; temperatures agree up to a relative 1e-9.

        Raises UserError, which names `key` and the values that are there, if it is not.
        """
        for stem, value in self.identity.value_stems.items():
            agree = value.kind != "soft_value" or same(value.temperature, wanted.temperature)
            if value.kind == wanted.kind and agree:
                return stem
        stored = ", ".join(describe(value) for value in self.identity.values) or "no value"
        tau = f" score.temperature={wanted.temperature}" if wanted.kind == "soft_value" else ""
        fault = f"it has {stored} and {describe(wanted)} is wanted"
        raise self._misfit(key, fault, f"score the data again with score.value_kind={wanted.kind}{tau}")

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
        columns = [table.column(f"{side}_{stem}") for side in SIDES for table in self._tables]
        return np.concatenate([column.to_numpy() for column in columns])

    def get(self, pair_id: str) -> PairScores:
        """The scores of a pair: values as new float32 arrays. KeyError where `check_covers` would have complained."""
        (found,) = self._index.find([pair_id]).tolist()
        if found < 0:
            raise KeyError(pair_id)
        part, row = divmod(found, self._part_size)
        table = self._tables[part]
        scores = {}
        for stem in self.identity.stems:
            chosen, rejected = (table.column(f"{side}_{stem}")[row] for side in SIDES)
            if stem in self.identity.value_stems:
                # A copy of the few numbers of one response: Arrow's own buffer is read-only, which torch dislikes.
                scores[stem] = chosen.values.to_numpy().copy(), rejected.values.to_numpy().copy()
            else:
                scores[stem] = chosen.as_py(), rejected.as_py()
        return PairScores(pair_id, scores)


def _sha256(path: Path) -> str:
    """Of a file's bytes; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
