"""Files of a benchmark: written whole, or line by line; and which settings the finished ones were made with."""

import json
from pathlib import Path
from typing import Any

from nemo_tvkd import files
from nemo_tvkd.errors import UserError

SETTINGS = "settings.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen with part of its text under its name.

    Raises:
        UserError: it cannot be written; names `output`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, text)
    except OSError as error:
        raise UserError(f"output: cannot write {path}: {error.strerror}; then run the same command again") from error


def as_json(value: Any) -> str:
    """Indented JSON with a newline; what JSON does not know (a dtype, say) as text."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """One object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a killed process may have left with half a line at its end; [] where there is none."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def claim(folder: Path, part: str, settings: dict[str, Any]) -> None:
    """Note with which settings a part of the results is made, so that no other ones are mixed with it.

    Raises:
        UserError: it was begun with other settings; names the first that differs.
    """
    file = folder / SETTINGS
    try:
        known = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"output: {file} is damaged: give another folder") from error
    before = known.setdefault(part, settings)
    for name in [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"output: {folder} has {part} with {name} {before.get(name)}, and this is {settings[name]}: "
            "give another folder"
        )
    write_whole(file, as_json(known))
