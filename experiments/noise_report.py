"""The table and the plot of `noise_robustness.py`: means over seeds with 95 % confidence intervals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = {
    "dpo": "DPO",
    "edpo": "e-DPO",
    "drdo": "DRDO",
    "edpo_true": "e-DPO, true rewards",
    "drdo_true": "DRDO, true rewards",
    "focal": "DRDO, equal rewards",
}
Cell = dict[str, Any]


def accuracy(figures: dict[str, Any]) -> float:
    """How often log pi(chosen) > log pi(rejected)."""
    return float(figures["rewards/accuracies"])


def weakest(figures: dict[str, Any]) -> float:
    """The same, of the quarter of pairs with the least difference of true rewards."""
    return float(figures["by_strength"][0]["rewards/accuracies"])


def strongest(figures: dict[str, Any]) -> float:
    """The same, of the quarter with the greatest."""
    return float(figures["by_strength"][-1]["rewards/accuracies"])


def advantage(figures: dict[str, Any]) -> float:
    """Mean log pi(chosen) - log pi(rejected), nats."""
    return float(figures["rewards/margins"]) / float(figures["beta"])


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "accuracy": accuracy,
    "weakest quarter": weakest,
    "strongest quarter": strongest,
    "advantage (nats)": advantage,
}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t over seeds; not a number for one seed)."""
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def table(cells: list[Cell], start: dict[str, Any]) -> str:
    """Markdown: one row a method and share of noise, after one for what they all start from."""
    lines = [f"| label noise | student | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    accuracies = " | ".join(f"{measure(start):.3f}" for measure in list(COLUMNS.values())[:-1])
    lines.append(f"| - | SFT (the start) | {accuracies} | {advantage(start):.2f} |")
    for noise in sorted({cell["noise"] for cell in cells}):
        some = [cell for cell in cells if cell["noise"] == noise]
        for run, name in METHODS.items():
            found = [interval([measure(cell[run]) for cell in some]) for measure in COLUMNS.values()]
            entries = [f"{mean:.3f} ± {half:.3f}" for mean, half in found[:-1]]
            entries.append(f"{found[-1][0]:.2f} ± {found[-1][1]:.2f}")
            lines.append(f"| {noise:g} | {name} | {' | '.join(entries)} |")
    lines += ["", "Accuracy, paired differences over seeds:"]
    for one, other in (("drdo", "dpo"), ("drdo", "focal"), ("edpo", "dpo")):
        for noise in sorted({cell["noise"] for cell in cells}):
            some = [accuracy(c[one]) - accuracy(c[other]) for c in cells if c["noise"] == noise]
            mean, half = interval(some)
            lines.append(f"- label noise {noise:g}, {METHODS[one]} - {METHODS[other]}: {mean:+.3f} ± {half:.3f}")
    oracle = {n: [c["oracle"] for c in cells if c["noise"] == n] for n in sorted({c["noise"] for c in cells})}
    lines += ["", "The oracles' accuracy on the same pairs:"]
    for noise, some in oracle.items():
        mean, half = interval([accuracy(figures) for figures in some])
        lines.append(f"- label noise {noise:g}: {mean:.3f} ± {half:.3f}")
    for run in ("drdo", "drdo_true"):
        lines += ["", f"The reward heads of {METHODS[run]}:"]
        for noise in oracle:
            found = [cell[run]["reward_head/accuracies"] for cell in cells if cell["noise"] == noise]
            mean, half = interval(found)
            lines.append(f"- label noise {noise:g}: {mean:.3f} ± {half:.3f}")
    return "\n".join(lines) + "\n"


def plot(cells: list[Cell], file: Path) -> None:
    """Accuracy against label noise: all pairs, the weakest and the strongest quarter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {"all pairs": accuracy, "weakest preferences": weakest, "strongest preferences": strongest}
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.4), sharey=True, layout="constrained")
    levels = sorted({cell["noise"] for cell in cells})
    styles = {
        "dpo": {"marker": "o", "color": "#4269d0"},
        "edpo": {"marker": "s", "color": "#ff725c"},
        "drdo": {"marker": "^", "color": "#3a7d44"},
        "edpo_true": {"marker": "s", "color": "#ff725c", "linestyle": "--", "markerfacecolor": "white"},
        "drdo_true": {"marker": "^", "color": "#3a7d44", "linestyle": "--", "markerfacecolor": "white"},
        "focal": {"marker": "v", "color": "#8a8a8a", "linestyle": ":"},
    }
    for axis, (title, measure) in zip(axes, panels.items(), strict=True):
        for shift, (run, name) in enumerate(METHODS.items()):
            found = [interval([measure(c[run]) for c in cells if c["noise"] == noise]) for noise in levels]
            means, halves = zip(*found, strict=True)
            places = [noise + 0.007 * (shift - 2.5) for noise in levels]  # so that bars do not cover each other
            axis.errorbar(places, means, halves, capsize=3, label=name, **styles[run])
        axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="share of flipped training labels", xticks=levels)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out accuracy (clean labels)")
    axes[0].legend(frameon=False, fontsize=8)
    seeds = len({cell["seed"] for cell in cells})
    figure.suptitle(f"mean of {seeds} seeds, 95 % confidence intervals", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write_report(root: Path, cells: list[Cell], start: dict[str, Any]) -> None:
    """results.json, table.md and noise_robustness.png, from the evaluations of the cells and of the first student."""
    (root / "results.json").write_text(json.dumps({"start": start, "cells": cells}, indent=1) + "\n")
    (root / "table.md").write_text(table(cells, start))
    plot(cells, root / "noise_robustness.png")
