"""One part of a score store as a Parquet file: the same scores give the same bytes, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.identity import WHAT, Identity, data_fingerprint

if TYPE_CHECKING:
    import pyarrow as pa  # imported where it is used: the command line must start without it

SIDES = ("chosen", "rejected")
OUTPUT = "score.output"  # the key that names the directory while it is being written
_STAMP = b"nemo_tvkd.sha256"  # Parquet metadata: hash of a part's identity and content


@dataclass
class PairScores:
    """The scores of one pair; what was not asked for is None.

    Values are float32, one per response state s_1..s_{T+1} (per response token for the action-dependent kinds);
    logprob is summed over the response, in nats; reward is in the scoring model's reward units.
    """

    pair_id: str
    chosen_value: np.ndarray | None = None
    rejected_value: np.ndarray | None = None
    chosen_logprob: float | None = None
    rejected_logprob: float | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None


def columns_of(identity: Identity) -> list[str]:
    return [f"{side}_{name}" for name in identity.what for side in SIDES]


def _schema(identity: Identity) -> pa.Schema:
    import pyarrow as pa

    # Nothing may be null: that also saves the bytes that would say so for every value.
    values = pa.list_(pa.field("element", pa.float32(), nullable=False))
    columns = [(name, values if name.endswith("_value") else pa.float64()) for name in columns_of(identity)]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in [("pair_id", pa.string()), *columns]])


def _stamp(identity: Identity, table: pa.Table) -> bytes:
    """sha256 over what the columns do not show (weights, temperature, lengths) and over the columns.

    Parquet's own page checksums leave its headers uncovered, and a file cannot hold the hash of its bytes; this
    tells in an unfinished store, which has no manifest yet, whether a part says what was written.
    """
    digest = hashlib.sha256(json.dumps(identity.compared(), sort_keys=True).encode())
    digest.update(data_fingerprint(table.column("pair_id").to_pylist()).encode())
    for name in columns_of(identity):
        column = table.column(name).combine_chunks()
        if name.endswith("_value"):
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()


def encode(identity: Identity, scores: Sequence[PairScores]) -> bytes:
    """The Parquet file of one part: the same bytes for the same scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for row in scores:
        _check_finite(row, columns_of(identity))
    schema = _schema(identity)
    arrays = [pa.array([row.pair_id for row in scores], pa.string())]
    encoding = {"pair_id": "PLAIN"}
    for name in columns_of(identity):
        cells = [getattr(row, name) for row in scores]
        if not name.endswith("_value"):
            arrays.append(pa.array(cells, pa.float64()))
            encoding[name] = "PLAIN"
            continue
        cells = [np.asarray(cell, dtype=np.float32) for cell in cells]
        offsets = np.cumsum([0, *(len(cell) for cell in cells)]).astype(np.int32)
        arrays.append(pa.ListArray.from_arrays(offsets, np.concatenate(cells), type=schema.field(name).type))
        # Signs and exponents hardly vary: kept apart from the noise of the mantissas they compress to nothing.
        encoding[f"{name}.list.element"] = "BYTE_STREAM_SPLIT"
    table = pa.Table.from_arrays(arrays, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({_STAMP: _stamp(identity, table)}),
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        column_encoding=encoding,
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def decode(data: bytes) -> pa.Table:
    """The rows of a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def holds(data: bytes, identity: Identity, pair_ids: Sequence[str]) -> bool:
    """Whether a part is of this identity, with these pairs in their order and every number as written.

    Damaged bytes give False or whatever pyarrow raises for them.
    """
    table = decode(data)
    return (
        table.schema.equals(_schema(identity))
        and table.column("pair_id").to_pylist() == list(pair_ids)
        and table.schema.metadata == {_STAMP: _stamp(identity, table)}
    )


def _check_finite(row: PairScores, columns: Sequence[str]) -> None:
    present = {f"{side}_{name}" for name in WHAT for side in SIDES if getattr(row, f"{side}_{name}") is not None}
    assert present == set(columns), f"pair {row.pair_id}: scores {sorted(present)}, the store has {sorted(columns)}"
    for name in columns:
        # As stored: a value beyond float32's range is infinite there.
        with np.errstate(over="ignore"):
            numbers = np.asarray(getattr(row, name), dtype=np.float32 if name.endswith("_value") else np.float64)
        assert numbers.ndim == name.endswith("_value"), f"pair {row.pair_id}: {name} of shape {numbers.shape}"
        if not np.isfinite(numbers).all():
            where = f" at position {int(np.argmin(np.isfinite(numbers)))}" if numbers.ndim else ""
            raise UserError(
                f"score.model: pair {row.pair_id}: {name} is NaN or infinite{where}: "
                "the model overflows or its weights are damaged; check them, or score in a wider precision"
            )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen, nor left behind by a crash, with part of its bytes under its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)  # the new name, too, must survive a power cut
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise UserError(
            f"{OUTPUT}: cannot write {path}: {error.strerror}; make room or give a writable directory, "
            "then run the same score command again"
        ) from error
