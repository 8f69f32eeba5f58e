"""Preference pairs and examples from files: every file format is read, every bad row is named.

Files become records (plain JSON-like objects, each with its "file:line"), records become `Row`s. A mistake in a row is
a `UserError` that starts with "file:line:"; a mistake about a whole file names the configuration key and the path.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tvkd.data import hub
from nemo_tvkd.data.records import COLUMNS, REQUIRABLE, Row, parse_record, row_from_record
from nemo_tvkd.errors import UserError

__all__ = ["ReadReport", "Row", "read_rows", "row_from_record"]


@dataclass
class ReadReport:
    """What was read: good rows, how often each layout was recognised, and the bad rows ("file:line: what is wrong")."""

    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def read_rows(
    paths: Sequence[str],
    *,
    need_rejected: bool = True,
    on_bad_row: str = "error",
    key: str = "data.train",
    require: Mapping[str, str] = {},
) -> tuple[list[Row], ReadReport]:
    """Read every row of `paths` in order; `need_rejected` asks for pairs, else examples are enough.

    Args:
        require: what each row's columns must hold ("rewards", "margin"), with the setting ("key=value") that asks for
            it: a row without a finite number there is bad. Rewards that nothing asks for may be absent or null; a
            margin is then not looked at.

    Raises:
        UserError: a path or file that cannot be used (names `key`), the first bad row if `on_bad_row` is "error",
            or nothing but bad rows.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    assert set(require) <= set(REQUIRABLE), f"{require}: none but {REQUIRABLE} can be required"
    columns = COLUMNS | ({"margin"} & set(require))
    rows: list[Row] = []
    report = ReadReport()
    for path in paths:
        empty = True
        for source, record in _records(Path(path).expanduser(), key, columns):
            empty = False
            try:
                row, layout = parse_record(record, source, need_rejected, require)
            except UserError as error:
                if on_bad_row == "error":
                    raise
                report.bad.append(str(error))
            else:
                rows.append(row)
                report.layouts[layout] += 1
        if empty:
            raise UserError(f"{key}: {path} is empty: it holds no rows")
    if report.bad and not rows:
        raise UserError(f"{key}: each of the {len(report.bad)} rows is bad; the first: {report.bad[0]}")
    report.rows = len(rows)
    return rows, report


Numbered = Iterator[tuple[int, object]]


def _records(path: Path, key: str, columns: Collection[str]) -> Iterator[tuple[str, object]]:
    """(source, record) of a file or directory; a record that could not be decoded is the UserError itself.

    Tables are read in `columns` alone: the others need be neither read nor readable.
    """
    if dataset := hub.find_dataset(path, key, READERS):
        for number, record in _dataset_rows(hub.load(*dataset, key), columns):
            yield f"{':'.join(dataset)}:{number}", record
        return
    if not path.exists():
        raise UserError(f"{key}: {path} does not exist")
    if path.is_dir() and not _is_saved_dataset(path):
        files = sorted(file for file in path.iterdir() if file.is_file() and _reader(file))
        if not files:
            raise UserError(f"{key}: {path} holds none of {', '.join(READERS)} and is no saved dataset")
        for file in files:
            yield from _records(file, key, columns)
        return
    reader = _reader(path)
    try:
        if path.is_dir():
            numbered = _saved_dataset(path, columns, key.rpartition(".")[2])
        elif reader:
            numbered = reader(path, columns)
        else:
            known = ", ".join(READERS)
            raise UserError(f"{key}: {path} has an unknown extension; known are {known} and saved datasets")
        for number, record in numbered:
            yield f"{path}:{number}", record
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read: {_one_line(error)}") from error


def _reader(path: Path) -> Callable[[Path, Collection[str]], Numbered] | None:
    return next((reader for extension, reader in READERS.items() if path.name.endswith(extension)), None)


def _json_lines(path: Path, columns: Collection[str]) -> Numbered:
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                reason = f"{error.msg.removesuffix(' at')} at column {error.pos + 1}"
                yield number, UserError(f"{path}:{number}: unreadable JSON: {reason}")
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"{path}:{number}: unreadable JSON: {_one_line(error)}")


def _json_list(path: Path, columns: Collection[str]) -> Numbered:
    text = path.read_bytes().decode("utf-8-sig")
    if text.lstrip().startswith("["):
        yield from enumerate(json.loads(text), 1)
    else:  # many data sets call their JSON lines ".json"
        yield from _json_lines(path, columns)


def _parquet(path: Path, columns: Collection[str]) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in columns]
            yield from _table_rows(names, file.metadata.num_rows, file.iter_batches(columns=wanted) if wanted else None)
    except pa.ArrowException as error:
        raise ValueError(_one_line(error)) from error


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or all(
        (path / n).exists() for n in ("dataset_info.json", "state.json")
    )


def _saved_dataset(path: Path, columns: Collection[str], split: str) -> Numbered:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as whatever the first reader of it happens to raise
        raise ValueError(_one_line(error)) from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = list(loaded)
        if split not in splits and len(splits) != 1:
            raise ValueError(f"it holds the splits {', '.join(splits)}: name one, for example {path / splits[0]}")
        name = split if split in splits else splits[0]
        loaded = loaded[name]
    yield from _dataset_rows(loaded, columns)


def _dataset_rows(loaded: Any, columns: Collection[str]) -> Numbered:
    """Of a `datasets.Dataset`."""
    names = loaded.column_names
    wanted = [name for name in names if name in columns]
    # "arrow" undoes a saved set_format, which would hand out tensors
    batches = loaded.select_columns(wanted).with_format("arrow").iter(1000) if wanted else None
    yield from _table_rows(names, len(loaded), batches)


def _table_rows(names: list[str], count: int, batches: Iterator[Any] | None) -> Numbered:
    """Rows of Arrow tables that hold the wanted columns only; of the others only the names are known."""
    rows = (row for batch in batches for row in batch.to_pylist()) if batches else ({} for _ in range(count))
    for number, row in enumerate(rows, 1):
        yield number, dict.fromkeys(names) | row


READERS: dict[str, Callable[[Path, Collection[str]], Numbered]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
