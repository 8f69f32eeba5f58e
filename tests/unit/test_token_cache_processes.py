"""A token cache is seen whole or not at all: damage, full disks, killed processes, several at once."""

import fcntl
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cached_rows
import pytest
from bad_input import write_rows
from cached_rows import EMPTY, LONG, REAL, caches, encoder, read, rests

from nemo_tvkd.data import once
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare import encoder as encoder_module

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"Question {n}?", "chosen": f"Answer {n}, of some length.", "rejected": "No"} for n in range(6)
]

pytestmark = pytest.mark.usefixtures("without_nemo", "tokens")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", PAIRS)


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest cut", "manifest gone", "emptied"])
def test_a_damaged_cache_is_made_again(mistral: Any, pairs: Path, tokens: Path, damage: str) -> None:
    before = [cached_rows.plain(row) for row in read(encoder(mistral), pairs)[0]]
    (folder,) = (tokens / name for name in caches(tokens))
    ids, manifest = folder / "tokens.arrow", folder / "manifest.json"
    if damage == "cut":
        os.truncate(ids, ids.stat().st_size - 4)
    elif damage == "manifest cut":
        os.truncate(manifest, 100)
    elif damage == "emptied":
        os.truncate(ids, 0)
    else:
        (ids if damage == "gone" else manifest).unlink()
    assert [cached_rows.plain(row) for row in read(encoder(mistral), pairs)[0]] == before
    assert caches(tokens) == [folder.name]
    assert rests(tokens) == []


def test_a_place_that_cannot_be_written(mistral: Any, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_TVKD_CACHE", str(pairs))
    with pytest.raises(UserError, match=r"^NEMO_TVKD_CACHE: data\.train is tokenised into .* cannot be written: "):
        read(encoder(mistral), pairs)


def test_without_locks_the_first_to_end_has_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("nemo_tvkd.files.fcntl.flock", no_locks)
    place = tmp_path / "folder"
    made: list[str] = []

    def make(who: str, partial: Path) -> dict[str, Any]:
        partial.mkdir()
        if who == "slow":  # another process is done meanwhile
            monkeypatch.setattr(once.os, "getpid", lambda: 1)
            once.made_once(place, lambda folder: make("quick", folder), "")
            monkeypatch.undo()
        (partial / "who").write_text(who)
        made.append(who)
        return {"who": who}

    assert once.made_once(place, lambda folder: make("slow", folder), "")["who"] == "quick"
    assert made == ["quick", "slow"]
    assert (place / "who").read_text() == "quick"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".folder.lock", "folder"]


def test_an_old_failure_is_not_that_of_a_maker_that_was_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place, failure = tmp_path / "folder", tmp_path / ".folder.failed"
    failure.write_text("a mistake of yesterday")
    made: list[Any] = []
    waiting = threading.Thread(target=lambda: made.append(once.made_once(place, _nothing, "")))
    with open(tmp_path / ".folder.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        end = time.monotonic() + 30
        while "waiting" not in capfd.readouterr().err:
            assert time.monotonic() < end
            time.sleep(0.01)
        failure.unlink()  # the maker begins, and is killed
    waiting.join()
    assert made == [{"files": {}}]


def test_what_other_machines_left_is_removed_after_a_day(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * 24 * 3600
    for name, times in (("node7", (long_ago, long_ago)), ("node8", None)):
        rest = tmp_path / f".folder.{name}.1.partial"
        rest.mkdir()
        (rest / "tokens.arrow").write_bytes(b"some")
        os.utime(rest / "tokens.arrow", times)
        os.utime(rest, (long_ago, long_ago))
    once.made_once(tmp_path / "folder", _nothing, "")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".folder.lock", ".folder.node8.1.partial", "folder"]


def _nothing(partial: Path) -> dict[str, Any]:
    partial.mkdir()
    return {}


# --- several processes ------------------------------------------------------------------------------------------------


def long_file(path: Path, times: int, *more: str) -> Path:
    """The real pairs without the bad ones, several times, and `more` lines."""
    lines = gzip.decompress(REAL.read_bytes()).decode().splitlines()
    good = [line for number, line in enumerate(lines, 1) if number not in EMPTY]
    path.write_text("\n".join([*good * times, *more]) + "\n")
    return path


def start(mistral_file: str, file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, cached_rows.__file__, mistral_file, str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(tokens: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has written some."""
    end = time.monotonic() + 60
    while not any(file.stat().st_size > 100_000 for file in tokens.glob(".*.partial/tokens.arrow")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def pause(process: subprocess.Popen[str]) -> None:
    """For a second, in which another one comes."""
    process.send_signal(signal.SIGSTOP)
    threading.Timer(1, process.send_signal, [signal.SIGCONT]).start()


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(
    mistral: Any, mistral_file: str, tmp_path: Path, tokens: Path
) -> None:
    file = long_file(tmp_path / "long.jsonl", 1)
    process = start(mistral_file, file)
    wait_for_rows(tokens, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert caches(tokens) == []
    assert len(rests(tokens)) == 1
    rows, _ = read(encoder(mistral, **LONG), file)
    assert len(rows) == 1196
    assert len(caches(tokens)) == 1
    assert rests(tokens) == []


def test_who_comes_second_waits(
    mistral: Any,
    mistral_file: str,
    tmp_path: Path,
    tokens: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And reads none of the data: neither where the first one succeeds, nor where it fails."""

    def nobody(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the data is read again")

    monkeypatch.setattr(encoder_module, "iter_rows", nobody)
    good = long_file(tmp_path / "good.jsonl", 1)
    first = start(mistral_file, good)
    wait_for_rows(tokens, first)
    pause(first)
    rows, _ = read(encoder(mistral, **LONG), good)
    count = sum(len(ids) for row in rows for ids in (row.prompt_ids, row.chosen_ids, row.rejected_ids))
    out, _ = first.communicate()
    assert out.split()[:2] == [str(len(rows)), str(count)]
    assert capfd.readouterr().err.startswith("waiting for another process: data.train is tokenised into ")
    bad = long_file(tmp_path / "bad.jsonl", 1, '{"prompt": 3}')
    failing = start(mistral_file, bad)
    wait_for_rows(tokens, failing)
    pause(failing)
    with pytest.raises(UserError) as caught:
        read(encoder(mistral, **LONG), bad)
    assert str(caught.value).startswith(f"{bad}:1197: ")
    assert failing.communicate()[1].splitlines()[-1] == str(caught.value)
    with pytest.raises(AssertionError, match="read again"):  # who comes later tries for itself
        read(encoder(mistral, **LONG), bad)
