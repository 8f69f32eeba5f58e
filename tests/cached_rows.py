"""Token caches as the tests look at them: rows compared field by field, and a process of its own that tokenises."""

import contextlib
import ctypes
import gc
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from nemo_tvkd.data.pairs import iter_rows
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare.encoder import Encoder

LONG = {"max_length": 100_000}
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
EMPTY = (87, 517, 926, 1104)


def plain(value: Any) -> Any:
    """A value as one that == compares: arrays with their kind, dataclasses with their class."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, {field.name: plain(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return (type(value).__name__, value)


def encoder(tokenizer: Any, template: str = "plain", **settings: Any) -> Encoder:
    """An encoder with `settings` of the data section."""
    data = {"max_length": 2048, "max_prompt_length": None, "on_bad_row": "error", "assistant_turns": "last"}
    return Encoder(tokenizer, Template(tokenizer, template), SimpleNamespace(**data | settings))


def read(made: Encoder, *paths: Path, pairs: bool = True, **kwargs: Any) -> tuple[Any, str]:
    """The rows, and the line about them."""
    lines: list[str] = []
    rows = made.read(list(map(str, paths)), "data.train", pairs, lines.append, **kwargs)
    (line,) = lines
    return rows, line


def one_by_one(
    made: Encoder, *paths: Path, pairs: bool = True, positions: bool = False, require: Mapping[str, str] = {}
) -> list[Tokenized]:
    """The rows that can be used, read and tokenised one by one, in memory."""
    data, rows = made.data, []
    for row in iter_rows(list(map(str, paths)), need_rejected=pairs, on_bad_row="skip", require=require):
        turns = "last" if pairs else data.assistant_turns
        with contextlib.suppress(UserError):
            rows.append(made.template.encode(row, data.max_length, data.max_prompt_length, positions, turns))
    return rows


def caches(tokens: Path) -> list[str]:
    """The folders that look whole."""
    return sorted(folder.name for folder in tokens.iterdir() if folder.name[0] != ".") if tokens.exists() else []


def rests(tokens: Path) -> list[str]:
    """What is in the folder besides, but for locks."""
    return [rest.name for rest in tokens.iterdir() if rest.name[0] == "." and not rest.name.endswith(".lock")]


def anonymous_memory() -> int:
    """MiB of this process that are its own: what is mapped from files is the system's to take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024


def watch(most: list[int]) -> None:
    """Keep the greatest `anonymous_memory` there has been in `most[0]`."""
    while True:
        most[0] = max(most[0], anonymous_memory())
        time.sleep(0.03)


if __name__ == "__main__":  # TOKENIZER FILE: read a file of pairs, and go through them
    from nemo_tvkd.data.tokenizer import load_tokenizer

    loaded = encoder(load_tokenizer(sys.argv[1]), **LONG)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or rows would fit into what loading has left
    before, most = anonymous_memory(), [0]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    try:
        rows, _ = read(loaded, Path(sys.argv[2]))
    except UserError as error:
        sys.exit(str(error))
    tokens = sum(len(row.chosen_ids) + len(row.rejected_ids) + len(row.prompt_ids) for row in rows)
    print(len(rows), tokens, most[0] - before)
