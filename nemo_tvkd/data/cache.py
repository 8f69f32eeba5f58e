"""Rows that are tokenised once: a cache of memory-mapped ids, keyed by everything that decides about them.

    $NEMO_TVKD_CACHE/tokens/KEY/, or runs/tokens/KEY/: manifest.json and the file of `token_table`

The key is made of the files' names, sizes and times, of tokenizer, template and lengths, and of the program that
reads them; so a cache is never stale, and an old one can be deleted when nothing runs.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_tvkd.config.places import parse
from nemo_tvkd.data import hub
from nemo_tvkd.data.chat_template import TEMPLATE_DATE
from nemo_tvkd.data.once import cache_folder, made_once
from nemo_tvkd.data.sources import READERS, own_files
from nemo_tvkd.data.token_table import TokenTable, write_table
from nemo_tvkd.data.tokenized import TokenizeReport
from nemo_tvkd.errors import UserError

FORMAT = 2
PROGRESS_SECONDS = 10
Batches = Callable[[TokenizeReport], Iterator[pa.RecordBatch]]
"""Makes the rows, batch by batch; the report is complete when they have ended."""


def cached_tokens(
    ingredients: dict[str, Any], paths: list[str], key: str, pairs: bool, batches: Batches
) -> tuple[TokenTable, dict[str, Any]]:
    """The rows of `paths` from their cache, made now if need be, and its manifest, with the figures of reading them.

    Args:
        ingredients: what decides about the ids besides the data and this program (JSON, as `ids_of` makes it).

    Raises:
        UserError: what `batches` raises, data that change while they are read, a folder that cannot be written.
    """
    data = data_state(paths, key, pairs)
    full = {"format": FORMAT, "data": data, "pairs": pairs, "program": program(), **ingredients}
    digest = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()
    folder = cache_folder("tokens") / digest[:24]

    def make(partial: Path) -> dict[str, Any]:
        report = TokenizeReport()
        rows = write_table(partial, _shown(batches(report), f"{key}: tokenised once, into {folder}"))
        if data_state(paths, key, pairs) != data:
            raise UserError(f"{key}: {', '.join(paths)} changed while it was read: run the same command again")
        return {"rows": rows, **report.figures(), "made_of": full}

    manifest = made_once(folder, make, f"{key} is tokenised into {folder}")
    return TokenTable(folder), manifest


def _shown(batches: Iterator[pa.RecordBatch], title: str) -> Iterator[pa.RecordBatch]:
    """The batches; says now and then how many rows there have been."""
    start = shown = time.monotonic()
    rows = 0
    for batch in batches:
        yield batch
        rows += batch.num_rows
        if (now := time.monotonic()) - shown > PROGRESS_SECONDS:
            shown = now
            print(f"{title}: {rows} rows, {rows / (now - start):.0f} rows/s", file=sys.stderr, flush=True)
    if shown > start:
        print(f"{title}: {rows} rows in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def data_state(paths: list[str], key: str, pairs: bool) -> list[Any]:
    """What files are read, each with its size (bytes) and time (ns); of a dataset of the hub, its fingerprint.

    The paths are there as they are typed, too: sources are named by them; and the key, which chooses the split.
    """
    return [key, *([path, _state(str(Path(path).expanduser()), key, pairs)] for path in paths)]


def _state(path: str, key: str, pairs: bool) -> Any:
    named = parse(path)
    place = Path(named.name)
    if place.exists():
        files = [place] if place.is_file() else _files(place, named.config)
        return [[str(file.resolve()), (s := file.stat()).st_size, s.st_mtime_ns] for file in files]
    if hub.is_hub_id(named, READERS):
        loaded, split = hub.load(named, key, pairs)
        return [split, loaded._fingerprint]
    return None  # reading it will tell what is wrong


def _files(folder: Path, config: str) -> list[Path]:
    """What is read of a folder, or may say how: a run, and these caches, may lie in it as well."""
    if not config and (own := own_files(folder)):
        return own
    ours = cache_folder("tokens").resolve()
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not file.resolve().is_relative_to(ours))


@cache
def program() -> dict[str, str]:
    """What turns text into ids: this package's reading of data, and the libraries that it leaves that to."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return {"sources": digest.hexdigest(), **{name: version(name) for name in ("transformers", "tokenizers", "jinja2")}}


def ids_of(template: Any, **settings: Any) -> dict[str, Any]:
    """The ingredients of ids: a `Template` with its tokenizer, and the settings it is used with."""
    tokenizer = template.tokenizer
    return {
        "tokenizer": tokenizer_state(tokenizer),
        "template": {
            "name": template.name,
            "fingerprint": template.fingerprint,
            "end_ids": sorted(template._end_ids),
            "tokens": [template._bos, template._eos, template._lead],
            "setting": template._setting,
            "date": str(TEMPLATE_DATE),
        },
        "settings": {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()},
    }


def tokenizer_state(tokenizer: Any) -> str:
    """sha256 over all that decides how text is split: more than the fingerprint, which is of the vocabulary alone."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    parts: list[Any] = [type(tokenizer).__name__, special, bool(getattr(tokenizer, "split_special_tokens", False))]
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        parts.append(backend.to_str())
    else:
        options = {n: v for n, v in tokenizer.init_kwargs.items() if n not in ("name_or_path", "vocab_file")}
        parts += [sorted(tokenizer.get_vocab().items()), repr(sorted(options.items()))]
        if file := getattr(tokenizer, "vocab_file", None):
            parts.append(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
