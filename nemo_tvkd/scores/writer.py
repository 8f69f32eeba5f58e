"""Writing a score store: prepared, filled part by part by any number of processes, finished; resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_result
from nemo_tvkd.scores.identity import FORMAT, Identity, data_fingerprint, dump_json, read_json, show
from nemo_tvkd.scores.shard import MANIFEST, OUTPUT, PLAN, PairScores, encode, holds, part_file

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
            write_result(self.path / PLAN, dump_json(self._plan()), OUTPUT)
        self._reopen_if_damaged()

    def is_complete(self, part: int) -> bool:
        """Whether the part is there, of this identity, with its pairs in their order and every number as written."""
        try:
            return holds(part_file(self.path, part).read_bytes(), self.identity, self.part_pair_ids(part))
        except (OSError, ValueError, MemoryError, NotImplementedError):  # what pyarrow raises for damaged files
            return False

    def write_part(self, part: int, scores: Sequence[PairScores]) -> None:
        """Write one part, whole or not at all; an earlier file of this part is replaced.

        `scores` follow `part_pair_ids(part)` and hold exactly the identity's stems (asserted).
        Raises UserError for a score that is NaN or infinite (named by pair_id) and for a disk that is full.
        """
        assert [row.pair_id for row in scores] == list(self.part_pair_ids(part)), f"part {part}: other pairs"
        write_result(part_file(self.path, part), encode(self.identity, scores), OUTPUT)

    def finish(self) -> None:
        """Rank 0, after everybody has written: write the manifest; again on a finished store, change nothing.

        Raises UserError if a part is missing or damaged.
        """
        missing = [part for part in self.parts() if not self.is_complete(part)]
        if missing:
            raise UserError(
                f"{OUTPUT}: {self.path} lacks {len(missing)} of {len(self.parts())} parts, "
                f"first {part_file(self.path, missing[0]).name}: run the same score command again"
            )
        plan = read_json(self.path / PLAN, OUTPUT, "run the same score command again")
        entries = [
            {"file": file.name, "rows": len(self.part_pair_ids(part)), "sha256": _sha256(file)}
            for part in self.parts()
            for file in [part_file(self.path, part)]
        ]
        size = sum(part_file(self.path, part).stat().st_size for part in self.parts())
        totals = {"bytes": size, "parts": len(entries), "rows": len(self._pair_ids)}
        # The plan's identity: the model's path is then the one the job started with, however often it ran again.
        manifest = dump_json({**plan, "parts": entries, "totals": totals})
        file = self.path / MANIFEST
        if not file.exists() or file.read_bytes() != manifest:
            write_result(file, manifest, OUTPUT)

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
        files = [part_file(self.path, part) for part in self.parts()]
        damaged = [file for file in files if file.name in listed and _sha256(file) != listed[file.name]]
        if damaged or len(listed) != len(files):
            # The manifest goes last: killed in between, the next run still knows which parts are bad.
            for file in [*damaged, manifest]:
                file.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    """The sha256 of a file's bytes (hex); "" where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
