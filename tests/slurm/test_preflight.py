"""cluster.preflight on a real Slurm: `doctor` on every rank before the stage, the real one and stand-ins that fail.

The stage itself is payload.py. All jobs are submitted at once.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from stages import PAYLOAD, Stages

FIRST = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] ||'
DOCTORS = {
    "real": f'exec "{sys.executable}" "$@"',
    "never_fit": "exit 2",
    "fit_later": f"{FIRST} exit 2; exit 0",
    "stopped": f"{FIRST} {{ echo examining; exec sleep 100; }}; exit 0",
}
"""What `python -m nemo_tvkd doctor` does in each job."""


@pytest.fixture(scope="module")
def stages(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(slurm, tmp_path_factory.mktemp("preflight") / "run")


@pytest.fixture(scope="module")
def jobs(stages: Stages) -> Iterator[dict[str, int]]:
    found = {}
    for name, doctor in DOCTORS.items():
        python = stages.run_dir / f"python_{name}"
        asked = f'case "$*" in "-m nemo_tvkd doctor") {doctor} ;; esac\n'
        python.write_text(f'#!/bin/sh\n{asked}exec {sys.executable} -I -S {PAYLOAD} "$@"\n')
        python.chmod(0o755)
        found[name] = stages.submit(name, "0", preflight=True, python=str(python), max_failures=1)
    stages.slurm.wait_for_text(found["stopped"], "examining", count=2)
    stages.slurm.signal(found["stopped"], "USR1")
    yield found
    for job in found.values():
        stages.slurm.cancel(job)


def said(stages: Stages, name: str, job: int) -> str:
    return Path(stages.run_dir, "logs", f"{name}-{job}.log").read_text()


def test_the_ranks_of_two_nodes_sum_and_then_the_stage_runs(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["real"]
    stages.slurm.wait_for(job, "COMPLETED", 90)
    log = said(stages, "real", job)
    (line,) = [line for line in log.splitlines() if "all-reduce" in line]
    assert [cell.strip() for cell in line.split("│")[1:3]] == ["OK", "all-reduce"]
    assert "2 ranks by gloo" in line
    assert log.index("all-reduce") < log.index("is ready in attempt 0")
    assert [rank["code"] for rank in stages.records(job)] == [0, 0]
    assert stages.ends("real") == [f"{job} restart 0 code 0 ended"]


def test_nodes_that_are_unfit_are_no_mistake(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["fit_later"]
    stages.slurm.wait_for(job, "COMPLETED", 60)
    assert stages.ends("fit_later") == [f"{job} restart 0 code 1 requeued", f"{job} restart 1 code 0 ended"]
    assert "doctor found these nodes unfit" in said(stages, "fit_later", job)
    assert stages.records(job) == []  # of the first attempt: the stage did not start
    assert [rank["code"] for rank in stages.records(job, 1)] == [0, 0]


def test_nodes_that_stay_unfit_use_the_budget_of_crashes_up(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["never_fit"]
    stages.slurm.wait_for(job, "FAILED", 60)
    assert stages.ends("never_fit") == [f"{job} restart 0 code 1 requeued", f"{job} restart 1 code 1 ended"]
    assert stages.attempts(job) == 0


def test_a_stop_while_the_nodes_are_tried_is_no_crash(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["stopped"]
    stages.slurm.wait_for(job, "COMPLETED", 60)
    assert stages.ends("stopped") == [f"{job} restart 0 code 85 requeued", f"{job} restart 1 code 0 ended"]
