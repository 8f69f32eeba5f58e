"""Submits rendered batch scripts whose `python` is payload.py, and reads what their ranks saw."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm_cluster import SlurmCluster

from nemo_tvkd.cluster.recipe import Stage
from nemo_tvkd.cluster.render import render
from nemo_tvkd.config.cluster import ClusterConfig

PAYLOAD = Path(__file__).with_name("payload.py")


class Stages:
    """One run folder on a private Slurm."""

    def __init__(self, slurm: SlurmCluster, run_dir: Path) -> None:
        self.slurm, self.run_dir = slurm, run_dir
        for name in ("jobs", "logs", "records"):
            (run_dir / name).mkdir(parents=True)
        self.python = run_dir / "python"
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {PAYLOAD} "$@"\n')
        self.python.chmod(0o755)

    def submit(
        self,
        name: str,
        plan: str,
        *options: str,
        on: str = "n1,n2",
        sweep: Sequence[str] = (),
        overrides: Sequence[str] = (),
        command: str = "train",
        environment: dict[str, str] | None = None,
        **cluster: Any,
    ) -> int:
        """sbatch `options` the script of a stage with one rank on each of the nodes `on`; the job's id.

        Args:
            plan: what payload.py does.
            sweep: plans of an array's tasks, instead of `plan`.
            cluster: keys of ClusterConfig.
        """
        keys: dict[str, Any] = {"time": "00:10:00", "signal_seconds": 60, "gpus_per_node": 0, "exclusive": False}
        keys |= {"ranks_per_node": 1, "cpus_per_rank": 1, "gpu_directive": "none", "python": str(self.python)} | cluster
        keys["environment"] = {"RECORDS": f"{self.run_dir}/records"} | (environment or {})
        keys["sbatch_lines"] = [f"--nodelist={on}", *cluster.get("sbatch_lines", [])]
        stage = Stage(
            name=name,
            command=command,
            overrides=(*overrides, *(() if sweep else (f"plan={plan}",))),
            after=(),
            output=self.run_dir / name,
            sweep=tuple((f"plan={task}",) for task in sweep),
            state="submitted",
            models={},
            cluster=ClusterConfig(**keys),
            nodes=len(on.split(",")),
            ranks_per_node=1,
        )
        script = self.run_dir / "jobs" / f"{name}.sbatch"
        script.write_text(render(stage, self.run_dir, "a_recipe"))
        return self.slurm.submit(script, *options)

    def after(self, job: int, kind: str = "afterok") -> tuple[str, str]:
        """Options of sbatch for a dependant, as `submit` gives them."""
        return f"--dependency={kind}:{job}", "--kill-on-invalid-dep=yes"

    def ready(self, job: int | str, attempt: int = 0, timeout: float = 30) -> None:
        """Wait until both ranks of an attempt run and have met."""

        def running() -> bool:
            return len(self.records(job, attempt)) == 2

        self.slurm.wait_until(job, running, f"two ranks in attempt {attempt}", timeout)

    def records(self, job: int | str, attempt: int = 0) -> list[dict[str, Any]]:
        """What the ranks of an attempt noted, in their order."""
        files = (self.run_dir / "records" / str(job)).glob(f"{attempt}-*.json")
        return sorted((json.loads(file.read_text()) for file in files), key=lambda record: record["rank"])

    def attempts(self, job: int | str) -> int:
        folder = self.run_dir / "records" / str(job)
        return len({file.name.split("-")[0] for file in folder.glob("*.json")})

    def ends(self, name: str) -> list[str]:
        """The lines of jobs/NAME.ends without their time: "12 restart 0 code 85 requeued" (12: the job)."""
        file = self.run_dir / "jobs" / f"{name}.ends"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split(" ", 2)[2] for line in lines]
