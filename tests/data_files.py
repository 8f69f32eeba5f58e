"""The same records in every file format that is read."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_tvkd.data.pairs import ReadReport, Row, iter_rows

Records = list[dict[str, Any]]


def _lines(records: Records, end: str = "\n") -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records).encode()


def _zstd(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


def _copy(path: Path, records: Records) -> None:
    """As a dataset of the hub is laid out."""
    (path / "data").mkdir(parents=True)
    half = len(records) // 2
    for number, part in enumerate((records[:half], records[half:])):
        pq.write_table(pa.Table.from_pylist(part), path / f"data/train-0000{number}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(records[:1]), path / "data/test-00000-of-00001.parquet")


def _saved(path: Path, records: Records) -> None:
    datasets.Dataset.from_list(records).save_to_disk(str(path))


def _saved_splits(path: Path, records: Records) -> None:
    made = datasets.Dataset.from_list(records)
    datasets.DatasetDict(test=made.select([0]), train=made).save_to_disk(str(path))


FORMATS: dict[str, tuple[str, Callable[[Path, Records], object]]] = {
    "JSON lines": ("a.jsonl", lambda path, records: path.write_bytes(_lines(records))),
    "JSON lines with BOM and CRLF": (
        "b.jsonl",
        lambda path, records: path.write_bytes(b"\xef\xbb\xbf" + _lines(records, "\r\n")),
    ),
    "JSON lines, gzip": ("a.jsonl.gz", lambda path, records: path.write_bytes(gzip.compress(_lines(records)))),
    "JSON lines, zstd": ("a.jsonl.zst", lambda path, records: _zstd(path, _lines(records))),
    "JSON": ("a.json", lambda path, records: path.write_text(json.dumps(records, indent=1))),
    "JSON, gzip": ("a.json.gz", lambda path, records: path.write_bytes(gzip.compress(json.dumps(records).encode()))),
    "Parquet": ("a.parquet", lambda path, records: pq.write_table(pa.Table.from_pylist(records), path)),
    "saved dataset": ("saved", _saved),
    "saved dataset with splits": ("splits", _saved_splits),
    "copy of a hub dataset": ("copy", _copy),
}
"""(a file's or folder's name, what writes records there)."""


def read_rows(paths: Sequence[str], **how: Any) -> tuple[list[Row], ReadReport]:
    """All rows of `paths`, and what was read; arguments as those of `iter_rows`."""
    report = ReadReport()
    return list(iter_rows(paths, report=report, **how)), report
