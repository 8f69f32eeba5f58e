"""How far a command has come: one line that is rewritten in a terminal, plain lines in a log."""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_tvkd.runtime.clock import duration

SHORTEST_BAR, LONGEST_BAR = 5, 40
REFRESHES_PER_SECOND = 4
ROOM_FOR_CTRL_C = len("^C")
"""A terminal writes that behind the line, which must not be wrapped by it."""


class Piece(NamedTuple):
    """A part of the line."""

    text: str
    short: str
    """On a narrow terminal."""
    rank: int
    """The least are left out first where there is no room."""


@dataclass(frozen=True)
class Status:
    """What the line says."""

    head: Piece
    share: float
    """Of the work, 0 to 1."""
    figures: Sequence[Piece]
    elapsed: float
    left: float
    """Seconds."""


NEVER = 100
BAR = Piece("", "", 4)


def fit(pieces: Sequence[Piece], width: int) -> tuple[list[str], int]:
    """The texts that have room on a line of `width`, the bar's place among them empty, and the bar's length."""
    for short in (False, True):
        texts = [piece.short if short else piece.text for piece in pieces]
        room = width - _length(texts)
        if room >= SHORTEST_BAR:
            return texts, min(room, LONGEST_BAR)
    kept = list(pieces)
    while True:
        texts = [piece.short for piece in kept]
        room = width - _length(texts)
        if room >= (SHORTEST_BAR if BAR in kept else 0):
            return texts, min(room, LONGEST_BAR) if BAR in kept else 0
        least = min(kept, key=lambda piece: piece.rank)
        if least.rank >= NEVER:
            return texts, 0
        kept.remove(least)


def _length(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) + 2 * (len(texts) - 1)


class Display:
    """Where progress goes: nowhere, on ranks that have nothing to say."""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: Any) -> None: ...

    def update(self, status: Status) -> None:
        """What has been done so far."""

    def line(self, text: str) -> None:
        """What a log keeps of it."""

    def note(self, text: str) -> None:
        """A line to keep everywhere."""

    def busy(self, what: str) -> Any:
        """A context in which something else is done than what the line counts."""
        return nullcontext()


class Lines(Display):
    """Plain lines, for logs."""

    def line(self, text: str) -> None:
        print(text, flush=True)

    note = line


class Bar(Display):
    """One line at the bottom of a terminal that is written again and again; all else is printed above it.

    The cursor is never hidden, so that a process that is killed leaves nothing to repair.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.live import Live

        self.console = console or _console()
        self.status: Status | None = None
        self.since, self.doing = 0.0, ""
        self.live = Live(
            get_renderable=self._line,
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stderr=sys.stderr.isatty(),  # a log of its own stays one
        )

    def __exit__(self, *error: Any) -> None:
        self.live.stop()

    def update(self, status: Status) -> None:
        self.status, self.since = status, time.perf_counter()
        self.live.start()  # before there is something to say it would be an empty line

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        self.doing = what
        try:
            yield
        finally:
            self.doing = ""

    def _line(self) -> Any:
        status = self.status
        if status is None:
            return ""
        passed = time.perf_counter() - self.since if self.live.is_started else 0.0
        left = [f"{text} left" for text in _times(status.left - passed)]
        if self.doing:
            left = [self.doing.ljust(len(text)) for text in left]
        last = [Piece(*_times(status.elapsed + passed), 0), Piece(left[0], left[1], NEVER)]
        pieces = [status.head, BAR, *status.figures, *last]
        return _Line(pieces, status.share)


def _times(seconds: float) -> tuple[str, str]:
    """A duration, and without hours where there are none."""
    text = duration(seconds)
    return text, text.removeprefix("00:")


@dataclass(frozen=True)
class _Line:
    pieces: Sequence[Piece]
    share: float

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        texts, length = fit(self.pieces, options.max_width - ROOM_FOR_CTRL_C)
        line = Text(no_wrap=True, overflow="crop")
        for number, text in enumerate(texts):
            line.append("  " if number else "")
            if text:
                line.append(text, "bold" if number == 0 else "")
            else:
                done = math.floor(length * self.share)
                line.append("━" * done, "green").append("─" * (length - done), "dim")
        yield line


def _console() -> Any:
    from rich.console import Console

    class Terminal(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Terminal(force_terminal=True)


def display(speaks: bool) -> Display:
    """Where this process's progress goes.

    Args:
        speaks: whether it is the one rank that says something.
    """
    if not speaks:
        return Display()
    return Bar() if sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") else Lines()


class ScoringProgress:
    """Rank 0's share of the work: tokens per second of all replicas and time left."""

    def __init__(self, total: int, replicas: int, shown: Display) -> None:
        self.total, self.replicas, self.display = total, replicas, shown
        self.done, self.start, self.shown = 0, time.perf_counter(), -math.inf

    def __enter__(self) -> "ScoringProgress":
        self.display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.display.__exit__(*error)

    def advance(self, tokens: int) -> None:
        """So many more are scored."""
        self.done += tokens
        now = time.perf_counter()
        elapsed, share = now - self.start, self.done / self.total
        pace = self.done / max(elapsed, 1e-9)
        left = (self.total - self.done) / pace
        head, rate = f"scored {100 * share:.0f} %", f"{pace * self.replicas:.0f} tokens/s"
        self.display.update(Status(Piece(head, head, NEVER), share, [Piece(rate, rate, 5)], elapsed, left))
        if now - self.shown >= 2 or self.done >= self.total:
            self.shown = now
            self.display.line(f"{head}  {rate}  {duration(left)} left")
