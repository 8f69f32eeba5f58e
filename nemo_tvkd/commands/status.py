"""`nemo-tvkd status RUN_DIR`: each stage of a submitted chain, its job in Slurm, its step, loss and time left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_tvkd.cluster.queue import Job, Key, SlurmUnavailable, job_states
from nemo_tvkd.commands.report.folder import METRICS, Ends, Run, Task, read_ends, read_run
from nemo_tvkd.files import read_json
from nemo_tvkd.runtime.clock import duration
from nemo_tvkd.runtime.outputs import FINISHED, progress_file
from nemo_tvkd.training.metrics_file import last_rows, number

COLUMNS = ("stage", "job", "state", "step", "loss", "accuracy", "time left", "restarts", "failures", "nodes")
COLOURS = {"done": "green", "COMPLETED": "green", "RUNNING": "cyan", "PENDING": "yellow"}
QUIET_PHASES = (None, "training", "scoring")
"""Any other phase ("saving", "validating") is shown behind the step."""
QUIET = ("replaced", "not needed", "not submitted")
PLAIN_WIDTH = 250
"""Characters of a line where no terminal says how many fit, so that a pipe gets whole rows."""


def main(run_dir: str) -> int:
    """Print where a submitted recipe stands; returns the exit code.

    Raises:
        UserError: the folder has no submission.json.
    """
    run = read_run(Path(run_dir), single=False)
    jobs: dict[Key, Job] | None = None
    note = ""
    try:
        jobs = job_states([stage.job_id for stage in run.stages if stage.job_id is not None])
    except SlurmUnavailable as error:
        note = f"Slurm does not answer ({error}): states are read from the files in {run_dir} alone"
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    console.print(Text(f"{run.recipe} on {run.cluster}, submitted {run.submitted}"), soft_wrap=True)
    if note:
        console.print(Text(note), soft_wrap=True)
    console.print(_table(rows(run, jobs)))
    return 0


def rows(run: Run, jobs: Mapping[Key, Job] | None) -> list[dict[str, str]]:
    """One row for each stage or array task: text by column, "" where there is nothing to say.

    Args:
        jobs: what Slurm knows; None: it cannot be asked.
    """
    return [_row(task, jobs) for stage in run.stages for task in run.tasks(stage)]


def _row(task: Task, jobs: Mapping[Key, Job] | None) -> dict[str, str]:
    stage = task.stage
    job = None if stage.job_id is None else (jobs or {}).get((stage.job_id, task.index))
    ends = read_ends(task)
    row = dict.fromkeys(COLUMNS, "")
    row["stage"] = " ".join([task.name, *task.overrides])
    if stage.job_id is not None:
        row["job"] = str(stage.job_id) if task.index is None else f"{stage.job_id}_{task.index}"
    row["state"] = state(task, job, ends, asked=jobs is not None)
    if stage.state == "submitted":
        row |= _progress(task, over=job is not None and job.ended)
    row["restarts"], row["failures"] = (str(count) if count else "" for count in (ends.restarts, ends.failures))
    if job is not None and job.state == "RUNNING":
        row["nodes"] = job.nodes
    return row


def state(task: Task, job: Job | None, ends: Ends, asked: bool) -> str:
    """Slurm's word for the job's state with its reason or exit code; from the files where Slurm knows none.

    Args:
        asked: whether Slurm was, so that a job that it does not know is over.
    """
    stage = task.stage
    if stage.state != "submitted":
        return "not needed" if stage.state == "unneeded" else stage.state
    if job is not None:
        reason = job.reason if job.state == "PENDING" and job.reason not in ("", "None") else ""
        if job.state in ("FAILED", "NODE_FAIL") and job.code:
            reason = f"exit code {job.code}"
        if job.state == "COMPLETED" and not task.written:
            reason = "but its output is missing"
        return f"{job.state} ({reason})" if reason else job.state
    if task.written:
        return "done"
    if stage.job_id is None:
        return "not submitted"
    if ends.failed:
        return f"FAILED (exit code {ends.code})"
    if asked:
        return "not done (Slurm no longer knows the job)"
    return "started, not done" if task.started else "submitted"


def _progress(task: Task, over: bool) -> dict[str, str]:
    """Figures from metrics.jsonl; the units done and the time left from the progress file."""
    progress = _progress_file(task)
    done, total, rate = (number(progress.get(name)) for name in ("done", "total", "rate"))
    cells: dict[str, str] = {}
    if not over and not task.written and done is not None and total is not None and rate:
        cells["time left"] = duration((total - done) / rate)
    if task.stage.command == "score":
        share = 100.0 if task.written else 100 * done / total if done is not None and total else None
        return cells | ({} if share is None else {"step": f"{share:.0f} %"})
    if task.stage.command != "train":
        return cells
    trained = [row for row in last_rows(task.output / METRICS) if number(row.get("loss")) is not None]
    last = trained[-1] if trained else {}
    step = max((value for value in (done, number(last.get("step"))) if value is not None), default=None)
    steps = total or task.stage.max_steps
    if task.written:
        step = steps = number(_mapping(task.output / FINISHED).get("step")) or step
    if step is not None:
        phase = "" if over or task.written or progress.get("phase") in QUIET_PHASES else f" ({progress['phase']})"
        cells["step"] = (f"{step:.0f}" if steps is None else f"{step:.0f}/{steps:.0f}") + phase
    for column, name in (("loss", "loss"), ("accuracy", "rewards/accuracies")):
        if (value := number(last.get(name))) is not None:
            cells[column] = f"{value:.4f}"
    return cells


def _progress_file(task: Task) -> dict[str, Any]:
    return _mapping(progress_file(task.stage.command, task.output))


def _mapping(file: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is missing or damaged."""
    content = read_json(file)
    return content if isinstance(content, dict) else {}


def _table(lines: list[dict[str, str]]) -> Table:
    """Without the columns that are empty in all rows."""
    table = Table(box=None, pad_edge=False)
    columns = [name for name in COLUMNS if any(row[name] for row in lines) or name in ("stage", "job", "state")]
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in lines:
        word = row["state"].split(" ")[0]
        colour = COLOURS.get(word, "dim" if row["state"] in QUIET else "red" if word.isupper() else "")
        table.add_row(*(Text(row[name], style=colour if name == "state" else "") for name in columns))
    return table
