"""An evaluation as tables: on a terminal, or 80 columns wide and without colour in a log."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_tvkd.commands.evaluate.figures import REWARD_PREFIXES

PLAIN_WIDTH = 80
LABEL_WIDTH = 18
GAP = 2
"""Between columns: a column's padding and the line that is not drawn."""
UNSHOWN = ("/mean",)
"""Ends of names of figures that are in the JSON file alone."""
SIGNIFICANT = 0.05


def show(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], config: Any) -> None:
    """Print what was found."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, highlight=False)
    with console.capture() as captured:  # a closed pipe is then noticed as with everything else that is printed
        for part in _parts(results, comparisons, config, console.width):
            console.print(part)
    print(captured.get(), end="", flush=True)


def _parts(
    results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], config: Any, width: int
) -> Iterator[Any]:
    first = results[0]
    facts = [f"{first['pairs']} pairs", f"beta {number(first['beta'])}"]
    judges = {name: first[name] for name in ("reference", "oracle", "teacher") if first[name]}
    if judges.get("oracle") == "columns":
        judges["oracle"] = "the data's columns"
    facts += [f"{name} {_text(judge)}" for name, judge in judges.items()]
    names = [result["checkpoint"] for result in results]
    yield Text(f"\n{names[0]}" if len(names) == 1 else f"\n{len(names)} checkpoints", style="bold")
    yield Text(", ".join(facts))
    if config.resamples:
        yield Text(_sureness(config), style="dim")
    if len(results) == 1:
        yield _one(first, config, list(_figure_names(results)))
        yield from _calibrations(first)
        yield from _strengths(first)
        return
    shown = labels(names)
    yield from _several(results, shown, config, width)
    yield Text("tables by confidence and by strength: in the JSON file (output=FILE)", style="dim")
    for comparison, label in zip(comparisons, shown[1:], strict=True):
        yield _comparison(comparison, label, shown[0], config)
    if comparisons:
        what = "p: McNemar's exact test of accuracies, a sign-flip permutation test of margins; "
        yield Text(f"{what}Holm: corrected for the number of comparisons ({len(comparisons)})", style="dim")


def _sureness(config: Any) -> str:
    return f"{_percent(config)} % intervals: bootstrap of {config.resamples} resamples of the pairs"


def _percent(config: Any) -> str:
    return f"{100 * config.confidence:.6g}"


def _table(title: str, *columns: str, names: bool = True) -> Table:
    """Names (or numbers) first, then numbers, which are never broken; a long name is, where there is no room."""
    head = Text(title, style="bold") if title else None  # no str: a path's brackets are no markup
    table = Table(title=head, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, GAP - 1, 0, 0)
    table.add_column(columns[0], no_wrap=not names, overflow="fold")
    for column in columns[1:]:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _figure_names(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Names of figures that any result has, in groups that belong together."""
    names = dict.fromkeys(name for result in results for name in result if "/" in name)
    shown = [n for n in names if not n.endswith(("_stderr", "_interval", "/std", *UNSHOWN))]
    for prefix in dict.fromkeys(name.split("/")[0] for name in shown):
        yield [name for name in shown if name.startswith(f"{prefix}/")]


def _one(result: dict[str, Any], config: Any, groups: Sequence[list[str]]) -> Table:
    table = _table("", "", "value", *([f"{_percent(config)} % interval"] if config.resamples else []))
    for names in groups:
        for name in names:
            table.add_row(name, number(result[name]), interval(result.get(f"{name}_interval")))
        table.add_section()
    return table


