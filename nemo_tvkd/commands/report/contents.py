"""What a report says: tables and curves, without a word on how they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nemo_tvkd.commands.report.figures import Cell, Result, over_seeds, read_result, show
from nemo_tvkd.commands.report.folder import Run, Stage
from nemo_tvkd.errors import UserError
from nemo_tvkd.training.metrics_file import number

COLUMNS = (
    *("stage", "overrides", "state", "method", "steps", "pairs", "loss", "accuracy", "margin"),
    *("eval loss", "eval accuracy", "eval margin", "leaderboard average", "AlpacaEval reward", "MT-Bench reward"),
    *("tokens/s", "size", "restarts"),
)
CURVES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "reward margin",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
}
"""Name in metrics.jsonl -> title."""
SEED = "trainer.seed="


@dataclass
class Table:
    """Rows of text under a header."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Curve:
    """Points of one task over training steps."""

    label: str
    """The array task's number; "" where there is no array."""
    training: list[tuple[float, float]]
    validation: list[tuple[float, float]]


@dataclass
class Chart:
    """One figure's curves of all tasks of a stage."""

    title: str
    curves: list[Curve]


@dataclass
class Section:
    """What there is to see of a stage besides its rows in the table of results."""

    title: str
    tables: list[Table]
    charts: list[Chart]


@dataclass
class Report:
    """Everything that is written."""

    title: str
    facts: list[tuple[str, str]]
    results: Table
    notes: list[str] = field(default_factory=list)
    """What is missing, or could not be read."""
    sections: list[Section] = field(default_factory=list)


def collect(run: Run, now: datetime) -> Report:
    """Read a run folder.

    Args:
        now: the date of the report.
    """
    notes: list[str] = []
    stages = [(stage, _results(run, stage, notes)) for stage in run.stages]
    name = run.recipe or run.stages[0].name
    facts = [("recipe", run.recipe), ("cluster", run.cluster), ("submitted", run.submitted)] if run.recipe else []
    facts += [("run folder", str(run.directory.absolute())), ("date of this report", f"{now:%Y-%m-%d %H:%M} UTC")]
    states = [(result.task.name, result.state) for _, results in stages for result in results]
    settled = ("done", "replaced", "not needed")
    missing = [f"{task} ({state})" for task, state in states if state not in settled]
    if missing:
        notes.insert(0, f"Not done: {', '.join(missing)}.")
    report = Report(f"{name}: results", facts, _overview(stages), notes)
    report.sections = [section for stage, results in stages if (section := _section(stage, results)) is not None]
    return report


def _results(run: Run, stage: Stage, notes: list[str]) -> list[Result]:
    results = []
    for task in run.tasks(stage):
        try:
            results.append(read_result(task))
        except UserError as error:  # the other stages' results are worth a page
            results.append(Result(task, "unreadable"))
            notes.append(str(error))
    return results


def over_seed_alone(results: Sequence[Result]) -> bool:
    """Whether tasks differ in trainer.seed and nothing else."""
    return len(results) > 1 and all(
        len(result.task.overrides) == 1 and result.task.overrides[0].startswith(SEED) for result in results
    )


def _seeds(results: Sequence[Result]) -> list[Result]:
    """Those that a mean is over: a seed that is still training has other figures."""
    return [result for result in results if result.state == "done"] if over_seed_alone(results) else []


def _overview(stages: Sequence[tuple[Stage, list[Result]]]) -> Table:
    """A row for each task, and one for the mean of seeds; columns without a word are left out."""
    rows: list[dict[str, str]] = []
    for stage, results in stages:
        for result in results:
            cells = {name: str(cell) for name, cell in result.summary.items()}
            overrides = " ".join(result.task.overrides)
            rows.append({"stage": result.task.name, "overrides": overrides, "state": result.state, **cells})
        seeds = [result for result in _seeds(results) if result.summary]
        if seeds:
            names = [name for name in COLUMNS if name != "restarts"]
            means = {name: over_seeds([result.summary.get(name) for result in seeds]) for name in names}
            rows.append(means | {"stage": stage.name, "overrides": _mean_of(seeds, results), "state": ""})
    header = [name for name in COLUMNS if name in ("stage", "state") or any(row.get(name) for row in rows)]
    return Table("Results", header, [[row.get(name, "") for name in header] for row in rows])


