"""Rows that are tokenised once, and found again by what they are made of."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bad_input import write_rows
from cached_rows import REAL, caches, encoder, one_by_one, plain, read
from chat_templates import MISTRAL_CHAT
from datasets import Dataset

from nemo_tvkd.data import cache, encoding
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare import encoder as encoder_module

TURNS = [("user", "One?"), ("assistant", "Two."), ("user", "Three? Four?"), ("assistant", "Five, six.")]
TALK = [{"role": role, "content": text} for role, text in TURNS]
PAIRS: list[dict[str, Any]] = [
    {"prompt": TALK[:1], "chosen": f"Answer {n}, of some length.", "rejected": "No " * (n + 1)} for n in range(6)
]
JUDGED = [row | {"chosen_reward": 2.5 * n, "rejected_reward": -1, "margin": n} for n, row in enumerate(PAIRS)]

pytestmark = pytest.mark.usefixtures("without_nemo", "tokens")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", JUDGED)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_rows_are_those_that_are_read_one_by_one(
    mistral: Any, templates: dict[str, Template], tmp_path: Path, pairs: Path
) -> None:
    """Pairs, examples, all turns, positions, rewards and margins; each field of a row is there in one of them."""
    talks = write_rows(tmp_path / "talks.jsonl", [{"messages": TALK}, {"messages": TALK[:2]}])
    jinja = tmp_path / "mistral.jinja"
    jinja.write_text(MISTRAL_CHAT)
    cases: list[tuple[Path, dict[str, Any], dict[str, Any]]] = [
        (pairs, {}, {"require": {"rewards": "oracle.mode=columns", "margin": "algorithm.use_margin=true"}}),
        (pairs, {"template": str(jinja)}, {"positions": True}),
        (pairs, {"max_length": 12, "max_prompt_length": 8}, {}),
        (pairs, {}, {"pairs": False}),
        (talks, {"template": str(jinja), "assistant_turns": "all"}, {"pairs": False}),
    ]
    seen: set[str] = set()
    for path, settings, how in cases:
        expected = [plain(row) for row in one_by_one(encoder(mistral, **settings), path, **how)]
        lines = set()
        for _ in range(2):
            rows, line = read(encoder(mistral, **settings), path, **how)
            lines.add(line)
            for each in (rows, pickle.loads(pickle.dumps(rows)), [rows[n - len(rows)] for n in range(len(rows))]):
                assert [plain(row) for row in each] == expected
        assert len(lines) == 1
        assert [plain(row) for row in rows[::-1][1::2]] == expected[::-1][1::2]
        seen |= {field.name for row in rows for field in fields(row) if getattr(row, field.name) is not None}
        with pytest.raises(IndexError):
            rows[len(rows)]
    assert seen == {field.name for field in fields(Tokenized)}


def test_real_pairs_and_their_bad_rows(mistral: Any, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,200 lines of HH-RLHF, of which four have an empty response; by worker processes the same, in the same order."""
    monkeypatch.setattr(encoding, "BATCH", 100)
    lines, ids = set(), []
    for alone in (100, 2):
        monkeypatch.setattr(encoding, "BATCHES_ALONE", alone)
        rows, line = read(encoder(mistral, on_bad_row="skip"), REAL)
        lines.add(line)
        ids.append([row.pair_id for row in rows])
        with pytest.raises(UserError, match=r"\.jsonl\.gz:87: chosen: the response is empty$"):
            read(encoder(mistral), REAL)
        monkeypatch.setenv("NEMO_TVKD_CACHE", os.environ["NEMO_TVKD_CACHE"] + "2")
    assert ids[0] == ids[1] == [row.pair_id for row in one_by_one(encoder(mistral), REAL)]
    assert (len(rows), len(lines)) == (1196, 1)
    assert "skipped: 4 bad rows, first " in line
    assert len(pickle.dumps(rows)) < 1000
    read_again = read(encoder(llama, on_bad_row="skip"), REAL)[0]
    assert [row.pair_id for row in read_again] == [row.pair_id for row in one_by_one(encoder(llama), REAL)]


