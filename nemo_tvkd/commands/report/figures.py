"""Figures of one stage or array task, read from its output, and how figures are written as text."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_tvkd.commands.report.folder import METRICS, STOPPED, Task, read_ends, read_json, training_config
from nemo_tvkd.training.metrics_file import number, read_metrics

FACTS_OF_EVALUATIONS = ("checkpoint", "reference", "oracle", "teacher", "shaping")


@dataclass(frozen=True)
class Figure:
    """A number, with its standard error where that is known."""

    value: float
    error: float | None = None
    size: bool = False
    """Whether it counts bytes."""
    interval: tuple[float, float] | None = None
    """Of confidence; it says more than the standard error where it is known."""

    def __str__(self) -> str:
        if self.size:
            return size(self.value)
        if self.interval is not None:
            return f"{show(self.value)} ({self.interval[0]:.3g} to {self.interval[1]:.3g})"
        return show(self.value) + ("" if self.error is None else f" ± {self.error:.2g}")


Cell = str | Figure
"""Text, or a number that several seeds have a mean of."""


@dataclass
class Result:
    """What one task has to show."""

    task: Task
    state: str
    summary: dict[str, Cell] = field(default_factory=dict)
    """Column of the table of results -> its cell."""
    figures: dict[str, Cell] = field(default_factory=dict)
    """All figures, by their own names."""
    facts: dict[str, str] = field(default_factory=dict)
    """What was computed with which model, ..."""
    strengths: list[dict[str, Any]] = field(default_factory=list)
    """`by_strength` of an evaluation."""
    calibrations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Its `by_confidence`."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl."""


def read_result(task: Task) -> Result:
    """Everything a task's output says so far.

    Raises:
        UserError: a file that should be JSON is not.
    """
    result = Result(task, state(task))
    reader = READERS.get(task.stage.command)
    if reader is not None and task.stage.state != "unneeded":
        reader(task, result)
    if restarts := read_ends(task).restarts:
        result.summary["restarts"] = str(restarts)
    return result


def state(task: Task) -> str:
    """done | replaced | not needed | failed (exit code N) | unfinished | not started."""
    if task.stage.state in ("replaced", "unneeded"):
        return {"unneeded": "not needed"}.get(task.stage.state, task.stage.state)
    if task.done:
        return "done"
    ends = read_ends(task)
    if ends.failed:
        return "stopped" if ends.code in STOPPED else f"failed (exit code {ends.code})"
    return "unfinished" if task.started else "not started"


def _training(task: Task, result: Result) -> None:
    config = training_config(task.output)
    rows = result.metrics = read_metrics(task.output / METRICS)
    trained = [row for row in rows if number(row.get("loss")) is not None]
    judged = [row for row in rows if any(name.startswith("eval_") for name in row)]
    last = {**(trained[-1] if trained else {}), **_only_eval(judged[-1] if judged else {})}
    for name, value in last.items():
        if (found := number(value)) is not None and name not in ("step", "tokens_per_second", "pairs_seen"):
            result.figures[name] = Figure(found)
    method = _part(config, "algorithm").get("name")
    steps = number(_part(config, "trainer").get("max_steps")) or task.stage.max_steps
    step = number(last.get("step"))
    if method is not None:
        result.summary["method"] = str(method)
    if step is not None:
        result.summary["steps"] = show(step) + ("" if steps is None else f"/{show(steps)}")
    if (seen := number(last.get("pairs_seen"))) is not None:
        result.summary["pairs"] = show(seen)
    names = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    for prefix, start in (("", ""), ("eval ", "eval_")):
        for column, name in names.items():
            if f"{start}{name}" in result.figures:
                result.summary[prefix + column] = result.figures[f"{start}{name}"]
    paces = [pace for row in trained if (pace := number(row.get("tokens_per_second"))) is not None]
    if paces:
        result.summary["tokens/s"] = Figure(statistics.median(paces))


def _only_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith("eval_")}


def _part(tree: Any, name: str) -> dict[str, Any]:
    found = tree.get(name) if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}


def _scores(task: Task, result: Result) -> None:
    if not task.written:
        return
    manifest = read_json(task.output / "manifest.json")
    identity, totals = _part(manifest, "identity"), _part(manifest, "totals")
    if (pairs := number(totals.get("rows"))) is not None:
        result.summary["pairs"] = show(pairs)
    if (count := number(totals.get("bytes"))) is not None:
        result.summary["size"] = Figure(count, size=True)
        result.facts["bytes"] = show(count)
    for name in ("model", "what", "values", "value_storage", "precision", "max_length"):
        if name in identity:
            result.facts[name] = _text(identity[name])


