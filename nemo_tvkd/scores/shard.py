"""One part of a score store as a Parquet file: the same scores give the same bytes, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.identity import Identity, data_fingerprint

if TYPE_CHECKING:
    import pyarrow as pa  # imported where it is used: the command line must start without it

SIDES = ("chosen", "rejected")
PLAN = "plan.json"
MANIFEST = "manifest.json"  # of a store: its identity, and every part with its sha256
OUTPUT = "score.output"  # the key that names the directory while it is being written
_STAMP = b"nemo_tvkd.sha256"  # Parquet metadata: hash of a part's identity and content


def part_file(store: Path, part: int) -> Path:
    """Where a store has its part of this number."""
    return store / f"part-{part:06d}.parquet"


@dataclass
class PairScores:
    """The scores of one pair.

    Attributes:
        scores: stem (see `Identity.stems`) -> of the chosen and of the rejected response. Values are float32 arrays:
            [T + 1], V at the response states s_1..s_{T+1} ([T] for the action-dependent kinds), or [2], V(s_1) and
            V(s_{T+1}), where only the ends are stored; logprob is a float, summed over the response, in nats; reward is
            a float in the scoring model's reward units.
    """

    pair_id: str
    scores: dict[str, tuple[Any, Any]]


def columns_of(identity: Identity) -> dict[str, tuple[str, int]]:
    """Column -> its stem and the position of its side in SIDES, in the file's order."""
    return {f"{name}_{stem}": (stem, side) for stem in identity.stems for side, name in enumerate(SIDES)}


def _schema(identity: Identity) -> pa.Schema:
    import pyarrow as pa

    # Nothing may be null: that also saves the bytes that would say so for every value.
    values = pa.list_(pa.field("element", pa.float32(), nullable=False))
    kinds = {
        column: values if stem in identity.value_stems else pa.float64()
        for column, (stem, _) in columns_of(identity).items()
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in {"pair_id": pa.string(), **kinds}.items()])


def _stamp(identity: Identity, table: pa.Table) -> bytes:
    """sha256 over what the columns do not show (weights, temperature, lengths) and over the columns.

    Parquet's own page checksums leave its headers uncovered, and a file cannot hold the hash of its bytes; this
    tells in an unfinished store, which has no manifest yet, whether a part says what was written, and in a finished
    one whether it was written under the manifest's identity.
    """
    digest = hashlib.sha256(json.dumps(identity.compared(), sort_keys=True).encode())
    digest.update(data_fingerprint(table.column("pair_id").to_pylist()).encode())
    for name, (stem, _) in columns_of(identity).items():
        column = table.column(name).combine_chunks()
        if stem in identity.value_stems:
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()


def encode(identity: Identity, scores: Sequence[PairScores]) -> bytes:
    """The Parquet file of one part: the same bytes for the same scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for row in scores:
        _check(row, identity)
    schema = _schema(identity)
    arrays = [pa.array([row.pair_id for row in scores], pa.string())]
    encoding = {"pair_id": "PLAIN"}
    for name, (stem, side) in columns_of(identity).items():
        cells = [row.scores[stem][side] for row in scores]
        if stem not in identity.value_stems:
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


def belongs(table: pa.Table, identity: Identity) -> bool:
    """Whether a part was written under this identity, and every number is as written."""
    return table.schema.equals(_schema(identity)) and table.schema.metadata == {_STAMP: _stamp(identity, table)}


def holds(data: bytes, identity: Identity, pair_ids: Sequence[str]) -> bool:
    """Whether a part is of this identity, with these pairs in their order and every number as written.

    Damaged bytes give False or whatever pyarrow raises for them.
    """
    table = decode(data)
    return belongs(table, identity) and table.column("pair_id").to_pylist() == list(pair_ids)


def read_part(file: Path, sha256: str, identity: Identity, key: str) -> pa.Table:
    """A part of a finished store.

    Raises:
        UserError: it is not as its manifest says; names `key`, from which the store came, and the file.
    """
    again = "run the same score command again"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: cannot read {file} ({error.strerror}): {again}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        fault = f"is truncated or corrupted (its sha256 is not the one in {MANIFEST})"
        raise UserError(f"{key}: {file} {fault}: {again}, it rewrites this part")
    table = decode(data)
    if not belongs(table, identity):
        raise UserError(f"{key}: {file.parent / MANIFEST} does not say what {file.name} holds: {again}")
    return table


def _check(row: PairScores, identity: Identity) -> None:
    """Whether a pair has what the identity asks for, in its shape (asserted), and all of it is finite (UserError)."""
    stems = identity.stems
    assert set(row.scores) == set(stems), f"pair {row.pair_id}: scores {[*row.scores]}, the store has {stems}"
    for name, (stem, side) in columns_of(identity).items():
        is_value = stem in identity.value_stems
        # As stored: a value beyond float32's range is infinite there.
        with np.errstate(over="ignore"):
            numbers = np.asarray(row.scores[stem][side], dtype=np.float32 if is_value else np.float64)
        assert numbers.ndim == is_value, f"pair {row.pair_id}: {name} of shape {numbers.shape}"
        if is_value and identity.value_storage == "ends":
            assert len(numbers) == 2, f"pair {row.pair_id}: {name} has {len(numbers)} ends"
        if not np.isfinite(numbers).all():
            where = f" at position {int(np.argmin(np.isfinite(numbers)))}" if numbers.ndim else ""
            raise UserError(
                f"score.model: pair {row.pair_id}: {name} is NaN or infinite{where}: "
                "the model overflows or its weights are damaged; check them, or score in a wider precision"
            )