def _mean_of(seeds: Sequence[Result], results: Sequence[Result]) -> str:
    count = f"{len(seeds)}" if len(seeds) == len(results) else f"{len(seeds)} of {len(results)}"
    return f"mean ± s.d. of {count} seeds"


def _section(stage: Stage, results: list[Result]) -> Section | None:
    tables = [_compare("Settings", [(result, dict(result.facts)) for result in results], [])]
    tables.append(_compare("Figures", [(result, dict(result.figures)) for result in results], _seeds(results)))
    for result in results:
        tables += _strengths(result) + _calibrations(result)
    charts = [_chart(name, title, results) for name, title in CURVES.items()]
    section = Section(stage.name, [t for t in tables if t.rows], [c for c in charts if c.curves])
    return section if section.tables or section.charts else None


def _compare(title: str, columns: list[tuple[Result, dict[str, Cell]]], seeds: list[Result]) -> Table:
    """A row for each figure, a column for each task that has any, and the mean of seeds."""
    there = [(result, cells) for result, cells in columns if cells]
    names = list(dict.fromkeys(name for _, cells in there for name in cells))
    header = ["", *(_label(result) for result, _ in there)]
    rows = [[name, *(str(cells.get(name, "")) for _, cells in there)] for name in names]
    done = [cells for result, cells in there if result in seeds]
    if done:
        header.append(_mean_of(seeds, [result for result, _ in columns]))
        for row in rows:
            row.append(over_seeds([cells.get(row[0]) for cells in done]))
    return Table(title, header, rows)


def _label(result: Result) -> str:
    task = result.task
    return "value" if task.index is None else f"{task.index}: {' '.join(task.overrides)}".removesuffix(": ")


def _strengths(result: Result) -> list[Table]:
    """An evaluation apart for weak and strong preferences, one table for each kind of reward."""
    which = "" if result.task.index is None else f", task {_label(result)}"
    header = ["oracle's reward difference", "pairs", "accuracy", "margin", "oracle agrees"]
    tables = []
    for prefix, title in (("rewards", "rewards"), ("reward_head", "rewards of the reward head")):
        rows = [row for row in result.strengths if f"{prefix}/accuracies" in row]
        if rows:
            cells = [_strength(row, prefix) for row in rows]
            tables.append(Table(f"By the strength of the preference: {title}{which}", header, cells))
    return tables


def _calibrations(result: Result) -> list[Table]:
    """An evaluation apart for margins that are sure and that are not, one table for each kind of reward."""
    which = "" if result.task.index is None else f", task {_label(result)}"
    header = ["confidence", "mean", "accuracy", "pairs"]
    names = ("confidence/least", "confidence/greatest", "confidence/mean", "accuracies", "pairs")
    tables = []
    for prefix, rows in result.calibrations.items():
        found = [[number(row.get(name)) for name in names] for row in rows]
        cells = [["–" if value is None else show(value) for value in row] for row in found]
        lines = [[f"{least} to {greatest}", *rest] for least, greatest, *rest in cells]
        tables.append(Table(f"By the confidence of the margin: {prefix}{which}", header, lines))
    return tables


def _strength(row: dict[str, Any], prefix: str) -> list[str]:
    def cell(name: str) -> str:
        value, error = number(row.get(name)), number(row.get(f"{name}_stderr"))
        return ("–" if value is None else show(value)) + ("" if error is None else f" ± {error:.2g}")

    span = f"{cell('strength/least')} to {cell('strength/greatest')}"
    names = ("pairs", f"{prefix}/accuracies", f"{prefix}/margins", f"{prefix}/agreement")
    return [span, *(cell(name) for name in names)]


def _chart(name: str, title: str, results: list[Result]) -> Chart:
    curves = []
    for result in results:
        points = [_points(result, key) for key in (name, f"eval_{name}")]
        if any(points):
            label = "" if result.task.index is None else str(result.task.index)
            curves.append(Curve(label, points[0], points[1]))
    return Chart(title, curves)


def _points(result: Result, name: str) -> list[tuple[float, float]]:
    pairs = ((number(row["step"]), number(row.get(name))) for row in result.metrics)
    return [(step, value) for step, value in pairs if step is not None and value is not None]
