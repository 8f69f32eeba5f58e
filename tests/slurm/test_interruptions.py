"""How stages live through signals, time limits, cancellation, preemption and dead nodes on a real Slurm.

The commands themselves are replaced by payload.py. All jobs are submitted at once; each test disturbs one of them.
"""

import time
from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster
from stages import Stages


@pytest.fixture(scope="module")
def stages(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(slurm, tmp_path_factory.mktemp("interrupted") / "run")


@pytest.fixture(scope="module")
def jobs(stages: Stages) -> Iterator[dict[str, int]]:
    found = {
        "limit": stages.submit("limit", "wait/0", time="00:01:00", signal_seconds=45),
        "first_dies": stages.submit("first_dies", "wait/0", on="n5,n6"),
        "second_dies": stages.submit("second_dies", "wait/0", on="n7,n8"),
        "preempted": stages.submit("preempted", "wait/1/0", on="n3,n4", max_failures=1),
        "stopped": stages.submit("stopped", "wait/0"),
        "early": stages.submit("early", "wait/0", setup=["echo setting up", "sleep 3"]),
        "cancelled": stages.submit("cancelled", "wait/0"),
    }
    found["starting"] = stages.submit("starting", "dull/0", max_failures=0)
    found["after_cancelled"] = stages.submit("after_cancelled", "0", *stages.after(found["cancelled"]))
    found["cancelled_after_usr1"] = stages.submit("cancelled_after_usr1", "wait/0")
    stages.slurm.wait_for_text(found["early"], "setting up")
    stages.slurm.signal(found["early"], "USR1")
    # What takes time goes on while the tests look at something else.
    for name in ("stopped", "starting"):
        stages.ready(found[name])
        stages.slurm.signal(found[name], "USR1")
    for job, node in ((found["first_dies"], "n5"), (found["second_dies"], "n8")):
        stages.ready(job)
        stages.slurm.kill_node(node)
    stages.ready(found["preempted"])
    script = stages.run_dir / "jobs" / "important.sbatch"
    script.write_text("#!/bin/sh\nexec sleep 1\n")
    where = ("--partition=hi", "--nodelist=n3,n4", "--nodes=2", "--exclusive", "--output=/dev/null")
    found["important"] = stages.slurm.submit(script, *where)
    yield found
    for job in found.values():
        stages.slurm.cancel(job)


def test_usr1_reaches_every_rank_and_the_stage_goes_on_in_another_attempt(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["stopped"]
    stages.slurm.wait_for(job, "COMPLETED")
    assert [(rank["signals"][0], rank["code"]) for rank in stages.records(job)] == [("SIGUSR1", 85)] * 2
    assert [rank["environment"]["SLURM_RESTART_COUNT"] for rank in stages.records(job, 1)] == ["1", "1"]
    assert stages.ends("stopped") == [f"{job} restart 0 code 85 requeued", f"{job} restart 1 code 0 ended"]
    assert stages.slurm.log(job).count("is ready in attempt 0") == 2  # the second attempt appends to the log
    assert stages.slurm.log(job).count("is ready in attempt 1") == 2


def test_a_cancelled_stage_stays_dead_and_its_dependants_with_it(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["cancelled"]
    stages.ready(job)
    stages.slurm.cancel(job)  # the ranks answer TERM with a checkpoint and 85, which must not requeue
    stages.slurm.wait_for(job, "CANCELLED")
    stages.slurm.wait_for(jobs["after_cancelled"], "CANCELLED")
    assert [rank["code"] for rank in stages.records(job)] == [85, 85]
    assert all("requeued" not in line for line in stages.ends("cancelled"))
    assert (stages.slurm.job(job)["Restarts"], stages.attempts(job)) == ("0", 1)


def test_a_stage_that_is_cancelled_while_it_saves_stays_dead(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["cancelled_after_usr1"]
    stages.ready(job)
    stages.slurm.signal(job, "USR1")
    time.sleep(0.3)  # saving takes a second
    stages.slurm.cancel(job)
    stages.slurm.wait_for(job, "CANCELLED")
    assert [(rank["signals"][0], rank["code"]) for rank in stages.records(job)] == [("SIGUSR1", 85)] * 2
    assert (stages.slurm.job(job)["Restarts"], stages.attempts(job)) == ("0", 1)


def test_usr1_before_the_ranks_can_answer_is_no_crash(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["starting"]
    stages.slurm.wait_for(job, "COMPLETED")
    assert stages.ends("starting") == [f"{job} restart 0 code 85 requeued", f"{job} restart 1 code 0 ended"]


def test_usr1_before_the_ranks_start_is_not_lost(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["early"]
    stages.slurm.wait_for(job, "COMPLETED")
    assert stages.ends("early") == [f"{job} restart 0 code 85 requeued", f"{job} restart 1 code 0 ended"]


def test_a_preempted_stage_is_requeued_once_and_no_failure_is_counted(stages: Stages, jobs: dict[str, int]) -> None:
    job, slurm = jobs["preempted"], stages.slurm
    slurm.wait_for(jobs["important"], "COMPLETED")
    # One crash is allowed, and the second attempt is one: the preemption was none.
    slurm.wait_for(job, "COMPLETED", 60)
    assert slurm.job(job)["Restarts"] == "2"
    first = stages.records(job)
    assert [(rank["signals"][0], rank["code"]) for rank in first] == [("SIGTERM", 85)] * 2
    assert [rank["code"] for rank in stages.records(job, 1)] == [1, 1]
    last = [line.split(" ", 1)[1] for line in stages.ends("preempted")][-2:]
    assert last == ["restart 1 code 1 requeued", "restart 2 code 0 ended"]
    assert not any("restart 0" in line and "requeued" in line for line in stages.ends("preempted"))


def test_a_dead_node_requeues_the_stage(stages: Stages, jobs: dict[str, int]) -> None:
    """The first node also runs the batch script; when the other dies, the ranks of the first crash."""
    slurm = stages.slurm
    nodes = {"first_dies": "n5", "second_dies": "n8"}
    for name, node in nodes.items():
        is_down = lambda node=node: slurm.nodes()[node].startswith("down")  # noqa: E731
        slurm.wait_until(jobs[name], is_down, f"dead {node}", 60)
        # At once: a job that waits for nothing else when its node comes back starts within a second, and then
        # Slurm 22.05 sometimes loses the node from its allocation ("Requested nodes are busy", for ever).
        slurm.start_node(node)
    for name in nodes:
        job = jobs[name]
        slurm.wait_for(job, "COMPLETED", 60)
        assert [rank["code"] for rank in stages.records(job)] == ([None, 1] if name == "first_dies" else [1, None])
        assert stages.ends(name)[-1] == f"{job} restart 1 code 0 ended"
        assert not any("requeued" in line for line in stages.ends(name))  # Slurm did that: no failure is counted


def test_a_time_limit_gives_usr1_in_time(stages: Stages, jobs: dict[str, int]) -> None:
    job = jobs["limit"]
    stages.slurm.wait_for(job, "COMPLETED", 60)  # Slurm looks at time limits every 30 s
    assert [(rank["signals"][0], rank["code"]) for rank in stages.records(job)] == [("SIGUSR1", 85)] * 2
    assert stages.ends("limit") == [f"{job} restart 0 code 85 requeued", f"{job} restart 1 code 0 ended"]
