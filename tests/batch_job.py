"""A rendered batch script in a plain shell; srun and scontrol are scripts that write down what was asked."""

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tvkd.cluster.recipe import Stage
from nemo_tvkd.cluster.render import render
from nemo_tvkd.config.cluster import ClusterConfig

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
