"""`nemo-tvkd data check` as a command: its mistakes, its colours, what reaches a log, and the cache of `datasets`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pair_records import PAIR, write

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.data_check.examples import visible


def words(printed: str) -> str:
    return " ".join(printed.split())


NOTHING: list[tuple[str, list[bytes], str]] = [
    ("a.jsonl", [], "data.train: {path} is empty: it holds no rows"),
    (
        "a.jsonl",
        [b"[]", b"3"],
        "data.train: each of the 2 rows is bad; the first: {path}:1: the row is a list, not an object",
    ),
    ("a.csv", [b"x"], "data.train: {path} has an unknown extension"),
    ("a.parquet", [b"x"], "data.train: {path} cannot be read: "),
]


def test_colours_where_they_are_wanted(
    tmp_path: Path, mistral_file: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    path = write(tmp_path / "a.jsonl", [{"prompt": "\x1b[35mQ", "chosen": "aye", "rejected": "no"}])
    assert main(["data", "check", path, f"tokenizer={mistral_file}"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[32maye" in printed
    assert "\x1b[7;32m</s>" in printed
    assert "\x1b[31mno" in printed
    assert "\x1b[35m" not in printed
    assert r"\x1b[35mQ" in printed
    assert "⟦" not in printed
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["data", "check", path]) == 0
    assert "⟦aye⟧" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "lines", "message"), NOTHING, ids=["empty", "all bad", "unknown", "damaged"])
def test_where_nothing_can_be_read(name: str, lines: list[bytes], message: str, tmp_path: Path, fails: Any) -> None:
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    assert fails("data", "check", path).startswith(message.format(path=path))


def test_mistakes_of_the_configuration(tmp_path: Path, fails: Any) -> None:
    path = write(tmp_path / "a.jsonl", [PAIR])
    assert fails("data", "check").startswith("data.train is not set: ")
    assert fails("data", "look", path).startswith("data look is not a command: nemo-tvkd data check ")
    assert fails("data", "check", tmp_path / "no.jsonl") == f"data.train: {tmp_path}/no.jsonl does not exist"
    assert fails("data", "check", path, "rows=all") == "rows=all is none of auto, pairs, examples"
    assert fails("data", "check", path, "data.chat_template=llama3").endswith("give tokenizer=MODEL as well")
    assert fails("data", "check", path, f"tokenizer={path}").startswith(f"tokenizer: {path} is not a tokenizer")
    assert fails("data", "check", path, f"output={tmp_path}").startswith(f"output: {tmp_path} is a directory")
    assert fails("data", "check", path, f"output={path}").startswith(f"output: {path} is the data")


def test_as_a_command_with_a_dataset_from_the_cache(tmp_path: Path) -> None:
    """HF_HOME and HF_HUB_OFFLINE mean what they mean to `datasets`; nothing but the figures goes to a log."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_DATASETS_CACHE", "FORCE_COLOR", "COLUMNS"):
        environment.pop(name, None)

    def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        how: dict[str, Any] = {
            "env": environment,
            "cwd": tmp_path,
            "capture_output": True,
            "text": True,
            "check": False,
        }
        return subprocess.run([str(Path(sys.executable).with_name("nemo-tvkd")), "data", "check", *arguments], **how)

    (tmp_path / "copy" / "data").mkdir(parents=True)
    write(tmp_path / "copy" / "data" / "train.jsonl", [PAIR])
    done = command("copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "read from copy:train (copy of a hub dataset): 1 rows" in words(done.stdout)
    assert "\x1b" not in done.stdout

    cache = tmp_path / "hf" / "datasets"
    shutil.move(cache / "copy", cache / "some-org___some_pairs")  # as that of a hub id is laid out
    for file in cache.rglob("copy-*.arrow"):
        file.rename(file.with_name(file.name.replace("copy-", "some_pairs-")))
    info = next(cache.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"dataset_name": "copy"', '"dataset_name": "some_pairs"'))
    done = command("some-org/some_pairs")
    assert done.returncode == 0
    assert "some-org/some_pairs couldn't be found on the Hugging Face Hub (offline mode is enabled)" in done.stderr
    assert "read from some-org/some_pairs:train (dataset of the hub): 1 rows" in words(done.stdout)


def test_what_is_visible() -> None:
    assert visible("plain ⟦text⟧ 😀 \u00e9") == "plain ⟦text⟧ 😀 \u00e9"
    assert visible("a\nb\tc\u00a0d") == "a\nb\tc\u00a0d"
    assert visible("\x1b[2J\x9b\r\x07\x00") == r"\x1b[2J\x9b\r\x07\x00"
    assert visible("\u202e\u2066\ufeff\ud800") == r"\u202e\u2066\ufeff\ud800"
