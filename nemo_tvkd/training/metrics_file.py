"""metrics.jsonl: its writer and its readers. No NeMo."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_tvkd.files import write_whole

TAIL_BYTES = 64 * 1024


class MetricsFile:
    """metrics.jsonl. A resumed run repeats the steps after its checkpoint: their old rows are taken out."""

    def __init__(self, directory: Path, start: int) -> None:
        self.file = directory / "metrics.jsonl"
        if self.file.exists():
            _drop_rows_after(self.file, start)

    def write(self, row: dict[str, Any], step: int) -> None:
        with open(self.file, "a") as stream:
            stream.write(json.dumps(row) + "\n")

    def close(self, code: int) -> None: ...


def _drop_rows_after(file: Path, step: int) -> None:
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the row that was being written when the run died
    write_whole(file, "".join(line + "\n" for line in kept))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, up to the first that is not whole (the one being written, say)."""
    try:
        with open(file, errors="replace") as lines:
            return _rows(lines)
    except OSError:
        return []


def _rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if isinstance(row, dict) and number(row.get("step")) is not None:
            rows.append(row)
    return rows


def last_rows(file: Path) -> list[dict[str, Any]]:
    """The last rows of a metrics.jsonl, without reading the rest."""
    return _rows(tail(file))


def number(value: Any) -> float | None:
    """The value where it is a finite number, else None."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if ok else None


def tail(file: Path, size: int = TAIL_BYTES) -> list[str]:
    """The last lines of a file that may be large; none where there is no file."""
    try:
        with open(file, "rb") as stream:
            start = max(stream.seek(0, 2) - size, 0)
            stream.seek(start)
            lines = stream.read(size).decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if start else lines
