"""Rendered batch scripts in a plain shell (tests/batch_job.py); what a real Slurm makes of them: tests/slurm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from batch_job import OVERRIDES, Job

from nemo_tvkd.config.cluster import ContainerConfig
from nemo_tvkd.runtime.outputs import MARKS


def test_words_and_environment_arrive_exactly(tmp_path: Path) -> None:
    odd = "a b $(touch hacked) 'c' \"d\""
    job = Job(tmp_path, cluster={"environment": {"ODD": odd}, "setup": ["export MADE=$((1 + 1))"], "cpus_per_rank": 3})
    assert job.run() == 0
    check, step = job.calls()
    options = ["--kill-on-bad-exit=1", "--cpus-per-task=3"]
    one_task = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert check == [*options, *one_task, "python", "-m", "nemo_tvkd.commands.doctor.versions"]
    assert step == [*options, "python", "-m", "nemo_tvkd", "train", *OVERRIDES]
    found = job.environment()
    assert (found["ODD"], found["MADE"], found["OMP_NUM_THREADS"]) == (odd, "2", "3")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.3", str(10000 + 41234 % 20000))
    assert {found[f"{name}_OFFLINE"] for name in ("HF_HUB", "HF_DATASETS", "TRANSFORMERS")} == {"1"}
    assert found["NEMO_TVKD_CACHE"] == f"{job.run_dir}/imported"
    assert found["PWD"] == str(job.run_dir)
    assert "RANK" not in found
    assert not list(tmp_path.rglob("hacked"))
    assert job.ends() == ["job 41234 restart 0 code 0 ended"]


def test_stops_and_crashes_have_a_budget_each(tmp_path: Path) -> None:
    job = Job(tmp_path, cluster={"max_restarts": 2, "max_failures": 1})
    (job.run_dir / "jobs" / "stage.ends").write_text("2026-11-21T12:00:00Z job 4123 restart 0 code 85 requeued\n" * 9)
    found = []
    for restart, code in enumerate((85, 137, 85, 85, 1)):
        assert job.run(code, SLURM_RESTART_COUNT=str(restart)) == code
        found.append((code, job.requeues()))
    again = ["requeue 41234"]
    assert found == [(85, again), (137, again), (85, again), (85, []), (1, [])]
    words = [line.split()[-1] for line in job.ends()[9:]]
    assert words == ["requeued", "requeued", "requeued", "ended", "ended"]
    assert job.ends()[10] == "job 41234 restart 1 code 137 requeued"
    assert "cluster.max_restarts=2 is used up" in job.log()
    assert "cluster.max_failures=1 is used up" in job.log()
    assert f"sbatch '{job.script}'" in job.log()


def test_a_mistake_is_not_repeated(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run(2) == 2
    assert (job.requeues(), job.ends()) == ([], ["job 41234 restart 0 code 2 ended"])


EXITED = "Exited with exit code"


@pytest.mark.parametrize(
    ("ranks", "highest", "counts"),
    [
        ((f"{EXITED} 2", "Killed"), 137, 2),  # srun has killed the other
        (("Killed", f"{EXITED} 2"), 137, 2),
        ((f"{EXITED} 85", "Killed"), 137, 85),
        ((f"{EXITED} 1", f"{EXITED} 85"), 85, 1),  # srun's TERM has made the other save
        (("Segmentation fault", f"{EXITED} 85"), 85, 137),
        ((f"{EXITED} 23",), 23, 23),
    ],
)
def test_how_the_first_rank_left_counts(tmp_path: Path, ranks: tuple[str, ...], highest: int, counts: int) -> None:
    job = Job(tmp_path, cluster={"max_failures": 0})
    (tmp_path / "log").write_text(f"srun: error: n1: task 0: {EXITED} 2\n")  # of an earlier start
    lines = "\n".join(f"srun: error: n{i}: tasks {i},4-6: {text}" for i, text in enumerate(ranks))
    assert job.run(highest, SAYS=lines) == counts
    assert len(job.requeues()) == (counts == 85)


def test_a_requeue_that_fails_is_said(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run(85, REQUEUE="1") == 85
    assert "scontrol could not put the job back into the queue" in job.log()
    assert job.ends()[-1] == "job 41234 restart 0 code 85 ended"


def test_usr1_reaches_srun_and_the_job_goes_back(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.signalled(signal.SIGUSR1) == 85
    assert (job.fake / "srun.signals").read_text() == "USR1\n"
    assert job.requeues() == ["requeue 41234"]
    assert "goes back into the queue" in job.log()


def test_term_does_not_requeue(tmp_path: Path) -> None:
    """Slurm does that itself for a pre-empted job, and a cancelled one must stay cancelled."""
    job = Job(tmp_path)
    assert job.signalled(signal.SIGTERM) == 85
    assert (job.fake / "srun.signals").read_text() == "USR1\n"
    assert (job.requeues(), job.ends()) == ([], ["job 41234 restart 0 code 85 ended"])


@pytest.mark.parametrize(("task", "name"), [(0, "stage-0"), (2, "stage-2")])
def test_an_array_task_takes_its_own_words(tmp_path: Path, task: int, name: str) -> None:
    job = Job(tmp_path, sweep=(("seed=1", "o='a b/0'"), ("seed=2",), ("seed=$x,3",)), task=task)
    assert job.run(85) == 85
    assert job.calls()[-1][-len(job.sweep[task]) :] == list(job.sweep[task])
    assert job.requeues() == [f"requeue 41234_{task}"]
    assert job.ends(name) == ["job 41234 restart 0 code 85 requeued"]
    assert job.run(2) == 2
    assert f"sbatch --array={task} '{job.script}'" in job.log()
    assert job.environment()["MASTER_PORT"] == str(10000 + 41240 % 20000)  # each task has its own


def test_an_array_task_that_does_not_exist(tmp_path: Path) -> None:
    assert Job(tmp_path, sweep=(("seed=1",),), task=4).run() == 2


@pytest.mark.parametrize(("code", "ended", "requeues"), [("2", 2, 0), ("1", 1, 1), ("137", 137, 1)])
def test_a_wrong_environment_ends_the_job_before_the_step(tmp_path: Path, code: str, ended: int, requeues: int) -> None:
    job = Job(tmp_path)
    if (
        code == "1"
    ):  # the second question, whether nemo_tvkd is there, is answered with 1 as well: something else is wrong
        assert "find_spec" in job.script.read_text()
    assert job.run(VERSIONS=code) == ended
    assert not (job.fake / "srun.environment").exists()
    assert len(job.requeues()) == requeues


def test_an_environment_without_nemo_tvkd_is_a_mistake(tmp_path: Path) -> None:
    """The check cannot even start (1); the second question finds no package (2)."""
    job = Job(tmp_path)
    answer = '[[ "$*" == *find_spec* ]] && exit 2; exit 1'
    (job.fake / "srun").write_text(f"#!/bin/bash\n{answer}\n")
    assert job.run() == 2
    assert "python has no nemo_tvkd" in job.log()
    assert job.requeues() == []


@pytest.mark.parametrize("runtime", ["none", "pyxis"])
def test_the_project_is_installed_once(tmp_path: Path, runtime: str) -> None:
    source = tmp_path / "check out"
    for name in ("nemo_tvkd", "conf", "slurm", ".venv"):
        (source / name).mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).touch()
    job = Job(tmp_path, cluster={"container": ContainerConfig(runtime=runtime, install=str(source))})
    assert job.run() == 0
    install, _, step = job.calls()
    assert install[install.index("pip") :][:4] == ["pip", "install", "--quiet", "--no-deps"]
    lines = (job.fake / "installed").read_text().split("\n")
    assert sorted(lines[1:]) == ["", "LICENSE", "README.md", "conf", "nemo_tvkd", "pyproject.toml", "slurm"]
    assert [path.name for path in (job.run_dir / "software").iterdir()] == ["nemo_tvkd"]
    wrapper = step[step.index("bash") :]
    ran = subprocess.run(
        [*wrapper[:4], sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'])"],
        env={**os.environ, "PYTHONPATH": "/of/the/image"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == f"{job.run_dir}/software/nemo_tvkd:/of/the/image\n"
    assert wrapper[4:] == ["python", "-m", "nemo_tvkd", "train", *OVERRIDES]
    assert job.run() == 0
    assert len(job.calls()) == 2
    assert job.environment()["PWD"] == str(job.run_dir)


def test_an_installation_that_fails(tmp_path: Path) -> None:
    gone = Job(tmp_path / "a", cluster={"container": ContainerConfig(install="/no/such/checkout")})
    assert gone.run() == 2
    assert "cluster.container.install: there is no /no/such/checkout" in gone.log()
    (tmp_path / "x.whl").touch()
    job = Job(tmp_path / "b", cluster={"container": ContainerConfig(install=str(tmp_path / "x.whl"))})
    assert job.run(PIP="1") == 1
    assert job.requeues() == ["requeue 41234"]
    assert not (job.run_dir / "software" / "nemo_tvkd").exists()
    assert job.run() == 0


@pytest.mark.parametrize("runtime", ["none", "pyxis", "apptainer", "docker"])
def test_a_container_does_not_get_the_python_path_of_the_shell(tmp_path: Path, runtime: str) -> None:
    job = Job(tmp_path, cluster={"container": ContainerConfig(runtime=runtime)})
    assert job.run(PYTHONPATH="/of/the/node", PYTHONHOME="/home") == 0
    kept = {"PYTHONPATH": "/of/the/node", "PYTHONHOME": "/home"} if runtime == "none" else {}
    assert {name: value for name, value in job.environment().items() if name in ("PYTHONPATH", "PYTHONHOME")} == kept
    own = Job(tmp_path, cluster={"container": ContainerConfig(runtime=runtime), "environment": {"PYTHONPATH": "/mine"}})
    assert own.run(PYTHONPATH="/of/the/node") == 0
    assert own.environment()["PYTHONPATH"] == "/mine"


def test_words_of_each_container_runtime(tmp_path: Path) -> None:
    words = {}
    for runtime in ("pyxis", "apptainer", "docker"):
        container = ContainerConfig(runtime=runtime, image="im age", mounts=["/a b:/c:ro"], options=["--more=x y"])
        job = Job(tmp_path / runtime, cluster={"container": container, "environment": {"MINE": "1"}})
        (job.fake / "apptainer").write_text("")
        (job.fake / "apptainer").chmod(0o755)
        assert job.run(1) == 1
        words[runtime] = next(call for call in job.calls() if "train" in call)
        assert words[runtime][-len(OVERRIDES) - 4 :] == ["python", "-m", "nemo_tvkd", "train", *OVERRIDES]
        run_dir = str(job.run_dir)
        if runtime == "pyxis":
            assert words[runtime][1:5] == [
                "--container-image=im age", f"--container-mounts={run_dir}:{run_dir},/a b:/c:ro",
                f"--container-workdir={run_dir}", "--no-container-mount-home",
            ]  # fmt: skip
            assert words[runtime][5].endswith(",MINE")
            assert words[runtime][6] == "--more=x y"
        elif runtime == "apptainer":
            assert words[runtime][1:-7] == [
                str(job.fake / "apptainer"), "exec", "--nv", "--bind", f"{run_dir}:{run_dir}", "--bind", "/a b:/c:ro",
                "--pwd", run_dir, "--more=x y", "im age",
            ]  # fmt: skip
        else:
            asked = words[runtime][1:-7]
            assert asked[:4] == ["docker", "run", "--rm", "--gpus"]
            assert asked[-2:] == ["--more=x y", "im age"]
            assert {"--env=SLURM_PROCID", "--env=MASTER_ADDR", "--env=MINE", "--env=HF_HUB_OFFLINE"} <= set(asked)
            assert ["-v", f"{run_dir}:{run_dir}"] == asked[asked.index("-v") :][:2]
            assert any("docker ps" in word for word in job.calls()[-1])  # what a killed client leaves behind


# --- what is done already, and which jobs there are


@pytest.mark.parametrize(("command", "mark"), MARKS.items())
def test_a_stage_that_is_done_ends_at_once(tmp_path: Path, command: str, mark: str) -> None:
    job = Job(tmp_path, command=command)
    output = job.run_dir / "stage"
    output.mkdir()
    (output / f".{mark}.partial").touch()
    assert job.run(85) == 85  # not done: the stage runs
    (output / mark).touch()
    assert job.run(1, SLURM_RESTART_COUNT="1") == 0  # put back into the queue after its last word
    assert not (job.fake / "srun.calls").exists()
    assert job.ends() == ["job 41234 restart 0 code 85 requeued", "job 41234 restart 1 code 0 ended"]
    assert "job 41234: done" in job.log()


def test_tasks_that_are_done_end_at_once(tmp_path: Path) -> None:
    sweep = (("seed=1",), ("seed=2",), ("seed=3",))
    for task in range(3):
        job = Job(tmp_path, sweep=sweep, task=task)
        if task == 1:
            (job.run_dir / "stage" / "1").mkdir(parents=True)
            (job.run_dir / "stage" / "1" / "finished.json").touch()
        assert job.run() == 0
        assert (job.fake / "srun.calls").exists() is (task != 1)
        assert job.ends(f"stage-{task}") == ["job 41234 restart 0 code 0 ended"]


def test_a_job_writes_its_number_down(tmp_path: Path) -> None:
    """Also one that ends at once; scancel takes an array's own number for all of its tasks."""
    single = Job(tmp_path / "single", cluster={"max_failures": 0})
    assert single.run(VERSIONS="2") == 2
    assert (single.run_dir / "jobs" / "stage.job").read_text() == "41234\n"
    array = Job(tmp_path / "array", sweep=(("seed=1",), ("seed=2",)), task=1)
    assert array.run() == 0
    assert (array.run_dir / "jobs" / "stage-1.job").read_text() == "41234\n"
