"""`nemo-tvkd doctor`: what would go wrong with a recipe, or on this machine, before anything starts."""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING

from nemo_tvkd.commands.doctor.check import Check

if TYPE_CHECKING:
    from nemo_tvkd.cluster.recipe import Stage, Submission
    from nemo_tvkd.commands.doctor.stages import StageChecks

ALIKE = ("trainer.seed=", "optim.", "trainer.output_dir=", "score.output=", "output=")
"""What begins settings of an array's tasks that no check but that of their values depends on."""


def main(arguments: Sequence[str], folder: str = "") -> int:
    """Check the recipe that is named, and this machine; returns 0, or 2 where something fails."""
    from nemo_tvkd.commands.doctor.machine import all_reduce_check, machine_checks
    from nemo_tvkd.runtime.exits import is_rank_zero, rank_variables, under_launcher

    checks: list[Check] = []
    if arguments and is_rank_zero():
        from nemo_tvkd.cluster.recipe import load_recipe

        submission = load_recipe(arguments, folder)
        see_what_jobs_see(submission)
        if submission.config.recipe_scale == "tiny":
            from nemo_tvkd.cluster.tiny import make_models

            make_models(submission)
        checks += check_recipe(submission)
    checks += machine_checks()
    if under_launcher():
        checks.append(all_reduce_check())
    shown = checks
    if not is_rank_zero():  # of another node what is wrong there
        first_there = rank_variables()["local_rank"] == 0
        shown = [check for check in checks if first_there and check.level == "FAIL"]
    if shown:
        show(shown, sys.stdout)
    return 2 if any(check.level == "FAIL" for check in checks) else 0


def check_recipe(submission: "Submission") -> list[Check]:
    """All checks of the stages that have to run, and of the cluster and the run folder."""
    from nemo_tvkd.commands.doctor.cluster import cluster_checks
    from nemo_tvkd.commands.doctor.stages import StageChecks

    tasks = [task for stage in submission.stages if stage.state == "submitted" for task in _tasks(submission, stage)]
    found = [check for task in tasks for check in _of_stage(task)]
    replaced = [check for stage in submission.stages if (check := _replaced(stage)) is not None]
    done = [StageChecks(submission, stage) for stage in submission.stages if stage.state == "done"]
    changed = [check for stage in done if (check := stage.same_run()).level != "OK"]
    return [*cluster_checks(submission, tasks), *replaced, *changed, *found]


def _replaced(stage: "Stage") -> Check | None:
    """Whether the path in the place of a stage holds what the stage would have written."""
    from nemo_tvkd.runtime.outputs import MARKS, is_done

    if stage.state != "replaced" or stage.command == "train" or is_done(stage.command, stage.output):
        return None  # a model is looked at by the stages that read it
    wanted = f"{stage.output} has no {MARKS[stage.command]}: it is no output of `nemo-tvkd {stage.command}`"
    return Check(f"{stage.name}: output", "FAIL", wanted)


def _tasks(submission: "Submission", stage: "Stage") -> "list[StageChecks]":
    """The tasks of an array whose checks may differ: the first, and those with other settings than it."""
    from nemo_tvkd.commands.doctor.stages import StageChecks
    from nemo_tvkd.config.compose import written

    written_by_others = {written(str(output)) for other in submission.stages for output in other.outputs}
    kinds: dict[tuple[str, ...], int] = {}
    for task, words in enumerate(stage.sweep or [()]):
        own = (word for word in words if not word.startswith(ALIKE))
        kinds.setdefault(tuple(word for word in own if word.partition("=")[2] not in written_by_others), task)
    return [StageChecks(submission, stage, task) for task in kinds.values()]


def _of_stage(stage: "StageChecks") -> Iterator[Check]:
    """A mistake once, where several checks find it; of a further task of an array only what is wrong with it alone."""
    common = {stage.name(check) for check in ("configuration", "output")} if stage.task else set()
    told = set()
    for check in _all_of(stage):
        wrong = check.level != "OK"
        if check.name in common or (wrong and check.detail in told) or (stage.task and not wrong):
            continue
        told.add(check.detail)
        yield check


def _all_of(stage: "StageChecks") -> Iterator[Check]:
    from nemo_tvkd.commands.doctor.sizes import hours_check, memory_check
    from nemo_tvkd.commands.doctor.stages import OWN_MODEL

    checks = list(stage.all())
    yield from checks
    if stage.stage.command == "benchmark" and checks[0].level == "OK":
        from nemo_tvkd.commands.doctor.benchmark import benchmark_checks

        yield from benchmark_checks(stage)
    failed = {check.name.rpartition(": ")[2] for check in checks if check.level == "FAIL"}
    if stage.stage.command in OWN_MODEL and not failed & {"configuration", "layout"}:
        yield stage.check("memory", partial(memory_check, stage))
        if "data" not in failed:
            yield stage.check("hours", partial(hours_check, stage))


def see_what_jobs_see(submission: "Submission") -> None:
    """The jobs' caches, and no network where they have none: nothing is downloaded by looking."""
    cluster = submission.config.cluster
    os.environ.update({name: value for name, value in cluster.environment.items() if name.startswith("HF_")})
    if cluster.offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def show(checks: Sequence[Check], stream: IO[str]) -> None:
    """A table of checks, each with a line of advice where it is not OK."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    colours = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
    for check in checks:
        said = Text(check.detail)
        if check.advice and check.level != "OK":
            said.append(f"\n-> {check.advice}", style="italic")
        table.add_row(Text(check.level, style=colours[check.level]), Text(check.name), said)
    Console(file=stream, width=None if stream.isatty() else 140).print(table)
