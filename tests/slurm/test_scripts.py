"""What the rendered batch scripts do on a real Slurm: ranks, exit codes, budgets, dependants, arrays, containers.

The commands themselves are replaced by payload.py. All jobs are submitted at once; each test looks at one of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slurm_cluster import PLUGIN_PACKAGES, SlurmCluster
from stages import Stages

from nemo_tvkd.config.cluster import ContainerConfig

AWKWARD = ("data.train='/data/with space/$HOME/\"x\".jsonl'", "score.what=[value,logprob]", "note=it's; `true` \\ #1")


@dataclass
class Submitted:
    stages: Stages
    slurm: SlurmCluster
    jobs: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, plan: str, *options: str, **more: object) -> None:
        self.jobs[name] = self.stages.submit(name, plan, *options, **more)  # type: ignore[arg-type]

    def after(self, name: str, kind: str = "afterok") -> tuple[str, str]:
        return self.stages.after(self.jobs[name], kind)

    def wait_for(self, name: str, state: str, timeout: float = 60) -> int:
        self.slurm.wait_for(self.jobs[name], state, timeout)
        return self.jobs[name]


@pytest.fixture(scope="module")
def submitted(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    folder = tmp_path_factory.mktemp("run") / "with a space"
    found = Submitted(Stages(slurm, folder), slurm)
    for done in ("done", "done_tasks/1"):
        (folder / done).mkdir(parents=True)
        (folder / done / "finished.json").touch()
    found.add("crashes", "1", max_failures=2)
    found.add("after_crashes", "0", *found.after("crashes"))
    found.add("mixed", "1/85/1/0", max_failures=2, max_restarts=1)
    found.add("spent", "85", max_restarts=1)
    found.add("two", "0", overrides=AWKWARD, environment={"MINE": "a $b 'c'"}, setup=["export FROM_SETUP=yes"])
    found.add("mistake", "2")
    found.add("after_mistake", "0", *found.after("mistake"))
    found.add("after_that", "0", *found.after("after_mistake"))
    found.add("preparation", "0", environment={"PREPARATION": "2"})
    found.add("mistake_and_crash", "2+wait")
    found.add("mistake_and_kill", "2+dull")
    found.add("crash_and_save", "1+alone", max_failures=0, max_restarts=1)
    found.add("array", "", sweep=["0", "2", "85/0"])
    found.add("after_array", "", *found.after("array", "aftercorr"), sweep=["0", "0", "0"])
    found.add("after_all", "0", *found.after("array"))
    found.add("single", "0", on="n1", command="export-hf")
    bare = {"sbatch_lines": ["--export=NONE"], "memory": "100M"}
    found.add("bare", "0", environment={"HF_HOME": "/models/a b"}, setup=["export FROM_SETUP=yes"], **bare)
    found.add("done", "1", max_failures=0)
    found.add("done_tasks", "", sweep=["0", "1", "0"], max_failures=0)
    yield found
    for job in found.jobs.values():
        slurm.cancel(job)


def test_one_rank_on_each_node_and_all_of_them_meet(submitted: Submitted) -> None:
    job = submitted.wait_for("two", "COMPLETED")
    ranks = submitted.stages.records(job)
    assert [(rank["rank"], rank["node"], rank["met"]) for rank in ranks] == [(0, "n1", [1]), (1, "n2", [0])]
    assert [rank["code"] for rank in ranks] == [0, 0]
    assert len({(r["environment"]["MASTER_ADDR"], r["environment"]["MASTER_PORT"]) for r in ranks}) == 1
    assert submitted.stages.ends("two") == [f"{job} restart 0 code 0 ended"]
    log = submitted.stages.run_dir / "logs" / f"two-{job}.log"
    assert log.read_text().count("is ready in attempt 0") == 2


def test_overrides_and_environment_arrive_as_they_were_typed(submitted: Submitted) -> None:
    job = submitted.wait_for("two", "COMPLETED")
    for rank in submitted.stages.records(job):
        assert rank["arguments"] == ["train", *AWKWARD, "plan=0"]
        environment = rank["environment"]
        assert (environment["MINE"], environment["FROM_SETUP"]) == ("a $b 'c'", "yes")
        assert (environment["HF_HUB_OFFLINE"], environment["HF_DATASETS_OFFLINE"]) == ("1", "1")
        assert environment["NEMO_TVKD_CACHE"] == f"{submitted.stages.run_dir}/imported"


def test_jobs_that_share_nodes_meet_at_different_ports(submitted: Submitted) -> None:
    ports = {}
    for name in ("two", "mistake", "crashes", "mixed"):
        submitted.slurm.wait_until(
            submitted.jobs[name], lambda name=name: bool(submitted.stages.records(submitted.jobs[name])), "a rank"
        )
        ports[name] = submitted.stages.records(submitted.jobs[name])[0]["environment"]["MASTER_PORT"]
    assert len(set(ports.values())) == len(ports)


def test_a_command_of_one_process(submitted: Submitted) -> None:
    job = submitted.wait_for("single", "COMPLETED")
    (rank,) = submitted.stages.records(job)
    assert rank["arguments"] == ["export-hf", "plan=0"]


def test_ranks_see_what_the_script_exports_where_jobs_start_without_an_environment(submitted: Submitted) -> None:
    job = submitted.wait_for("bare", "COMPLETED")
    ranks = submitted.stages.records(job)
    assert [rank["met"] for rank in ranks] == [[1], [0]]  # at MASTER_ADDR
    for rank in ranks:
        environment = rank["environment"]
        assert (environment["HF_HOME"], environment["FROM_SETUP"]) == ("/models/a b", "yes")
        assert (environment["HF_HUB_OFFLINE"], environment["SLURM_JOB_ID"]) == ("1", str(job))


def test_memory_of_a_node_is_asked_for(submitted: Submitted) -> None:
    asked = {name: submitted.slurm.job(submitted.jobs[name])["MinMemoryNode"] for name in ("bare", "two")}
    assert asked == {"bare": "100M", "two": "0"}


def test_what_is_done_is_not_done_again(submitted: Submitted) -> None:
    """The plan of a stage or task that is done would be a crash."""
    job, stages = submitted.wait_for("done", "COMPLETED"), submitted.stages
    assert stages.attempts(job) == 0
    assert stages.ends("done") == [f"{job} restart 0 code 0 ended"]
    array = submitted.jobs["done_tasks"]
    for task in range(3):
        submitted.slurm.wait_for(f"{array}_{task}", "COMPLETED", 60)
    assert [stages.attempts(f"{array}_{task}") for task in range(3)] == [1, 0, 1]


def test_a_running_job_says_which_it_is(submitted: Submitted) -> None:
    """With an array's own number, which scancel takes for all its tasks."""
    submitted.wait_for("two", "COMPLETED")
    submitted.slurm.wait_for(f"{submitted.jobs['array']}_1", "FAILED", 60)
    for name, file in (("two", "two.job"), ("array", "array-1.job")):
        assert (submitted.stages.run_dir / "jobs" / file).read_text() == f"{submitted.jobs[name]}\n"


