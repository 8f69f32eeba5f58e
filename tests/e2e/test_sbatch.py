"""slurm/train.sbatch in a plain shell, with srun and scontrol replaced by scripts that write down what was asked."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch"

SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun.arguments
env > srun.environment
trap 'echo got > srun.signal; sleep 0.3; exit 85' USR1
touch srun.ready
[[ -n $EXIT_CODE ]] && exit "$EXIT_CODE"
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
echo "$*" >> scontrol.calls
case "$*" in
  "show hostnames node[3-4]") printf 'node3\\nnode4\\n' ;;
  "show node node3") printf 'NodeName=node3 Arch=x86_64\\n   NodeAddr=10.0.0.3 NodeHostName=node3 Port=0\\n' ;;
esac
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[3-4]", "EXIT_CODE": ""}


def test_syntax() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_directives_stand_before_the_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--signal=B:USR1@300", "--requeue"} <= directives


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_an_end_is_passed_on(tmp_path: Path, job: dict[str, str], code: int) -> None:
    command = ["bash", str(SCRIPT), "algorithm=dpo", "student.path=a b"]
    done = subprocess.run(command, cwd=tmp_path, env=job | {"EXIT_CODE": str(code)}, check=False, timeout=20)
    assert done.returncode == code
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    assert arguments == ["--kill-on-bad-exit=1", "nemo-tvkd", "train", "algorithm=dpo", "student.path=a b"]
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "srun.environment").read_text().splitlines() if "=" in line
    )
    assert environment["MASTER_ADDR"] == "10.0.0.3"
    assert environment["MASTER_PORT"] == str(10000 + 41234 % 20000)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "requeue" not in (tmp_path / "scontrol.calls").read_text()


def test_the_signal_reaches_srun_and_the_job_is_requeued(tmp_path: Path, job: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", str(SCRIPT)], cwd=tmp_path, env=job, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "srun.ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)  # to the batch shell alone, as B: does
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 85
    assert (tmp_path / "srun.signal").exists()
    assert (tmp_path / "scontrol.calls").read_text().splitlines()[-1] == "requeue 41234"
    assert "goes back into the queue" in output