def _several(results: Sequence[dict[str, Any]], shown: list[str], config: Any, width: int) -> Iterator[Table]:
    """A column for each checkpoint, as many beside each other as there is room for; then what is the same of all."""
    groups = list(_figure_names(results))
    shared = [names for names in groups if _of_the_pairs(names, results)]
    groups = [names for names in groups if names not in shared]
    first = max(len(name) for names in groups for name in names)
    heads = [textwrap.fill(label, LABEL_WIDTH) for label in shown]
    cells = [[[_cell(result, name) for name in names] for names in groups] for result in results]
    lines = [line for column in cells for group in column for cell in group for line in cell.plain.splitlines()]
    each = max(map(len, lines + [line for head in heads for line in head.splitlines()])) + GAP
    room = max(1, (width - first - GAP) // each)
    for start in range(0, len(results), room):
        table = _table("", "", *heads[start : start + room])
        for index, names in enumerate(groups):
            for row, name in enumerate(names):
                table.add_row(name, *(column[index][row] for column in cells[start : start + room]))
            table.add_section()
        yield table
    yield _one(results[0], config, shared)


def _of_the_pairs(names: list[str], results: Sequence[dict[str, Any]]) -> bool:
    """Whether figures are of other judges, or of the pairs themselves, and the same for all checkpoints."""
    others = names[0].startswith(("shaping/", "oracle/", "lengths/"))
    return others and all(result[name] == results[0][name] for name in names for result in results)


def _cell(result: dict[str, Any], name: str) -> Text:
    """A figure over its interval; nothing where the checkpoint has no such figure."""
    if name not in result:
        return Text()
    edges = interval(result.get(f"{name}_interval"))
    return Text.assemble(number(result[name]), *([("\n" + edges, "dim")] if edges else []))


def _comparison(row: dict[str, Any], label: str, first: str, config: Any) -> Table:
    spans = [f"{_percent(config)} % interval"] if config.resamples else []
    title = f"{label} less {first}"
    if set(row["differences"]) == {"rewards/accuracies"}:
        title += f": {row['compared']}"
    table = _table(title, "", "difference", *spans, "p", "p\n(Holm)")
    for name, found in row["differences"].items():
        if name.endswith(UNSHOWN):
            continue
        test = row["tests"].get(name)
        edges = [interval(found["interval"])] if spans else []
        p = ["", ""] if test is None else [number(test["p"], 2), number(test["p_holm"], 2)]
        sure = test is not None and test["p_holm"] < SIGNIFICANT
        table.add_row(name, number(found["difference"]), *edges, *p, style="bold" if sure else None)
    return table


def _calibrations(result: dict[str, Any]) -> Iterator[Table]:
    for prefix, rows in result["by_confidence"].items():
        table = _table(
            f"{prefix}, by the margin's confidence", "sigmoid(|margin|)", "mean", "accuracy", "pairs", names=False
        )
        for row in rows:
            span = f"{row['confidence/least']:.3f} to {row['confidence/greatest']:.3f}"
            table.add_row(span, *(f"{row[name]:.3f}" for name in ("confidence/mean", "accuracies")), str(row["pairs"]))
        yield table


def _strengths(result: dict[str, Any]) -> Iterator[Table]:
    rows = result.get("by_strength", [])
    others = {"agreement": "oracle\nagrees"}
    if rows and "shaping/accuracies" in rows[0]:
        others |= {"teacher_agreement": "teacher\nagrees", "shaping/accuracies": "teacher\nright"}
    for prefix in REWARD_PREFIXES:
        if not rows or f"{prefix}/accuracies" not in rows[0]:
            continue
        heads = ("|oracle's\nmargin|", "pairs", "accuracy", "margin", *others.values())
        table = _table(f"{prefix}, by the strength of the preference", *heads, names=False)
        for row in rows:
            span = f"{row['strength/least']:.3g}–{row['strength/greatest']:.3g}"  # neither is negative
            accuracy = f"{row[f'{prefix}/accuracies']:.3f}±{row[f'{prefix}/accuracies_stderr']:.2f}"
            margin = f"{row[f'{prefix}/margins']:.3g}±{row[f'{prefix}/margins_stderr']:.2g}"
            rest = [row[name if "/" in name else f"{prefix}/{name}"] for name in others]
            table.add_row(span, str(row["pairs"]), accuracy, margin, *(number(value, 3) for value in rest))
        yield table


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; a dash for what is not defined."""
    return "–" if value is None else f"{value:.{digits}g}"


def interval(edges: Sequence[float] | None) -> str:
    return "" if edges is None else f"{edges[0]:.3g} to {edges[1]:.3g}"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def labels(paths: Sequence[str]) -> list[str]:
    """The shortest part of each path that tells it from the others; equal ones are numbered."""
    split = [os.path.normpath(path).split(os.sep) for path in paths]
    shortest = min(map(len, split))
    lead = next((i for i in range(shortest) if len({parts[i] for parts in split}) > 1), shortest)
    lead = min(lead, shortest - 1)
    split = [parts[lead:] for parts in split]
    shortest = min(map(len, split))
    tail = next((i for i in range(shortest) if len({parts[-1 - i] for parts in split}) > 1), shortest)
    tail = min(tail, shortest - 1)
    found = [os.sep.join(parts[: len(parts) - tail]) for parts in split]
    seen: dict[str, int] = {}
    for index, label in enumerate(found):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            found[index] = f"{label} ({seen[label]})"
    return found
