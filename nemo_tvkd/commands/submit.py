"""`nemo-tvkd submit`: a recipe as a chain of Slurm jobs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tvkd.cluster.queue import SlurmUnavailable, job_states
from nemo_tvkd.cluster.recipe import Stage, Submission, load_recipe, without_unneeded
from nemo_tvkd.cluster.render import render
from nemo_tvkd.commands.doctor import see_what_jobs_see
from nemo_tvkd.commands.report.folder import read_run
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_whole
from nemo_tvkd.training.metrics_file import tail

SUBMISSION = "submission.json"
OWN = ("SLURM_CONF", "SLURM_JWT")
"""Of Slurm's variables those that are no job's: within one, sbatch would take the others for its options."""


def main(arguments: Sequence[str], *, folder: str, dry_run: bool, start: str, here: str) -> int | tuple[str, Any]:
    """Check the recipe and submit it; returns the exit code, or with `here` the command to run and its configuration.

    Args:
        folder: of the user's own recipes and clusters (--config-dir).
        dry_run: print the scripts, write and submit nothing.
        start: do this stage and those after it again (--from).
        here: do not submit; return this stage's command (--here).
    """
    submission = load_recipe(arguments, folder)
    see_what_jobs_see(submission)
    if here and (dry_run or start):
        raise UserError("--here runs one stage in this process: --dry-run and --from are about jobs, leave them out")
    if here:
        return _run_here(submission, here)
    if submission.config.cluster.name == "local":
        raise UserError("cluster=local is this machine, which has no queue: run one stage on it with --here STAGE")
    check_writable(str(submission.run_dir), "run_dir")
    if start:
        submission = _from(submission, start)
    tiny = submission.config.recipe_scale == "tiny"
    if tiny and not dry_run:
        from nemo_tvkd.cluster.tiny import make_models

        make_models(submission)
    code = 0 if tiny and dry_run else _checked(submission)  # its models would have to be made
    if dry_run:
        for stage in _wanted(submission):
            print(f"# {'=' * 20} {stage.name} {'=' * 20}\n{_script(submission, stage)}")
        return 0
    if code:
        return code
    _refuse_twice(submission.run_dir)
    moved = _set_aside(submission, start) if start else {}
    try:
        jobs = _submit(submission)
    except BaseException:
        for place, aside in moved.items():
            aside.rename(place)
        raise
    _show(submission, jobs)
    return 0


def _wanted(submission: Submission) -> list[Stage]:
    return [stage for stage in submission.stages if stage.state == "submitted"]


def _script(submission: Submission, stage: Stage) -> str:
    return render(stage, submission.run_dir, submission.config.recipe.name)


def _checked(submission: Submission) -> int:
    """What `doctor` says of the recipe, if it is more than OK; 2 where something fails."""
    from nemo_tvkd.commands.doctor import check_recipe, show

    checks = [check for check in check_recipe(submission) if check.level != "OK"]
    if checks:
        show(checks, sys.stderr)
    return 2 if any(check.level == "FAIL" for check in checks) else 0


def _from(submission: Submission, name: str) -> Submission:
    """Do a stage and all that read it again."""
    start, again = submission.stage(name, "--from"), _and_after(submission, name)
    stages = []
    for stage in submission.stages:
        if stage.name in again:
            if stage.state == "replaced":
                raise UserError(f"--from {name} does stage {stage.name} again, which {stage.output} takes the place of")
            stage = replace(stage, state="submitted")
        elif stage.state in ("submitted", "unneeded"):
            if stage.name in start.after:
                raise UserError(f"--from {name}: stage {stage.name} comes before it and is not done: {stage.output}")
            stage = replace(stage, state="submitted")  # whether it is needed may have changed
        stages.append(stage)
    return replace(submission, stages=without_unneeded(stages))


def _and_after(submission: Submission, name: str) -> set[str]:
    """A stage and all that read it, through others too; stages stand after those that they read."""
    found = {name}
    for stage in submission.stages:
        if found & set(stage.after):
            found.add(stage.name)
    return found


def _set_aside(submission: Submission, start: str) -> dict[Path, Path]:
    """Keep what the stages that are done again wrote under another name; returns output -> that name."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    again = _and_after(submission, start)
    outputs = [stage.output for stage in submission.stages if stage.name in again and stage.output.exists()]
    moved = {output: output.with_name(f"{output.name}.before-{stamp}") for output in outputs}
    for output, aside in moved.items():
        output.rename(aside)
    return moved


def _refuse_twice(run_dir: Path) -> None:
    """A chain whose jobs are still queued must not get a second set of them."""
    # Jobs started by hand leave their numbers, too; a file that a full disk has damaged says nothing.
    written = [line.strip() for file in (run_dir / "jobs").glob("*.job") for line in tail(file)]
    jobs = [int(job) for job in written if re.fullmatch(r"[0-9]{1,18}", job)]
    if (run_dir / SUBMISSION).is_file():
        jobs += [stage.job_id for stage in read_run(run_dir, single=False).stages if stage.job_id]
    if not jobs:
        return
    try:
        alive = sorted({key[0] for key, job in job_states(jobs).items() if not job.ended})
    except SlurmUnavailable as error:
        raise UserError(f"jobs cannot be submitted here: {error}") from error
    if alive:
        numbers = " ".join(map(str, alive))
        raise UserError(f"run_dir: jobs of {run_dir} are still queued: wait for them, or `scancel {numbers}` first")


