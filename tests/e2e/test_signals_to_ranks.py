"""Signals and failures of ranks that a command starts itself: what the parent makes of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import rank_program
from forked_commands import Command

NOTHING = "nemo-tvkd: stopped by a signal, nothing to save; run the same command again to continue"


class Program:
    def __init__(self, folder: Path, case: str, method: str = "fork") -> None:
        self.mark = folder / "mark"
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "SLURM_STEP_NUM_TASKS")}
        environment["OMP_NUM_THREADS"] = "1"
        words = [case, str(self.mark), method]
        self.process: Command | subprocess.Popen
        if method == "fork":
            self.process = Command(words, environment, main=rank_program.main)
        else:
            program = [sys.executable, rank_program.__file__, *words]
            self.process = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)

    def wait_for_ranks(self) -> None:
        deadline = time.monotonic() + 60
        while not all(Path(f"{self.mark}-rank-{rank}").exists() for rank in range(2)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)  # into gloo

    def end(self) -> tuple[int, list[str]]:
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        try:
            errors = self.process.communicate(timeout=60)[1]
        finally:
            self.process.kill()
            left = psutil.wait_procs(family, timeout=5)[1]
            for process in left:
                process.kill()
        assert not left
        return self.process.returncode, errors.splitlines()


@pytest.mark.parametrize(("method", "number"), [
    ("fork", signal.SIGUSR1), ("fork", signal.SIGTERM), ("spawn", signal.SIGUSR1),
])  # fmt: skip
def test_ranks_that_wait_in_gloo(tmp_path: Path, method: str, number: int) -> None:
    program = Program(tmp_path, "slow", method)
    program.wait_for_ranks()
    program.process.send_signal(number)
    assert program.end() == (85, [NOTHING])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_signal_before_the_ranks_are_there(tmp_path: Path, method: str) -> None:
    """Spawned ranks get it while Python starts, and can say nothing themselves."""
    assert Program(tmp_path, "early", method).end() == (85, [NOTHING])


def test_a_crash_is_no_preemption(tmp_path: Path) -> None:
    """torch's agent ends the other rank by SIGTERM."""
    code, errors = Program(tmp_path, "crash").end()
    assert code == 1
    assert "ValueError: the first rank waits in gloo" in errors
    assert NOTHING not in errors


def test_a_mistake_is_no_preemption(tmp_path: Path) -> None:
    assert Program(tmp_path, "mistake").end() == (2, ["nemo-tvkd: the second rank waits in gloo"])


SLURM = """
import os, sys
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.exits import guarded
def work():
    if os.environ["SLURM_PROCID"] == "1":
        raise UserError("this rank is the first to see it")
    import time
    time.sleep(60)
sys.exit(guarded(work))
"""


def test_what_srun_reports(tmp_path: Path) -> None:
    """A stand-in for `srun --kill-on-bad-exit=1` as measured with Slurm 22.05: 0.1 s after the first bad exit the
    other tasks get SIGTERM, and the highest code of all is srun's own. It must be the mistake's."""
    tasks = []
    for rank in range(2):
        slurm = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(rank)}
        tasks.append(subprocess.Popen([sys.executable, "-c", SLURM], env={**os.environ, **slurm}))
    assert tasks[1].wait(20) == 2
    time.sleep(1)
    tasks[0].terminate()
    assert max(task.wait(20) for task in tasks) == 2
