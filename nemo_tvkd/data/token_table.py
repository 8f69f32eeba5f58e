"""Tokenised rows in an Arrow file: written batch by batch, memory-mapped, a row made when it is asked for."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_tvkd.data.lazy import Lazy
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError

FILE = "tokens.arrow"
NAMES = "surrogateescape"
"""Names of files may be any bytes."""
IDS, MASK, NUMBER = pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.float64()
TYPES = {
    **{"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, "pair_id": pa.binary(16), "source": pa.binary()},
    **{"truncated": pa.bool_(), "chosen_reward": NUMBER, "rejected_reward": NUMBER, "margin": NUMBER},
    **{"chosen_positions": IDS, "rejected_positions": IDS, "chosen_mask": MASK},
}
SCHEMA = pa.schema({**{field.name: TYPES[field.name] for field in fields(Tokenized)}, "source_key": pa.uint64()})
"""The fields of `Tokenized`, null where a row has none, and a hash of the source, by which rows are looked up."""


def to_batch(rows: Sequence[Tokenized]) -> pa.RecordBatch:
    """Rows as a part of the file."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Tokenized)}
    columns["pair_id"] = [bytes.fromhex(pair_id) for pair_id in columns["pair_id"]]
    columns["source"] = [source.encode(errors=NAMES) for source in columns["source"]]
    digests = (hashlib.blake2b(source, digest_size=8).digest() for source in columns["source"])
    columns["source_key"] = [int.from_bytes(digest, "little") for digest in digests]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def write_table(folder: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write the file into a new folder, one batch in memory at a time; how many rows it has."""
    folder.mkdir(parents=True)
    rows = 0
    with pa.OSFile(str(folder / FILE), "wb") as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


class TokenTable(Lazy[Tokenized]):
    """The rows of a folder that `write_table` filled. Pickled, it is the folder's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(folder / FILE))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{folder} cannot be read ({error}): run the same command again") from error
        self._batches = self._table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTable, (self.folder,)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> np.ndarray:
        column = self._table.column(name)
        if name == "pair_id":
            return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, 16)
        return np.asarray(column.to_numpy())

    def _one(self, index: int) -> Tokenized:
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        at = index - int(self._ends[number]) + batch.num_rows
        values = {name: _value(batch.column(name)[at]) for name in TYPES}
        values["pair_id"], values["source"] = values["pair_id"].hex(), values["source"].decode(errors=NAMES)
        return Tokenized(**values)


def _value(scalar: pa.Scalar) -> Any:
    """An array is a read-only view of the file, but for one of bool."""
    if scalar.is_valid and isinstance(scalar, pa.ListScalar):
        return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()
