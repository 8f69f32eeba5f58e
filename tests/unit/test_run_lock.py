"""One run at a time in an output directory; a restarted job waits for what a dead node has left behind."""

import errno
import fcntl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from nemo_tvkd.commands import train
from nemo_tvkd.config.compose import compose
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.exits import guarded


@pytest.fixture
def held(tmp_path: Path) -> Iterator[IO[str]]:
    """The lock as another run holds it: locks of two open files of one process exclude each other as well."""
    with open(tmp_path / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield other


def take(folder: Path) -> IO[str]:
    return train._lock(folder)


def started(monkeypatch: pytest.MonkeyPatch, restarts: str | None) -> None:
    """None: not by Slurm, or for the first time (then some versions of Slurm do not set the variable)."""
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)


def is_free(folder: Path) -> bool:
    with open(folder / ".lock", "w") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("restarts", [None, "0", "2"])
def test_a_free_directory_is_taken_at_once(
    tmp_path: Path, restarts: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, restarts)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with take(tmp_path):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


@pytest.mark.parametrize("restarts", [None, "0"])
@pytest.mark.usefixtures("held")
def test_a_second_run_is_a_mistake(tmp_path: Path, restarts: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, restarts)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(UserError, match=rf"trainer\.output_dir: .*{tmp_path}"):
        take(tmp_path)


def test_a_restarted_job_waits_for_the_lock(tmp_path: Path, held: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "1")
    monkeypatch.setattr(train, "LOCK_SECONDS", 30)
    release = threading.Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN))
    began = time.monotonic()
    release.start()
    with take(tmp_path):
        assert 0.5 <= time.monotonic() - began < 10
        assert not is_free(tmp_path)
    release.join()


@pytest.mark.usefixtures("held")
def test_a_lock_that_stays_is_a_crash_of_the_restarted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mistake, which would end the stage and all that depends on it."""
    started(monkeypatch, "1")
    monkeypatch.setattr(train, "LOCK_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"{tmp_path} is still locked after 1 s") as caught:
        take(tmp_path)
    assert not isinstance(caught.value, UserError)
    assert 1 <= time.monotonic() - began < 10


@pytest.mark.usefixtures("held", "without_nemo")
def test_how_a_run_ends_that_does_not_get_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the other run is touched."""
    config: Any = compose("train", ["algorithm=sft", f"trainer.output_dir={tmp_path}"])
    (tmp_path / "finished.json").touch()
    monkeypatch.setattr(train, "LOCK_SECONDS", 0)
    for restarts, code in (("0", 2), ("1", 1)):
        started(monkeypatch, restarts)
        assert guarded(lambda: train._take(config, None, tmp_path) and 0) == code  # type: ignore[arg-type]
    assert {file.name for file in tmp_path.iterdir()} == {".lock", "finished.json"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = compose("train", ["algorithm=sft", f"trainer.output_dir={tmp_path}"])

    def flock(lock: IO[str], how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(train, "_LOCKS", {})
    assert train._take(config, None, tmp_path) is None  # type: ignore[arg-type]
    assert (tmp_path / "config.yaml").is_file()


def test_a_last_validation_that_was_cut_off_is_owed(tmp_path: Path) -> None:
    config = compose("train", ["algorithm=sft", f"trainer.output_dir={tmp_path}"])
    prepared: Any = SimpleNamespace(validation=[None], max_steps=3)
    rows = tmp_path / "metrics.jsonl"
    whole = '{"step": 3, "loss": 0.5}\n{"step": 3, "eval_loss": 0.25}\n'
    for text, owed in ((whole, False), (whole[:-8], True), (whole[:30], True), ("", True)):
        rows.write_text(text)
        assert train._owes_validation(config, prepared, 3) is owed
    rows.write_text(whole)
    assert train._owes_validation(config, prepared, 2) is False  # no validation after this step
    config.trainer.val_interval = 2
    assert train._owes_validation(config, prepared, 2) is True
    assert train._owes_validation(config, prepared, 0) is False
    prepared.validation = []
    assert train._owes_validation(config, prepared, 2) is False
