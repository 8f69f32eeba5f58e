"""What a run folder holds: the submission, its stages and array tasks, how their jobs ended, their metrics."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.outputs import is_done
from nemo_tvkd.training.metrics_file import number, read_metrics, tail

__all__ = ["Ends", "Run", "Stage", "Task", "number", "read_ends", "read_json", "read_metrics", "read_run", "tail"]

SUBMISSION, METRICS, CONFIG = "submission.json", "metrics.jsonl", "config.yaml"
STOPPED = (85, 143)
"""Exit codes of a job that a signal stopped: with its work saved, or at once by TERM."""


@dataclass(frozen=True)
class Stage:
    """One stage as it was submitted; a field is as in submission.json."""

    name: str
    command: str
    output: Path
    after: tuple[str, ...] = ()
    state: str = "submitted"
    """submitted | done (its output was there already) | replaced (by a path) | unneeded (nothing reads it)."""
    job_id: int | None = None
    tasks: int | None = None
    sweep: tuple[tuple[str, ...], ...] = ()
    max_steps: int | None = None


@dataclass(frozen=True)
class Task:
    """A stage, or one array task of it (then `index` counts from 0)."""

    stage: Stage
    index: int | None
    overrides: tuple[str, ...]
    """What the sweep sets for this task."""
    run_dir: Path

    @property
    def name(self) -> str:
        """As its files under jobs/ and logs/ are named."""
        return self.stage.name if self.index is None else f"{self.stage.name}-{self.index}"

    @property
    def output(self) -> Path:
        """Where it writes."""
        return self.stage.output if self.index is None else self.stage.output / str(self.index)

    @property
    def done(self) -> bool:
        """Whether its output is whole, or is not its to write."""
        return self.stage.state != "submitted" or self.written

    @property
    def written(self) -> bool:
        """Whether its output is whole."""
        try:
            return is_done(self.stage.command, self.output)
        except KeyError:  # a command of another version
            return False

    @property
    def started(self) -> bool:
        """Whether it has left anything behind, whole or not."""
        return self.output.exists() or (self.run_dir / "jobs" / f"{self.name}.ends").exists()


@dataclass(frozen=True)
class Run:
    """A submitted recipe, or one training run (without recipe and cluster)."""

    directory: Path
    stages: tuple[Stage, ...]
    recipe: str = ""
    cluster: str = ""
    submitted: str = ""
    paths: tuple[str, ...] = ()
    """How the run folder is named inside the overrides."""

    def tasks(self, stage: Stage) -> list[Task]:
        """The array tasks of a stage; the stage itself where it is no array."""
        if stage.tasks is None:
            return [Task(stage, None, (), self.directory)]
        sweep = self.sweep(stage)
        return [
            Task(stage, index, sweep[index] if index < len(sweep) else (), self.directory)
            for index in range(stage.tasks)
        ]

    def sweep(self, stage: Stage) -> tuple[tuple[str, ...], ...]:
        """What tells a stage's tasks apart: its own overrides, else those of the array whose outputs it reads.

        Overrides that only name the tasks' folders in the run folder say nothing.
        """
        own = tuple(
            tuple(word for word in overrides if not any(path in word for path in self.paths))
            for overrides in stage.sweep
        )
        if any(own) or stage.tasks is None:
            return own
        before = (self.sweep(other) for other in self.stages if other.name in stage.after)
        return next((sweep for sweep in before if len(sweep) == stage.tasks), own)


def read_run(directory: Path, single: bool) -> Run:
    """The run in a folder.

    Args:
        single: whether the output_dir of one `nemo-tvkd train` will do, too.

    Raises:
        UserError: the folder is no run folder, or its submission.json cannot be read.
    """
    file = directory / SUBMISSION
    if file.is_file():
        return _submission(directory, read_json(file))
    if single and ((directory / METRICS).is_file() or "trainer" in training_config(directory)):
        return Run(directory, (Stage(directory.resolve().name, "train", directory),))
    what = "a folder that `nemo-tvkd submit` made" + (" or a run's trainer.output_dir" if single else "")
    reason = f"has no {SUBMISSION}" if directory.is_dir() else "is no directory"
    raise UserError(f"{directory} {reason}: give {what}")


def _submission(directory: Path, found: Any) -> Run:
    file = directory / SUBMISSION
    if not isinstance(found, dict) or found.get("version") != 1:
        raise UserError(f"{file}: version 1 of a submission is needed; submit again with this nemo-tvkd")
    try:
        stages = tuple(
            Stage(
                name=str(row["name"]),
                command=str(row["command"]),
                output=directory / row["output"],
                after=tuple(row.get("after") or ()),
                state=str(row["state"]),
                job_id=_job_id(row),
                tasks=row.get("tasks"),
                sweep=tuple(tuple(map(str, overrides)) for overrides in row.get("sweep") or ()),
                max_steps=row.get("max_steps"),
            )
            for row in found["stages"]
        )
        recipe, cluster, submitted = (str(found[key]) for key in ("recipe", "cluster", "submitted"))
        return Run(directory, stages, recipe, cluster, submitted, (str(directory.absolute()), str(found["run_dir"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: {error!r}: not what `nemo-tvkd submit` writes; submit again") from error


def _job_id(row: dict[str, Any]) -> int | None:
    found = row.get("job_id")
    if not isinstance(found, int | None):
        raise TypeError(f"job_id of stage {row['name']} is {found!r}, no job's number")
    return found


def read_json(file: Path) -> Any:
    """A JSON file. Raises UserError where it is none."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error


def training_config(output: Path) -> dict[str, Any]:
    """A training run's config.yaml; empty where there is none that can be read."""
    from omegaconf import OmegaConf

    try:
        found = OmegaConf.to_container(OmegaConf.load(output / CONFIG), resolve=False)
    except Exception:  # there is none, or it is no YAML: a report shows the rest
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


_END = re.compile(r"\S+ job (\S+) restart (\d+) code (\d+) (requeued|ended)$")


@dataclass
class Ends:
    """How a task's jobs ended so far, from jobs/NAME.ends."""

    jobs: dict[str, int] = field(default_factory=dict)
    """Job -> how often it started again."""
    failures: int = 0
    """Ends with an exit code other than 0 and STOPPED."""
    code: int | None = None
    """The last exit code."""
    requeued: bool = False
    """Whether the job went back into the queue after that."""
    earlier: bool = False
    """Whether that was a job of an earlier submission."""

    @property
    def restarts(self) -> int:
        """Of all its jobs together."""
        return sum(self.jobs.values())

    @property
    def failed(self) -> bool:
        """Whether the last job of this submission ended for good, and not well."""
        return self.code not in (None, 0) and not self.requeued and not self.earlier


def read_ends(task: Task) -> Ends:
    """What is known of the ends of a task's jobs; a node that dies writes nothing, but the next start counts it."""
    ends = Ends()
    requeued: dict[str, int] = {}
    for line in tail(task.run_dir / "jobs" / f"{task.name}.ends"):
        if (match := _END.match(line.strip())) is None:
            continue
        job, restart, code, word = match[1], int(match[2]), int(match[3]), match[4]
        ends.code, ends.requeued = code, word == "requeued"
        ends.earlier = job != str(task.stage.job_id)
        requeued[job] = requeued.get(job, 0) + ends.requeued
        ends.jobs[job] = max(ends.jobs.get(job, 0), restart, requeued[job])
        ends.failures += code not in (0, *STOPPED)
    return ends
