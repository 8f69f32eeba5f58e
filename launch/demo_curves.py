"""The curves of a demo's runs as one picture: what training did, and what held-out pairs say."""

import json
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers tell apart; lines also differ in their dashes and marks."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P")
PANELS = {
    "sft loss": "SFT: loss of a response token (nats)",
    "loss": "loss on pairs (each method's own)",
    "rewards/accuracies": "accuracy of rewards: chosen above rejected",
    "rewards/margins": "margin of rewards (each method's own)",
    "shaping/margins": "the teacher's shaping: margin (nats)",
    "reward_distillation/correlation": "correlation with the oracle's rewards",
}
"""Metric -> title; one that no run has is left out."""
COLUMNS = 3
HELD_OUT = "eval_"


def draw_curves(runs: dict[str, Path], file: Path) -> Path | None:
    """Draw the runs' metrics.jsonl; the figure's path, None where there is nothing to draw.

    Args:
        runs: name -> output directory.
        file: the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {name: _rows(folder) for name, folder in runs.items()}
    metrics = [name for name in PANELS if any(name in row for rows in found.values() for row in rows)]
    if not metrics:
        return None
    lines = len(metrics) // COLUMNS + 1  # the legend has a place of its own
    figure = Figure(figsize=(4.6 * COLUMNS, 3.3 * lines), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    legend: dict[str, Any] = {}
    for number, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(lines, COLUMNS, number)
        _panel(axes, metric, found)
        handles, names = axes.get_legend_handles_labels()
        legend |= dict(zip(names, handles, strict=True))
    place = figure.add_subplot(lines, COLUMNS, len(metrics) + 1)
    place.set_axis_off()
    names = [name for name in runs if name in legend]
    title = "lines: batches of training\nlarge marks: held-out pairs"
    place.legend([legend[name] for name in names], names, loc="center", frameon=False, title=title, handlelength=4)
    figure.savefig(file)
    return file


def _rows(folder: Path) -> list[dict[str, float]]:
    """Of a run; the loss of examples, which is no loss of pairs, has a name of its own."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if any("rewards/margins" in row for row in rows):
        return rows
    return [{name.replace("loss", "sft loss"): value for name, value in row.items()} for row in rows]


def _panel(axes: Any, metric: str, found: dict[str, list[dict[str, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, (name, rows) in enumerate(found.items()):
        colour, mark = COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)]
        training = [(row["step"], row[metric]) for row in rows if metric in row]
        validation = [(row["step"], row[f"{HELD_OUT}{metric}"]) for row in rows if f"{HELD_OUT}{metric}" in row]
        style = {"color": colour, "linewidth": 1.6, "marker": mark, "markersize": 3}
        if training:
            axes.plot(*zip(*training, strict=True), linestyle=DASHES[index % len(DASHES)], label=name, **style)
        if validation:
            edge = {"markeredgecolor": "black", "markersize": 9, "linestyle": "none", "zorder": 3, "clip_on": False}
            axes.plot(*zip(*validation, strict=True), **{**style, **edge})
    if metric.endswith("accuracies"):
        axes.axhline(0.5, color="#00000060", linewidth=1)
    axes.set_title(PANELS[metric], fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#00000020")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
