"""What finds pairs in a score store, and a store larger than memory: its verified parts, unpacked once, and mapped.

    $NEMO_TVKD_CACHE/scores/KEY/scores.arrow, or in runs/scores: all parts as they are in memory, one after the other

KEY is the hash of the store's manifest, which holds those of its parts. Only the pages that are read take up memory,
and the system may take these back at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_tvkd.data.once import cache_folder, made_once
from nemo_tvkd.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
FILE = "scores.arrow"
CHUNK = 1 << 16
"""Pairs that are looked up at a time."""


class PairIndex:
    """pair_id -> row in the whole store, in 40 bytes a pair. The same pair twice: its first row counts."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        parts = [np.array(table.column("pair_id").to_pylist(), dtype=bytes) for table in tables]
        ids = np.concatenate(parts) if parts else np.empty(0, dtype="S1")
        self._rows = np.argsort(ids, kind="stable")
        self._ids = ids[self._rows]

    def find(self, pair_ids: Sequence[str]) -> np.ndarray:
        """int64: the row of each pair; -1 for none."""
        wanted = np.array(list(pair_ids), dtype=bytes)
        if not len(self._ids):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where(self._ids[at] == wanted, self._rows[at], -1)

    def missing(self, pair_ids: Sequence[str]) -> np.ndarray:
        """Which of the pairs are not there, by number."""
        found = [self.find(pair_ids[start : start + CHUNK]) for start in range(0, len(pair_ids), CHUNK)]
        return np.flatnonzero(np.concatenate(found) < 0) if found else np.empty(0, dtype=np.int64)


def unpacked(manifest: bytes, tables: Callable[[], Iterable[pa.Table]], store: Path, key: str) -> Path:
    """The file with a store's parts, made now if need be.

    Args:
        manifest: the store's, as it is in its file.
        tables: makes the parts one by one, each verified.
        key: the configuration key that the store came from.

    Raises:
        UserError: what `tables` raises; the file cannot be written.
    """
    folder = cache_folder("scores") / hashlib.sha256(b"%d " % FORMAT + manifest).hexdigest()[:24]

    def make(partial: Path) -> dict[str, Any]:
        import pyarrow as pa

        partial.mkdir(parents=True)
        writer = None
        for table in tables():
            bare = table.replace_schema_metadata(None).combine_chunks()
            writer = writer or pa.ipc.new_file(str(partial / FILE), bare.schema)
            writer.write_table(bare)
        if writer is not None:
            writer.close()
        return {"store": str(store.resolve())}

    made_once(folder, make, "data.streaming", f"{key}: the scores of {store} are unpacked into {folder}")
    return folder / FILE


def mapped_tables(file: Path) -> list[pa.Table]:
    """The parts in such a file; nothing of them is read yet.

    Raises:
        UserError: the file has gone.
    """
    import pyarrow as pa

    if not file.exists():
        if file.parent.exists():
            return []  # a store without parts
        raise UserError(f"data.streaming: {file} has gone: run the same command again")
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    return [pa.Table.from_batches([reader.get_batch(number)]) for number in range(reader.num_record_batches)]
