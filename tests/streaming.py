"""Streaming as the tests ask for it: items compared field by field, and a process of its own that tokenises."""

import ctypes
import gc
import pickle
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare.encoder import Encoder

STREAMING = "data.streaming=true"
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


def assert_same_elements(lazy: Sequence[Any], listed: Sequence[Any]) -> None:
    """The same elements by iteration, index, slice and after a journey to another process, which is a short one."""
    assert isinstance(listed, list)
    assert not isinstance(lazy, list)
    expected = [plain(each) for each in listed]
    assert [plain(each) for each in lazy] == expected
    assert [plain(lazy[n - len(listed)]) for n in range(len(listed))] == expected
    assert [plain(each) for each in lazy[1::2]] == expected[1::2]
    assert [plain(each) for each in lazy[::-1][:2]] == expected[::-1][:2]
    sent = pickle.dumps(lazy)
    assert [plain(each) for each in pickle.loads(sent)] == expected
    whole = pickle.dumps(list(listed))
    assert len(sent) < max(len(whole) / 3, 4000), f"{len(sent)} bytes are sent, of {len(whole)}"


def encoder(tokenizer: Any, streaming: bool = True, template: str = "plain", **settings: Any) -> Encoder:
    """An encoder with `settings` of the data section."""
    data = {"max_length": 2048, "max_prompt_length": None, "on_bad_row": "error", "assistant_turns": "last"}
    return Encoder(
        tokenizer, Template(tokenizer, template), SimpleNamespace(**data | {"streaming": streaming} | settings)
    )


def read(made: Encoder, *paths: Path, pairs: bool = True, **kwargs: Any) -> tuple[Any, str]:
    """The rows, and what was said."""
    said: list[str] = []
    rows = made.read(list(map(str, paths)), "data.train", pairs, said.append, **kwargs)
    (line,) = said
    return rows, line


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


if __name__ == "__main__":  # TOKENIZER FILE STREAMING: read a file of pairs, and go through them
    from nemo_tvkd.data.tokenizer import load_tokenizer

    loaded = encoder(load_tokenizer(sys.argv[1]), streaming=sys.argv[3] == "true", **LONG)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or rows would fit into what loading has left
    before, most = anonymous_memory(), [0]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    try:
        found, _ = read(loaded, Path(sys.argv[2]))
    except UserError as error:
        sys.exit(str(error))
    tokens = sum(len(row.chosen_ids) + len(row.rejected_ids) + len(row.prompt_ids) for row in found)
    print(len(found), tokens, most[0] - before)
