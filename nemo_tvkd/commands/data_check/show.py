"""The figures of `data check` on a terminal or in a log; text from the data is shown, never obeyed."""

import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nemo_tvkd.commands.data_check.examples import visible

LONGEST = 700
"""Characters that are shown of one piece of an example, where it has half as many again."""
COLOURS = {"prompt": "dim", "chosen": "green", "rejected": "red"}
OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around what is trained on, where there are no colours."""


def show(figures: dict[str, Any]) -> None:
    """Print all of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if "utf" not in encoding.lower():
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    console = Console(highlight=False, markup=False, emoji=False)
    colour = bool(console.color_system) and not console.no_color
    with console.capture() as printed:
        for part in _parts(figures, colour):
            console.print(part)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def _parts(figures: dict[str, Any], colour: bool) -> Iterable[RenderableType]:
    yield from _section("Recognised", _recognised(figures))
    yield from _section("Rows", _rows(figures))
    if figures["bad_rows"]:
        yield from _section("Bad rows", _bad_rows(figures))
    if figures["lengths"]:
        yield from _section(f"Lengths in {figures['unit']}", _lengths(figures["lengths"]))
        yield from _section("Balance and cuts", _balance(figures))
    if figures["examples"]:
        meaning = "prompt dim, trained tokens green or red" if colour else f"{OPEN}trained on{CLOSE}"
        note = "" if figures["template"] else "; as text, tokenizer=MODEL shows them as tokens"
        yield from _section(
            f"Examples ({meaning}{note})", *(_example(made, figures, colour) for made in figures["examples"])
        )
    yield Text(_verdict(figures), style="bold")