def _submit(submission: Submission) -> dict[str, int]:
    """Write the scripts and submit them; all or none."""
    run_dir = submission.run_dir
    shutil.rmtree(run_dir / "software", ignore_errors=True)  # no job of the chain runs: take the checkout as it is now
    for folder in ("jobs", "logs"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(OmegaConf.to_yaml(submission.config))
    scripts = {stage.name: run_dir / "jobs" / f"{stage.name}.sbatch" for stage in _wanted(submission)}
    for stage in _wanted(submission):
        scripts[stage.name].write_text(_script(submission, stage))
    jobs: dict[str, int] = {}
    try:
        for stage in _wanted(submission):
            jobs[stage.name] = _sbatch(scripts[stage.name], _dependency(submission, stage, jobs))
        _write(submission, jobs)
    except BaseException:
        if jobs:
            subprocess.run(["scancel", *map(str, jobs.values())], check=False, capture_output=True)
        raise
    return jobs


def _dependency(submission: Submission, stage: Stage, jobs: dict[str, int]) -> list[str]:
    """Task i of an array waits for task i of the arrays that it reads, and for all of any other stage."""
    found = []
    for name in stage.after:
        if name in jobs:
            both = stage.sweep and submission.stage(name, "after").sweep
            found.append(f"{'aftercorr' if both else 'afterok'}:{jobs[name]}")
    return [f"--dependency={','.join(found)}", "--kill-on-invalid-dep=yes"] if found else []


def _sbatch(script: Path, options: list[str]) -> int:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)],
            env={name: value for name, value in os.environ.items() if name in OWN or not name.startswith("SLURM_")},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(
            "sbatch is not installed here: submit where Slurm is, or print the jobs with --dry-run"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"sbatch refused {script} (no job of this chain stays in the queue): {said}")
    found = re.match(r"(\d+)", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "")
    if not found:
        raise UserError(f"sbatch {script} answered {done.stdout!r} where a job id was expected")
    return int(found[1])


def _write(submission: Submission, jobs: dict[str, int]) -> None:
    """submission.json, whole or not at all."""
    stages = [_record(submission, stage, jobs) for stage in submission.stages]
    text = {
        "version": 1,
        "recipe": submission.config.recipe.name,
        "cluster": submission.config.cluster.name,
        "run_dir": str(submission.run_dir),
        "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages": stages,
    }
    write_whole(submission.run_dir / SUBMISSION, json.dumps(text, indent=1) + "\n")


def _record(submission: Submission, stage: Stage, jobs: dict[str, int]) -> dict[str, Any]:
    inside = stage.output.is_relative_to(submission.run_dir)
    return {
        "name": stage.name,
        "command": stage.command,
        "after": list(stage.after),
        "output": str(stage.output.relative_to(submission.run_dir) if inside else stage.output),
        "state": stage.state,
        "job_id": jobs.get(stage.name),
        "tasks": len(stage.sweep) or None,
        "sweep": [list(words) for words in stage.sweep],
        "script": f"jobs/{stage.name}.sbatch",
        "nodes": stage.nodes,
        "max_steps": OmegaConf.select(stage.config(), "trainer.max_steps") if stage.command == "train" else None,
    }


def _show(submission: Submission, jobs: dict[str, int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{submission.config.recipe.name} on {submission.config.cluster.name}")
    for column in ("stage", "job", "after", "nodes x ranks", "time limit"):
        table.add_column(column)
    for stage in submission.stages:
        tasks = f" x {len(stage.sweep)} tasks" if stage.sweep else ""
        size = f"{stage.nodes} x {stage.ranks_per_node}{tasks}" if stage.name in jobs else ""
        limit = stage.cluster.time if stage.name in jobs else ""
        table.add_row(stage.name, str(jobs.get(stage.name, stage.state)), ", ".join(stage.after), size, limit)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"\nscripts, logs and outputs: {submission.run_dir}\nnemo-tvkd status {submission.run_dir}")


def _run_here(submission: Submission, name: str) -> int | tuple[str, Any]:
    """The command of one stage and its configuration, to be run in this process; 0 where its output is there."""
    stage = submission.stage(name, "--here")
    if stage.state in ("done", "replaced"):
        print(f"{name}: there already: {stage.output}")
        return 0
    if stage.sweep:
        raise UserError(f"--here {name} is an array of {len(stage.sweep)} jobs: give one value of what is swept")
    if submission.config.recipe_scale == "tiny":
        from nemo_tvkd.cluster.tiny import make_models

        make_models(submission)
    os.environ.update(stage.cluster.environment)
    print(f"nemo-tvkd {stage.command} {' '.join(stage.overrides)}", flush=True)
    return stage.command, stage.config()