@pytest.mark.parametrize("alone", [100, 1])
def test_bad_rows(mistral: Any, tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    """Of both kinds: those that make no pair, and those that the template or the length refuses; the first is named."""
    monkeypatch.setattr(encoding, "BATCH", 2)
    monkeypatch.setattr(encoding, "BATCHES_ALONE", alone)
    long = {"prompt": "word " * 100, "chosen": "a", "rejected": "b"}
    file = write_rows(tmp_path / "mixed.jsonl", [PAIRS[0], long, {"prompt": "x"}, long, PAIRS[1]])
    for _ in range(2):
        rows, line = read(encoder(mistral, max_length=40, on_bad_row="skip"), file)
        assert [row.source for row in rows] == [f"{file}:1", f"{file}:5"]
        assert f"skipped: 3 bad rows, first {file}:3: " in line
    for settings, bad, message in (
        ({}, [PAIRS[0], long, {"prompt": "x"}], ".jsonl:2: "),
        ({}, [PAIRS[0], {"prompt": "x"}, long], ".jsonl:2: "),
        ({"on_bad_row": "skip"}, [long, long], "each of the 2 rows is bad; the first: "),
        ({"on_bad_row": "skip"}, [{"prompt": "x"}], "data.train: each of the 1 rows is bad; the first: "),
        ({}, [], "data.train: "),
    ):
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                read(encoder(mistral, max_length=40, **settings), write_rows(tmp_path / "bad.jsonl", bad))
            assert message in str(caught.value)
    assert len(caches(tokens)) == 1


# --- what it is found by ----------------------------------------------------------------------------------------------


def test_a_second_start_reads_none_of_the_data(mistral: Any, pairs: Path, tokens: Path) -> None:
    """The file's text may even be another, as long as its size and time are the same."""
    rows, first = read(encoder(mistral), pairs)
    before, stat = [plain(row) for row in rows], pairs.stat()
    pairs.write_bytes(b"x" * stat.st_size)
    os.utime(pairs, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    rows, line = read(encoder(mistral), pairs)
    assert ([plain(row) for row in rows], line) == (before, first)
    assert len(caches(tokens)) == 1


Change = Callable[[Any, Path, pytest.MonkeyPatch], dict[str, Any]]
"""Changes one thing; the settings and options to read with, and perhaps the files."""


def _touch(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    return {}


def _grow(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    stat = file.stat()
    with file.open("a") as stream:
        stream.write("\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return {}


def _copy(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"files": [Path(shutil.copy2(file, file.with_name("copy.jsonl")))]}


def _lower(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The vocabulary, and so the fingerprint, is the same."""
    from tokenizers.normalizers import Lowercase

    before = encoder(tokenizer).fingerprint
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert encoder(tokenizer).fingerprint == before
    return {}


def _end(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    tokenizer.eos_token = "<unk>"
    return {}


def _upgrade(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(cache, "version", lambda name: "99.0" if name == "tokenizers" else "1.0")
    cache.program.cache_clear()
    return {}


def _edit(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy of the package's folder with one letter more."""
    copy = Path(shutil.copytree(Path(cache.__file__).parent, file.parent / "package"))
    with (copy / "fields.py").open("a") as stream:
        stream.write("#")
    patch.setattr(cache, "__file__", str(copy / "cache.py"))
    cache.program.cache_clear()
    return {}


def _tomorrow(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(cache, "TEMPLATE_DATE", "tomorrow")
    return {}


def _jinja(tokenizer: Any, file: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = file.with_name("chat.jinja")
    path.write_text(MISTRAL_CHAT)
    return {"settings": {"template": str(path)}}


CHANGES: dict[str, Change | dict[str, Any]] = {
    "time of the file": _touch,
    "size of the file": _grow,
    "name of the file": _copy,
    "tokenizer": _lower,
    "end token": _end,
    "version of a library": _upgrade,
    "this package": _edit,
    "date of templates": _tomorrow,
    "template": _jinja,
    "max_length": {"settings": {"max_length": 2047}},
    "max_prompt_length": {"settings": {"max_prompt_length": 1000}},
    "on_bad_row": {"settings": {"on_bad_row": "skip"}},
    "examples": {"options": {"pairs": False}},
    "turns": {"options": {"pairs": False}, "settings": {"assistant_turns": "all"}},
    "positions": {"options": {"positions": True}},
    "columns": {"options": {"require": {"margin": "algorithm.use_margin=true"}}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_ingredient_makes_another_cache(
    mistral_file: str, pairs: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tokenizer = load_tokenizer(mistral_file)
    read(encoder(tokenizer), pairs)
    read(encoder(load_tokenizer(mistral_file)), pairs)
    (first,) = caches(tokens)
    change = CHANGES[what]
    changed = change if isinstance(change, dict) else change(tokenizer, pairs, monkeypatch)
    made = encoder(tokenizer, **changed.get("settings", {}))
    read(made, *changed.get("files", [pairs]), **changed.get("options", {}))
    cache.program.cache_clear()
    found = caches(tokens)
    assert (first in found, len(found)) == (True, 2)


def test_the_key_and_the_order_of_files(mistral: Any, pairs: Path, tokens: Path) -> None:
    """Which split of a dataset is meant is told by the key."""
    other = Path(shutil.copy(pairs, pairs.with_name("other.jsonl")))
    for files in ([pairs, other], [other, pairs]):
        rows, _ = read(encoder(mistral), *files)
        assert [row.source for row in rows] == [f"{file}:{n}" for file in files for n in range(1, 7)]
    encoder(mistral).read([str(pairs), str(other)], "data.validation", True, lambda line: None)
    assert len(caches(tokens)) == 3


def test_folders_are_known_by_all_that_is_in_them(mistral: Any, tmp_path: Path, tokens: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "a.jsonl", PAIRS[:2])
    assert len(read(encoder(mistral), folder)[0]) == 2
    write_rows(folder / "b.jsonl", PAIRS[2:])
    rows, _ = read(encoder(mistral), folder)
    assert (len(rows), rows[-1].source) == (6, f"{folder}/b.jsonl:4")


def test_caches_and_runs_may_lie_in_the_data(
    mistral: Any, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    Dataset.from_list([row | {"prompt": "A question"} for row in PAIRS]).save_to_disk(str(saved))
    for folder in (pairs.parent, saved):
        monkeypatch.setenv("NEMO_TVKD_CACHE", str(folder / "mine"))
        before = read(encoder(mistral), folder)
        assert len(before[0]) == len(PAIRS)
        run = folder / "mine" / "tokens" / "run"
        run.mkdir()
        (run / "metrics.jsonl").write_text("{}\n")
        assert read(encoder(mistral), folder)[1] == before[1]
        assert len(caches(run.parent)) == 2  # the run is not one


def test_a_file_name_that_is_no_text(mistral: Any, pairs: Path) -> None:
    """Linux takes any bytes for one."""
    odd = Path(shutil.copy(pairs, os.fsdecode(bytes(pairs) + b"\xff.jsonl")))
    rows, _ = read(encoder(mistral), odd)
    assert rows[1].source == f"{odd}:2"


def test_data_that_change_while_they_are_read(
    mistral: Any, pairs: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoder_module.iter_rows

    def slowly(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from real(*args, **kwargs)
        _touch(None, pairs, monkeypatch)

    monkeypatch.setattr(encoder_module, "iter_rows", slowly)
    with pytest.raises(UserError, match=r"^data\.train: \S+pairs\.jsonl changed while it was read: run the same"):
        read(encoder(mistral), pairs)
    assert caches(tokens) == []


def test_rows_are_not_in_memory(mistral: Any, tokens: Path) -> None:
    """Only the pages of the file that are read, which the system may take back."""
    rows, _ = read(encoder(mistral, on_bad_row="skip"), REAL)
    (folder,) = caches(tokens)
    size = (tokens / folder / "tokens.arrow").stat().st_size
    before = pa.total_allocated_bytes()
    rows, _ = read(encoder(mistral, on_bad_row="skip"), REAL)
    kept = list(rows)
    assert pa.total_allocated_bytes() - before < size / 20
    with pytest.raises(ValueError, match="read-only"):
        kept[0].chosen_ids[0] = 1
