"""The score store of a job that was killed, at any moment, and ran again: the bytes of one that never was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from score_jobs import REPOSITORY, digests, flip, make_ids, make_scores, run_job

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.store import ScoreStore
from nemo_tvkd.scores.writer import StoreWriter


@pytest.fixture
def ids() -> list[str]:
    return make_ids(8)  # three parts, the last of two


@pytest.fixture
def whole(tmp_path: Path, ids: list[str]) -> dict[str, str]:
    """The files of a job that was never killed."""
    run_job(tmp_path / "whole", ids)
    return digests(tmp_path / "whole")


@pytest.mark.parametrize("dp", [2, 3, 5])
def test_layout_leaves_no_trace(tmp_path: Path, ids: list[str], whole: dict[str, str], dp: int) -> None:
    run_job(tmp_path / "s", ids, dp=dp)
    assert digests(tmp_path / "s") == whole


class Killed(BaseException):
    """Stands for kill -9: the store must not catch it."""


def die_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Die just before the call-th fsync or rename, the moments between which the directory changes."""
    left = [call]

    def counted(original):  # type: ignore[no-untyped-def]
        def function(*args):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*args)

        return function

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "replace", counted(os.replace))


def test_resume_after_a_kill_at_every_step(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    call = 0
    while True:
        call += 1
        path = tmp_path / f"killed-{call}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_at(monkeypatch, call)
            try:
                run_job(path, ids)
            except Killed:
                pass
            else:
                break  # the job has no further step to die at
        if not (path / "manifest.json").exists():
            with pytest.raises(UserError):
                ScoreStore.open(path)
        run_job(path, ids)
        assert digests(path) == whole, f"killed at step {call}"
    assert call == 3 * len(whole) + 1  # file and directory synced, file renamed, for each file


def partial_temporary(path: Path, part: Path) -> None:
    (path / f".{part.name}.4711.tmp").write_bytes(part.read_bytes()[:100])
    part.unlink()


def missing(path: Path, part: Path) -> None:
    part.unlink()


def truncated(path: Path, part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-20])


def empty(path: Path, part: Path) -> None:
    part.write_bytes(b"")


def byte_flipped(path: Path, part: Path) -> None:
    flip(part, part.stat().st_size // 3)


def of_another_identity(path: Path, part: Path) -> None:
    other = path.parent / "other"
    run_job(other, make_ids(8), weights="w2")
    part.write_bytes((other / part.name).read_bytes())


def of_another_position(path: Path, part: Path) -> None:
    part.write_bytes((path / "part-000000.parquet").read_bytes())


def intact(path: Path, part: Path) -> None:
    pass


@pytest.mark.parametrize(
    "damage",
    [partial_temporary, missing, truncated, empty, byte_flipped, of_another_identity, of_another_position, intact],
)
@pytest.mark.parametrize("finished", [False, True])
def test_resume_rewrites_what_is_bad_and_only_that(
    tmp_path: Path,
    ids: list[str],
    whole: dict[str, str],
    damage: Callable[[Path, Path], None],
    finished: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "s"
    run_job(path, ids)
    if not finished:
        (path / "manifest.json").unlink()
    damage(path, path / "part-000001.parquet")
    written = []
    write_part = StoreWriter.write_part

    def noted(writer: StoreWriter, part: int, scores: Sequence[PairScores]) -> None:
        written.append(part)
        write_part(writer, part, scores)

    monkeypatch.setattr(StoreWriter, "write_part", noted)
    run_job(path, ids)
    assert written == ([] if damage is intact else [1])
    assert digests(path) == whole


def test_a_finished_store_run_again_is_left_alone(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()}
    writer = run_job(tmp_path / "s", ids)
    writer.finish()
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()} == before


def test_a_damaged_part_may_come_back_with_other_values(tmp_path: Path, ids: list[str]) -> None:
    """A GPU does not round twice alike: the manifest must follow the part that is there."""
    writer = run_job(tmp_path / "s", ids)
    flip(tmp_path / "s" / "part-000001.parquet", 50)
    writer.prepare()
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert [part for part in writer.parts() if not writer.is_complete(part)] == [1]
    rows = make_scores(list(writer.part_pair_ids(1)))
    rows[0].scores["reward"] = (0.125, 0.25)
    writer.write_part(1, rows)
    writer.finish()
    assert ScoreStore.open(tmp_path / "s").get(rows[0].pair_id).scores["reward"] == (0.125, 0.25)


def test_a_damaged_manifest_is_written_again(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    run_job(tmp_path / "s", ids)
    (tmp_path / "s" / "manifest.json").write_text('{"format": 2')
    with pytest.raises(UserError, match=r"manifest\.json is not readable JSON"):
        ScoreStore.open(tmp_path / "s")
    run_job(tmp_path / "s", ids)
    assert digests(tmp_path / "s") == whole


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import score_jobs

left, fsync = [int(sys.argv[2])], os.fsync
def die(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)  # half of the bytes have reached the disk
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = die
score_jobs.run_job(Path(sys.argv[1]), score_jobs.make_ids(8))
"""


@pytest.mark.parametrize("call", [5, 9])  # the second part, the manifest
def test_resume_after_a_real_kill_in_the_middle_of_a_file(
    tmp_path: Path, ids: list[str], whole: dict[str, str], call: int
) -> None:
    path = tmp_path / "s"
    child = CHILD.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", child, str(path), str(call)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in path.iterdir() if file.suffix == ".tmp"]
    with pytest.raises(UserError, match="unfinished"):
        ScoreStore.open(path)
    run_job(path, ids)
    assert digests(path) == whole


def test_the_model_path_may_change_between_runs(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    run_job(tmp_path / "s", ids)
    (tmp_path / "s" / "manifest.json").unlink()
    run_job(tmp_path / "s", ids, model="/mnt/elsewhere/teacher")
    assert digests(tmp_path / "s") == whole