def _section(title: str, *parts: RenderableType) -> Iterable[RenderableType]:
    yield Text(title, style="bold")
    for part in parts:
        yield Padding(part, (0, 0, 0, 2))
    yield Text("")


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    """Names beside what is said of them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(Text(name, style="cyan"), Text(visible(text)))
    return table


def _recognised(figures: dict[str, Any]) -> Table:
    weights = figures["weights"]
    facts = [("read from", f"{f['path']} ({f['format']}): {f['records']:,} rows") for f in figures["files"]]
    if weights:
        facts += [("weight", f"{path}: {weight:g}") for path, weight in zip(figures["paths"], weights, strict=True)]
    facts += [("layout", f"{layout}: {count:,}") for layout, count in figures["layouts"].items()]
    facts += [("looks like", f"{name}: {count:,} rows") for name, count in figures["public_sets"].items()]
    facts.append(("read as", figures["rows"]))
    if figures["tokenizer"]:
        facts += [("tokenizer", figures["tokenizer"]), ("template", figures["template"])]
    return _facts(facts)


def _rows(figures: dict[str, Any]) -> Table:
    records = figures["records"]
    facts = [("rows", f"{records:,}"), (f"good {figures['rows']}", f"{figures['usable']:,}")]
    facts.append(("bad rows", _share(figures["bad"], records)))
    if ties := figures["without_preference"]:
        facts.append(("ties", f"{ties:,} pairs of equally rated responses are left out"))
    if single := figures["without_partner"]:
        facts.append(("no partner", f"{single:,} responses without a second one for their prompt are left out"))
    twins = figures["duplicates"]
    where = "; ".join(f"{_short(b, figures)} is {_short(a, figures)}" for a, b in twins["examples"])
    facts.append(("duplicates", _share(twins["count"], figures["usable"]) + (f": {where}" if where else "")))
    facts.append(("with an id", f"{figures['with_id']:,}"))
    facts.append(("with rewards", f"{figures['with_rewards']:,}"))
    return _facts(facts)


def _bad_rows(figures: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("what is wrong (of the first)", overflow="fold", ratio=3)
    table.add_column("where", overflow="fold", ratio=2)
    for kind in figures["bad_rows"]:
        where = _places(kind["examples"], figures) + (", ..." if kind["count"] > len(kind["examples"]) else "")
        table.add_row(*(Text(cell) for cell in (f"{kind['count']:,}", visible(kind["what"]), visible(where))))
    return table


def _lengths(lengths: dict[str, dict[str, float]]) -> Table:
    columns = list(next(iter(lengths.values())))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column("", no_wrap=True, style="cyan")
    for column in columns:
        table.add_column(
            {"p50": "median"}.get(column, column.replace("p", "") + "%" * column.startswith("p")), justify="right"
        )
    for name, sizes in lengths.items():
        table.add_row(name, *(f"{sizes[column]:,.0f}" for column in columns))
    return table


def _balance(figures: dict[str, Any]) -> Table:
    facts = []
    measured = sum(figures["chosen_longer"].values())
    if measured:
        parts = ((what, count) for what, count in figures["chosen_longer"].items())
        shares = ", ".join(f"{what} in {count / measured:.1%}" for what, count in parts)
        facts.append(("chosen is", f"{shares} (than rejected)"))
    if rated := figures["with_rewards"]:
        parts = ((what.replace("_", " "), count) for what, count in figures["rewards"].items())
        facts.append(("rewards", ", ".join(f"{what} in {count / rated:.1%}" for what, count in parts)))
    if not figures["template"]:
        facts.append(("cuts", "give tokenizer=MODEL to see what data.max_length cuts"))
    if cuts := figures["truncation"]:
        limit = f"data.max_length={cuts['max_length']}"
        longest = cuts["max_prompt_length"]
        rows = figures["usable"] + cuts["rows_lost"]
        responses = figures["usable"] * (2 if figures["rows"] == "pairs" else 1)
        name = "prompts cut"
        facts.append((name, f"{_share(cuts['prompts_cut'], rows)} at data.max_prompt_length={longest or 'null'}"))
        facts.append(("responses cut", f"{_share(cuts['responses_cut'], responses)} at {limit}"))
        facts.append(("rows lost", f"{_share(cuts['rows_lost'], rows)}: nothing of a response fits {limit}"))
    return _facts(facts)


def _example(made: dict[str, Any], figures: dict[str, Any], colour: bool) -> RenderableType:
    sizes = ", ".join(f"{name} {size:,}" for name, size in made.get("tokens", {}).items())
    head = _short(made["source"], figures) + (f"  ({sizes} tokens{', cut' if made['cut'] else ''})" if sizes else "")
    parts: list[RenderableType] = [Text(visible(head), style="bold")]
    for side in ("prompt", "chosen", "rejected"):
        if side in made:
            parts.append(Text(f"{side}:", style="cyan"))
            parts.append(Padding(_side(made[side], side, colour), (0, 0, 0, 4)))
    return Padding(Group(*parts), (0, 0, 1, 0))


def _side(pieces: list[dict[str, Any]], side: str, colour: bool) -> Text:
    """The pieces in one text; without colours what is trained on stands in brackets."""
    text, trained = Text(), False
    for piece in pieces:
        if not colour and piece["trained"] != trained:
            text.append(CLOSE if trained else OPEN)
        trained = piece["trained"]
        style = COLOURS[side] if trained or side == "prompt" else "dim"
        text.append(_cut(visible(piece["text"])), style=f"{style} reverse" if piece["special"] and trained else style)
    if not colour and trained:
        text.append(CLOSE)
    return text


def _cut(text: str) -> str:
    """Start and end of a long text."""
    left, half = len(text) - LONGEST, LONGEST // 2
    if left < half:
        return text
    return f"{text[:half]} [... {left:,} characters ...] {text[-half:]}"


def _verdict(figures: dict[str, Any]) -> str:
    usable, bad = figures["usable"], figures["bad"]
    verdict = f"{usable:,} {figures['rows']} to train on"
    if figures["error"]:
        return f"{verdict}, but: {visible(figures['error'])}"
    if bad:
        them = "the bad row" if bad == 1 else f"the {bad:,} bad rows"
        verdict += f"; data.on_bad_row=skip leaves {them} out, without it training stops at the first"
    return f"{verdict}."


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if count and whole else f"{count:,}"


def _places(sources: list[str], figures: dict[str, Any]) -> str:
    """The file once, with all of its lines."""
    split = [_short(source, figures).rpartition(":") for source in sources]
    groups = groupby(split, key=lambda parts: parts[0])
    return ", ".join(f"{file}:{', '.join(line for *_, line in lines)}" for file, lines in groups)


def _short(source: str, figures: dict[str, Any]) -> str:
    """A place by its file's name, where no two files have the same."""
    paths = [file["path"] for file in figures["files"]]
    names = {Path(path).name for path in paths}
    if len(names) < len(paths):
        return source
    for path in paths:
        source = source.replace(f"{path}:", f"{Path(path).name}:")
    return source