def test_a_mistake_ends_the_stage_and_all_that_depends_on_it(submitted: Submitted) -> None:
    job = submitted.wait_for("mistake", "FAILED")
    assert submitted.slurm.job(job)["ExitCode"] == "2:0"
    assert submitted.stages.ends("mistake") == [f"{job} restart 0 code 2 ended"]
    for name in ("after_mistake", "after_that"):
        assert submitted.stages.attempts(submitted.wait_for(name, "CANCELLED")) == 0


def test_a_mistake_before_the_ranks_start_ends_the_stage(submitted: Submitted) -> None:
    job = submitted.wait_for("preparation", "FAILED")
    assert submitted.stages.attempts(job) == 0
    assert submitted.stages.ends("preparation") == [f"{job} restart 0 code 2 ended"]


@pytest.mark.parametrize("name", ["mistake_and_crash", "mistake_and_kill"])
def test_a_mistake_that_one_rank_alone_finds_is_no_crash(submitted: Submitted, name: str) -> None:
    """The other rank loses its peer, or srun ends it: srun's own exit code is then not 2."""
    job = submitted.wait_for(name, "FAILED")
    assert submitted.stages.attempts(job) == 1
    assert submitted.stages.ends(name) == [f"{job} restart 0 code 2 ended"]


def test_a_crash_is_tried_again_as_often_as_allowed(submitted: Submitted) -> None:
    job = submitted.wait_for("crashes", "FAILED")
    assert submitted.slurm.job(job)["ExitCode"] == "1:0"
    expected = ["restart 0 code 1 requeued", "restart 1 code 1 requeued", "restart 2 code 1 ended"]
    assert submitted.stages.ends("crashes") == [f"{job} {line}" for line in expected]
    assert submitted.stages.attempts(submitted.wait_for("after_crashes", "CANCELLED")) == 0


