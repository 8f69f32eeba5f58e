"""`nemo-tvkd status RUN_DIR`: each stage of a submitted chain, its job in Slurm, its step, loss and time left."""

import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_tvkd.cluster.queue import Job, Key, SlurmUnavailable, job_states
from nemo_tvkd.commands.report.folder import METRICS, Ends, Run, Task, read_ends, read_json, read_run
from nemo_tvkd.training.metrics_file import last_rows, number, tail

STEP = re.compile(r"step (\d+)/(\d+) .* tokens/s +(.+) left$")
SCORED = re.compile(r"scored (\d+) % .* tokens/s +(.+) left$")
COLUMNS = ("stage", "job", "state", "step", "loss", "accuracy", "time left", "restarts", "failures", "nodes")
COLOURS = {"done": "green", "COMPLETED": "green", "RUNNING": "cyan", "PENDING": "yellow"}
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
        note = f"Slurm cannot be asked ({error}): states are from the files in {run_dir} alone"
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
    """Step and figures from metrics.jsonl; the steps in all and the time left from the newest log."""
    found: dict[str, str] = {}
    match = _last_match(task, SCORED if task.stage.command == "score" else STEP)
    if match is not None and not over and not task.written:
        found["time left"] = match[match.re.groups]
    if task.stage.command == "score":
        return found | {"step": "100 %" if task.written else f"{match[1]} %" if match is not None else ""}
    if task.stage.command != "train":
        return found
    trained = [row for row in last_rows(task.output / METRICS) if number(row.get("loss")) is not None]
    last = trained[-1] if trained else {}
    step = int(last["step"]) if last else int(match[1]) if match is not None else None
    steps = int(match[2]) if match is not None else task.stage.max_steps
    if task.written:
        step = steps = _finished(task) or step
    if step is not None:
        found["step"] = f"{step}/{steps}" if steps is not None else str(step)
    for column, name in (("loss", "loss"), ("accuracy", "rewards/accuracies")):
        if (value := number(last.get(name))) is not None:
            found[column] = f"{value:.4f}"
    return found


def _finished(task: Task) -> int | None:
    found = read_json(task.output / "finished.json")
    step = number(found.get("step")) if isinstance(found, dict) else None
    return None if step is None else int(step)


def _last_match(task: Task, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The last line of progress in the newest log that has one."""
    index = "" if task.index is None else f"_{task.index}"
    name = re.compile(rf"{re.escape(task.stage.name)}-\d+{index}\.log")
    logs = [file for file in (task.run_dir / "logs").glob("*.log") if name.fullmatch(file.name)]
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        for line in reversed(tail(log)):
            if (match := pattern.search(line.rstrip())) is not None:
                return match
    return None


def _table(found: list[dict[str, str]]) -> Table:
    """Without the columns in which no row says anything."""
    table = Table(box=None, pad_edge=False)
    columns = [name for name in COLUMNS if any(row[name] for row in found) or name in ("stage", "job", "state")]
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in found:
        word = row["state"].split(" ")[0]
        colour = COLOURS.get(word, "dim" if row["state"] in QUIET else "red" if word.isupper() else "")
        table.add_row(*(Text(row[name], style=colour if name == "state" else "") for name in columns))
    return table
