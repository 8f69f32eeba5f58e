"""The golden file of messages: compared, written anew, and merged where only some tests ran."""

from pathlib import Path

import pytest
from golden_messages import Messages, normalised, read

ONE, TWO = "tests/unit/test_a.py::test_one[x y]", "tests/unit/test_b.py::test_two"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "golden" / "messages.txt"
    Messages(True, file).write({ONE: ["key: wrong", "$TMP/x: gone"], TWO: ["other: wrong"]}, [])
    return file


def test_messages_are_compared_in_their_order(file: Path, tmp_path: Path) -> None:
    messages = Messages(False, file)
    messages.record(ONE, "key: wrong", tmp_path)
    messages.record(ONE, f"{tmp_path}/test_one0/x: gone", tmp_path)
    with pytest.raises(AssertionError, match="no message 3"):
        messages.record(ONE, "key: wrong", tmp_path)
    with pytest.raises(AssertionError, match="another message"):
        Messages(False, file).record(ONE, "key: right", tmp_path)


def test_what_the_file_does_not_hold(file: Path, tmp_path: Path) -> None:
    Messages(False, file, strict=False).record("tests/unit/test_b.py::test_new", "anything", tmp_path)
    with pytest.raises(AssertionError, match="test_new"):
        Messages(False, file, strict=True).record("tests/unit/test_b.py::test_new", "anything", tmp_path)
    Messages(False, tmp_path / "none", strict=False).record(ONE, "anything", tmp_path)


def test_an_update_replaces_what_ran_and_forgets_what_is_gone(file: Path, tmp_path: Path) -> None:
    messages = Messages(True, file)
    messages.record(ONE, "key: right", tmp_path)
    messages.write(messages.new, [])
    assert read(file) == {ONE: ["key: right"], TWO: ["other: wrong"]}
    Messages(True, file).write({}, ["tests/unit/test_b.py"])
    assert read(file) == {ONE: ["key: right"]}


def test_what_differs_from_run_to_run(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[2]
    message = f"--from: {tmp_path}/test_x0/run does not exist\nnor '{tmp_path}/world0'; {repository}/conf"
    assert normalised(message, tmp_path) == "--from: $TMP/run does not exist nor '$TMP'; $REPOSITORY/conf"
    assert normalised(f"score.output: {tmp_path}/world0/new_store_17 is there", tmp_path).endswith(
        "$TMP/new_store_N is there"
    )