def _text(value: Any) -> str:
    """A value of a JSON file in plain words: a list by commas, a mapping by its values."""
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(part)}" for name, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _evaluation(task: Task, result: Result) -> None:
    if not task.written:
        return
    found = read_json(task.output / "preferences.json")
    found = found if isinstance(found, dict) else {}
    if isinstance(found.get("checkpoints"), list):
        _several(found, result)
        return
    for name, value in found.items():
        if (plain := number(value)) is not None and "/" in name:
            if not name.endswith("_stderr"):
                edges = _interval(found.get(f"{name}_interval"))
                result.figures[name] = Figure(plain, number(found.get(f"{name}_stderr")), interval=edges)
        elif name in FACTS_OF_EVALUATIONS and value is not None:
            result.facts[name] = _text(value)
    for name in ("beta", "confidence", "resamples"):
        if (fact := number(found.get(name))) is not None:
            result.facts[name] = show(fact)
    if (pairs := number(found.get("pairs"))) is not None:
        result.summary["pairs"] = show(pairs)
    for column, name in (("eval accuracy", "rewards/accuracies"), ("eval margin", "rewards/margins")):
        if isinstance(figure := result.figures.get(name), Figure):
            result.summary[column] = replace(figure, interval=None)
    result.strengths = _rows(found.get("by_strength"))
    result.calibrations = {prefix: _rows(rows) for prefix, rows in _part(found, "by_confidence").items()}


def _several(found: dict[str, Any], result: Result) -> None:
    """Of a comparison: each checkpoint's accuracy and margin, and the p-values against the first."""
    for row in _rows(found["checkpoints"]):
        for name in ("rewards/accuracies", "rewards/margins", "rewards/ece"):
            if (value := number(row.get(name))) is not None:
                edges, error = _interval(row.get(f"{name}_interval")), number(row.get(f"{name}_stderr"))
                result.figures[f"{_text(row.get('checkpoint'))} {name}"] = Figure(value, error, interval=edges)
    for row in _rows(found.get("comparisons")):
        for name, test in _part(row, "tests").items():
            if (p := number(_part({"test": test}, "test").get("p_holm"))) is not None:
                result.figures[f"{_text(row.get('checkpoint'))} {name}: p (Holm)"] = Figure(p)


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _interval(value: Any) -> tuple[float, float] | None:
    edges = [number(edge) for edge in value] if isinstance(value, list) else []
    low, high = edges if len(edges) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _benchmark(task: Task, result: Result) -> None:
    if not task.written:
        return
    found = read_json(task.output / "results.json")
    for name, row in _part(found, "tasks").items():
        row = row if isinstance(row, dict) else {}
        if (value := number(row.get("value"))) is not None:
            words = [str(row[key]) for key in ("metric",) if row.get(key) is not None]
            words += [f"{_text(row['shots'])} shots"] if row.get("shots") is not None else []
            words += [f"{_text(row['samples'])} samples"] if row.get("samples") is not None else []
            result.figures[f"{name} ({', '.join(words)})"] = Figure(value, number(row.get("stderr")))
    if (average := number(found.get("leaderboard_average") if isinstance(found, dict) else None)) is not None:
        result.summary["leaderboard average"] = result.figures["leaderboard average"] = Figure(average)
    for key, name in (("alpaca_eval", "AlpacaEval"), ("mt_bench", "MT-Bench")):
        part = _part(found, key)
        for what, label in (("answers", "answers"), ("mean_length", "mean answer length")):
            if (value := number(part.get(what))) is not None:
                result.figures[f"{name} {label}"] = Figure(value)
        reward = _part(part, "reward")
        if (value := number(reward.get("mean"))) is not None:
            figure = Figure(value, number(reward.get("stderr")))
            result.summary[f"{name} reward"] = result.figures[f"{name} reward"] = figure
    if isinstance(found, dict) and found.get("checkpoint") is not None:
        result.facts["checkpoint"] = _text(found["checkpoint"])
    if versions := _part(found, "versions"):
        result.facts["versions"] = ", ".join(f"{name} {_text(value)}" for name, value in versions.items())


READERS = {"train": _training, "score": _scores, "evaluate": _evaluation, "benchmark": _benchmark}


def over_seeds(cells: Sequence[Cell | None]) -> str:
    """Mean and sample standard deviation of numbers; the text that all have in common; else ""."""
    there = [cell for cell in cells if cell is not None]
    values = [cell.value for cell in there if isinstance(cell, Figure)]
    if values and len(values) == len(there):
        if there[0].size if isinstance(there[0], Figure) else False:
            return size(statistics.fmean(values))
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        return show(statistics.fmean(values)) + spread
    texts = {str(cell) for cell in there}
    return texts.pop() if len(texts) == 1 else ""


def show(value: float) -> str:
    """Four significant digits; whole numbers, and large ones to the unit."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e15 and (value == int(value) or abs(value) >= 1000):
        return f"{value:.0f}"
    return f"{value:.4g}"


def size(count: float) -> str:
    """Bytes, in the unit that keeps it short."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
