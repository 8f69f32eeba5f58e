"""Rendered batch scripts in a plain shell; srun and scontrol are scripts that write down what was asked."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemo_tvkd.cluster.config import ClusterConfig, ContainerConfig
from nemo_tvkd.cluster.recipe import Stage
from nemo_tvkd.cluster.render import render

SRUN = """#!/bin/bash
{ printf '%s\\0' "$@"; printf '\\n'; } >> "$FAKE/srun.calls"
while [[ $1 == -* ]]; do shift; done
[[ "$*" == *-m\\ nemo_tvkd\\ * || "$*" == *"pip install"* || "$*" == *"docker ps"* ]] || exit "${VERSIONS:-0}"
if [[ "$*" == *"pip install"* ]]; then
  while [[ $1 != --target ]]; do shift; done
  echo "$3" >> "$FAKE/installed"; ls "$3" >> "$FAKE/installed"
  mkdir -p "$2/nemo_tvkd"
  exit "${PIP:-0}"
fi
[[ "$*" == *"docker ps"* ]] && exit 0
env -0 > "$FAKE/srun.environment"
if [[ -n $SAYS ]]; then
  echo "$SAYS" >&2
  head -c 300000 /dev/zero | tr '\\0' '\\n' >&2 # more than a pipe holds
fi
trap 'echo USR1 >> "$FAKE/srun.signals"; sleep 0.3; exit 85' USR1
trap 'echo TERM >> "$FAKE/srun.signals"; exit 143' TERM
touch "$FAKE/srun.ready"
[[ -n $EXIT_CODE ]] && exit "$EXIT_CODE"
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$FAKE/scontrol.calls"
case "$*" in
  "show hostnames node[3-4]") printf 'node3\\nnode4\\n' ;;
  "show node node3") printf 'NodeName=node3 Arch=x86_64\\n   NodeAddr=10.0.0.3 NodeHostName=node3 Port=0\\n' ;;
  requeue*) exit "${REQUEUE:-0}" ;;
esac
"""
OVERRIDES = ("algorithm=dpo", "student.path='a b'", 'data.train="$(touch hacked)" it\'s `touch hacked` \\')


@dataclass
class Job:
    """One batch job in a folder, as Slurm would start it; each run is a start of the same job."""

    folder: Path
    command: str = "train"
    sweep: tuple[tuple[str, ...], ...] = ()
    cluster: dict[str, Any] = field(default_factory=dict)
    task: int | None = None

    def __post_init__(self) -> None:
        self.run_dir, self.fake = self.folder / "run dir", self.folder / "fake"
        for folder in (self.run_dir / "jobs", self.fake):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.fake / name).write_text(text)
            (self.fake / name).chmod(0o755)
        stage = Stage(
            "stage", self.command, OVERRIDES, (), self.run_dir / "stage", self.sweep, "submitted", {},
            ClusterConfig(name="test", **self.cluster), 2, 4,
        )  # fmt: skip
        self.script = self.run_dir / "jobs" / "stage.sbatch"
        self.script.write_text(render(stage, self.run_dir, "rec"))

    def start(self, **environment: str) -> subprocess.Popen:
        env = {"PATH": f"{self.fake}:/usr/bin:/bin", "FAKE": str(self.fake), "EXIT_CODE": "", "SAYS": ""}
        env |= {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[3-4]", "RANK": "7"}
        if self.task is not None:
            env |= {"SLURM_JOB_ID": "41240", "SLURM_ARRAY_JOB_ID": "41234", "SLURM_ARRAY_TASK_ID": str(self.task)}
        for name in ("srun.ready", "srun.calls", "srun.signals", "scontrol.calls"):
            (self.fake / name).unlink(missing_ok=True)
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(["bash", str(self.script)], cwd="/", env=env | environment, stdout=log, stderr=log)

    def run(self, code: int = 0, **environment: str) -> int:
        return self.start(EXIT_CODE=str(code), **environment).wait(timeout=30)

    def signalled(self, number: int, **environment: str) -> int:
        process = self.start(**environment)
        try:
            deadline = time.monotonic() + 30
            while not (self.fake / "srun.ready").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)  # to the batch shell alone, as B: does
            return process.wait(timeout=30)
        finally:
            process.kill()

    def calls(self) -> list[list[str]]:
        return [line.rstrip("\0").split("\0") for line in (self.fake / "srun.calls").read_text().splitlines()]

    def environment(self) -> dict[str, str]:
        words = (self.fake / "srun.environment").read_text().rstrip("\0").split("\0")
        return dict(word.split("=", 1) for word in words)

    def requeues(self) -> list[str]:
        file = self.fake / "scontrol.calls"
        return [line for line in file.read_text().splitlines() if line.startswith("requeue")] if file.exists() else []

    def ends(self, name: str = "stage") -> list[str]:
        lines = (self.run_dir / "jobs" / f"{name}.ends").read_text().splitlines()
        assert all(len(line.split(" ", 1)[0]) == 20 for line in lines)
        return [line.split(" ", 1)[1] for line in lines]

    def log(self) -> str:
        return (self.folder / "log").read_text()


def test_words_and_environment_arrive_exactly(tmp_path: Path) -> None:
    odd = "a b $(touch hacked) 'c' \"d\""
    job = Job(tmp_path, cluster={"environment": {"ODD": odd}, "setup": ["export MADE=$((1 + 1))"], "cpus_per_rank": 3})
    assert job.run() == 0
    check, step = job.calls()
    options = ["--kill-on-bad-exit=1", "--cpus-per-task=3"]
    one_task = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert check == [*options, *one_task, "python", "-m", "nemo_tvkd.doctor.versions"]
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