def test_a_crash_is_one_even_if_other_ranks_save(submitted: Submitted) -> None:
    """srun ends them with TERM, which they answer with 85."""
    job = submitted.wait_for("crash_and_save", "FAILED")
    assert submitted.stages.attempts(job) == 1
    assert submitted.stages.ends("crash_and_save") == [f"{job} restart 0 code 1 ended"]


def test_stops_and_crashes_have_budgets_of_their_own(submitted: Submitted) -> None:
    job = submitted.wait_for("mixed", "COMPLETED")
    codes = [re.search(r"code (\d+) (\w+)", line).groups() for line in submitted.stages.ends("mixed")]
    assert codes == [("1", "requeued"), ("85", "requeued"), ("1", "requeued"), ("0", "ended")]
    assert submitted.slurm.log(job).count("rank 0 of 2 is ready") == 4  # each attempt appends


def test_a_spent_budget_of_restarts_ends_the_stage(submitted: Submitted) -> None:
    job = submitted.wait_for("spent", "FAILED")
    assert submitted.slurm.job(job)["ExitCode"] == "85:0"
    assert [line.split()[-1] for line in submitted.stages.ends("spent")] == ["requeued", "ended"]
    assert "max_restarts" in submitted.slurm.log(job)  # says which key to raise


def test_array_tasks_end_and_are_requeued_one_by_one(submitted: Submitted) -> None:
    array, stages = submitted.jobs["array"], submitted.stages
    for task, state in enumerate(("COMPLETED", "FAILED", "COMPLETED")):
        submitted.slurm.wait_for(f"{array}_{task}", state, 60)
    assert [stages.attempts(f"{array}_{task}") for task in range(3)] == [1, 1, 2]
    plans = [stages.records(f"{array}_{task}")[0]["arguments"][-1] for task in range(3)]
    assert plans == ["plan=0", "plan=2", "plan=85/0"]
    words = [[line.split(" ", 3)[-1] for line in stages.ends(f"array-{task}")] for task in range(3)]
    assert words == [["code 0 ended"], ["code 2 ended"], ["code 85 requeued", "code 0 ended"]]
    logs = {file.name for file in (stages.run_dir / "logs").glob("array-*")}
    assert logs == {f"array-{array}_{task}.log" for task in range(3)}


def test_a_failed_array_task_stops_its_own_dependant_alone(submitted: Submitted) -> None:
    array = submitted.jobs["after_array"]
    for task, state in enumerate(("COMPLETED", "CANCELLED", "COMPLETED")):
        submitted.slurm.wait_for(f"{array}_{task}", state, 60)
    assert [submitted.stages.attempts(f"{array}_{task}") for task in range(3)] == [1, 0, 1]
    assert submitted.stages.attempts(submitted.wait_for("after_all", "CANCELLED")) == 0  # it needs every task


def test_pyxis_gets_the_container_that_was_asked_for(slurm: SlurmCluster, tmp_path: Path) -> None:
    if slurm.plugin is None:
        pytest.skip(f"the stand-in for pyxis cannot be built; Debian: apt-get install {PLUGIN_PACKAGES}")
    stages = Stages(slurm, tmp_path)
    options = ["--container-writable", "--container-remap-root"]
    container = {"runtime": "pyxis", "image": "nvcr.io#nvidia/nemo:25.11", "mounts": ["/data:/data:ro", "/a:/b"]}
    job = stages.submit("boxed", "0", container=ContainerConfig(**container, options=options))  # type: ignore[arg-type]
    slurm.wait_for(job, "COMPLETED", 60)
    for rank in stages.records(job):
        asked = {k: v for k, v in rank["environment"].items() if k.startswith("FAKE_PYXIS_")}
        assert asked["FAKE_PYXIS_CONTAINER_IMAGE"] == container["image"]
        mounts = asked["FAKE_PYXIS_CONTAINER_MOUNTS"].split(",")
        assert {*container["mounts"], f"{tmp_path}:{tmp_path}"} <= set(mounts)
        assert asked["FAKE_PYXIS_NO_CONTAINER_MOUNT_HOME"] == "1"
        assert asked["FAKE_PYXIS_CONTAINER_WRITABLE"] == asked["FAKE_PYXIS_CONTAINER_REMAP_ROOT"] == "1"
        assert asked["FAKE_PYXIS_CONTAINER_WORKDIR"]
