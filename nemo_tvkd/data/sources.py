"""Files and datasets as records: every format is read, each record has its "file:line".

What a path means depends on what is there: a file by its extension, a folder of such files, a copy of a hub dataset's
folder, a dataset that `datasets` saved, or a hub id. A folder whose files are named for splits is read by its splits.
"""

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemo_tvkd.config.places import Named, parse
from nemo_tvkd.data import hub, public
from nemo_tvkd.errors import UserError, one_line

Numbered = Iterator[tuple[int, object]]
Place = tuple[str, str]
"""(what stands before the line number, its format)."""
Part = tuple[Place, Numbered]


KNOWN = ".jsonl, .json (both also as .gz or .zst), .parquet"
SAVED = ("dataset_info.json", "state.json")
"""What `save_to_disk` writes beside the rows."""


class Unreadable(Exception):
    """Stands in a record's place: why it could not be decoded."""


def read_records(
    path: str, key: str, columns: Collection[str], pairs: bool, files: Counter[Place]
) -> Iterator[tuple[str, object]]:
    """(source, record) of all that `path` names; a record that could not be decoded is the UserError itself.

    Args:
        columns: those of tables that are read, with those of a public set: others need be neither read nor readable.
        pairs: which split is meant where there is one for pairs and one for examples.
        files: counts the records by where they were read from.

    Raises:
        UserError: a path or file that cannot be used; names `key`.
    """
    for (place, form), numbered in _parts(str(Path(path).expanduser()), key, columns, pairs):
        try:
            for number, record in numbered:
                files[place, form] += 1
                source = f"{place}:{number}"
                yield source, UserError(f"{source}: {record}") if isinstance(record, Unreadable) else record
        except (OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{key}: {place} cannot be read: {one_line(error)}") from error


def _parts(path: str, key: str, columns: Collection[str], pairs: bool) -> Iterator[Part]:
    named = parse(path)
    place = Path(named.name)
    if place.is_dir():
        yield from _of_folder(named, key, columns, pairs)
    elif place.exists():
        if not named.whole:
            raise UserError(f"{key}: {path} does not exist: {place} is a file, which has no splits")
        if (form := _form(place)) is None:
            raise UserError(f"{key}: {path} has an unknown extension; known are {KNOWN} and saved datasets")
        yield (path, form), READERS[form](place, columns)
    elif hub.is_hub_id(named, READERS):
        loaded, split = hub.load(named, key, pairs)
        yield (f"{named.place}:{split}", "dataset of the hub"), _dataset_rows(loaded, columns)
    else:
        raise UserError(f"{key}: {path} does not exist")


def _of_folder(named: Named, key: str, columns: Collection[str], pairs: bool) -> Iterator[Part]:
    folder = Path(named.name)
    if _is_saved(folder):
        loaded, split = hub.load_saved(named, key, pairs)
        yield (f"{folder}:{split}" if split else str(folder), "saved dataset"), _dataset_rows(loaded, columns)
        return
    files = own_files(folder)
    if files and not named.config:
        for file in _of_split(files, named, key, pairs):
            form = _form(file) or ""
            yield (str(file), form), READERS[form](file, columns)
    elif not named.whole or any(_form(file) for file in folder.glob("*/**/*") if file.is_file()):
        loaded, split = hub.load(named, key, pairs)
        yield (f"{named.place}:{split}", "copy of a hub dataset"), _dataset_rows(loaded, columns)
    else:
        raise UserError(f"{key}: {folder} holds none of {KNOWN} and is not a saved dataset")


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / "dataset_dict.json").exists() or all((folder / name).exists() for name in SAVED)


def own_files(folder: Path) -> list[Path]:
    """The data files in a folder itself, which are then all that is read of it; none of a saved dataset."""
    return [] if _is_saved(folder) else sorted(file for file in folder.iterdir() if file.is_file() and _form(file))


def _of_split(files: list[Path], named: Named, key: str, pairs: bool) -> list[Path]:
    """The files of a folder that are meant: all, or those of a split where their names tell several."""
    by_split = hub.split_files(files)
    if len(by_split) == 1 and not named.split:
        return files
    if "" in by_split:
        split, other = max(by_split), by_split[""][0].name
        raise UserError(
            f"{key}: {named.name} holds files of the split {split} and others ({other}): name the files that are meant"
        )
    return by_split[hub.choose_split(list(by_split), named, key, pairs)]


def _form(path: Path) -> str | None:
    """The extension that tells how a file is read."""
    return next((extension for extension in READERS if path.name.endswith(extension)), None)


def _opened(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    if path.name.endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _json_lines(path: Path, columns: Collection[str]) -> Numbered:
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                reason = f"{error.msg.removesuffix(' at')} at column {error.pos + 1}"
                yield number, Unreadable(f"unreadable JSON: {reason}")
            except (ValueError, RecursionError) as error:
                yield number, Unreadable(f"unreadable JSON: {one_line(error)}")


def _json_list(path: Path, columns: Collection[str]) -> Numbered:
    with _opened(path) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"["):
            stream.seek(0)
            yield from enumerate(json.loads(stream.read().decode("utf-8-sig")), 1)
            return
    yield from _json_lines(path, columns)  # many data sets call their JSON lines ".json"


def _parquet(path: Path, columns: Collection[str]) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            read = _read_columns(names, columns)
            batches = file.iter_batches(1000, columns=read) if read else None
            yield from _table_rows(names, file.metadata.num_rows, batches)
    except pa.ArrowException as error:
        raise ValueError(one_line(error)) from error


def _dataset_rows(loaded: Any, columns: Collection[str]) -> Numbered:
    """Of a `datasets.Dataset`."""
    names = loaded.column_names
    read = _read_columns(names, columns)
    # "arrow" undoes a saved set_format, which would hand out tensors
    batches = loaded.select_columns(read).with_format("arrow").iter(1000) if read else None
    yield from _table_rows(names, len(loaded), batches)


def _read_columns(names: list[str], columns: Collection[str]) -> list[str]:
    return [name for name in names if name in columns or name in public.columns_of(names)]


def _table_rows(names: list[str], count: int, batches: Iterator[Any] | None) -> Numbered:
    """Rows of Arrow tables that hold the columns that are read only; of the others only the names are known."""
    empty = dict.fromkeys(names)
    rows = (row for batch in batches for row in _decoded(batch)) if batches else ({} for _ in range(count))
    for number, row in enumerate(rows, 1):
        yield number, empty | row if isinstance(row, dict) else row


def _decoded(table: Any) -> list[Any]:
    """The rows of an Arrow table or batch; `Unreadable` stands for one that cannot be (text that is not UTF-8)."""
    try:
        return list(table.to_pylist())
    except (ValueError, OverflowError):
        return [_decoded_row(table.slice(at, 1)) for at in range(table.num_rows)]


def _decoded_row(row: Any) -> Any:
    try:
        return row.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Unreadable(f"unreadable row: {one_line(error)}")


READERS: dict[str, Callable[[Path, Collection[str]], Numbered]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.zst": _json_lines,
    ".json": _json_list,
    ".json.gz": _json_list,
    ".json.zst": _json_list,
    ".parquet": _parquet,
}
