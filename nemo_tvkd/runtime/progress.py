"""How far a command has come: rich's bar in a terminal, plain lines in a log, progress.json for `nemo-tvkd status`."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from nemo_tvkd.files import write_whole
from nemo_tvkd.runtime.clock import duration

FILE_SECONDS = 5.0
LINE_SECONDS = 2.0
ROOM_FOR_CTRL_C = len("^C")
"""A terminal writes that behind the bar, which must not be wrapped by it."""
WIDE, SHORTEST_BAR, LONGEST_BAR = 100, 5, 40
BAR = 2
"""Its place among the columns."""


class Progress:
    """One phase of a command; a context, at whose end the bar stays as it is.

    Args:
        phase: what is being done ("training", "scoring").
        total: how many units there are.
        unit: "steps", "pairs" or "rows".
        file: :func:`outputs.progress_file`, which `status` reads: a JSON object with phase, done, total, unit, rate
            (units per second, null before the first) and updated (Unix seconds). None: nowhere.
        shown: False: neither bar nor lines. Ranks other than 0 give False and no file.
        done: units done before.
    """

    def __init__(
        self, phase: str, total: int, unit: str, file: Path | None = None, *, shown: bool = True, done: int = 0
    ) -> None:
        self.phase, self.total, self.unit, self.file = phase, total, unit, file
        self.done, self.first, self.start = done, done, time.perf_counter()
        self.rate: float | None = None
        self.written = self.printed = -float("inf")
        terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self.lines = shown and not terminal
        self.bar: Any = _bar() if shown and terminal else None

    def __enter__(self) -> Self:
        self._write(self.phase)
        return self

    def __exit__(self, *error: Any) -> None:
        self._write(self.phase)
        if self.bar:
            self.bar.stop()

    def update(
        self, done: int, figures: Sequence[str] = (), rate: float | None = None, left: float | None = None
    ) -> None:
        """So many units are done.

        Args:
            figures: what else the bar shows, the most important first: a narrow terminal shows fewer.
            rate: units per second; None: on average since the start.
            left: seconds; None: at `rate`.
        """
        self.done = done
        self.rate = rate or (done - self.first) / max(time.perf_counter() - self.start, 1e-9)
        if left is None:
            left = (self.total - done) / self.rate if self.rate else 0.0
        if time.monotonic() - self.written >= FILE_SECONDS:
            self._write(self.phase)
        if self.bar:
            self._show(figures, f"{_short(left)} left")

    def line(self, text: str) -> None:
        """What a log keeps of it."""
        if self.lines:
            print(text, flush=True)

    def line_now_and_then(self, text: str) -> None:
        """The same, every few seconds and at the end."""
        if time.perf_counter() - self.printed >= LINE_SECONDS or self.done >= self.total:
            self.printed = time.perf_counter()
            self.line(text)

    def note(self, text: str) -> None:
        """A line to keep, in a log and above the bar."""
        if self.bar:
            self.bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self.line(text)

    @contextmanager
    def busy(self, phase: str) -> Iterator[None]:
        """Within the block something else is done ("saving", "validating")."""
        self._write(phase)
        tasks = self.bar.tasks if self.bar else []
        before = [task.fields["left"] for task in tasks]
        for task in tasks:
            self.bar.update(task.id, left=phase)
        try:
            yield
        finally:
            for task, left in zip(tasks, before, strict=True):
                self.bar.update(task.id, left=left)
            self._write(self.phase)

    def _show(self, figures: Sequence[str], left: str) -> None:
        wide = self.bar.console.width >= WIDE
        name = self.unit if wide else ""
        room = self.bar.console.width - ROOM_FOR_CTRL_C - len(f"{name} {self.total}/{self.total}    {left}")
        count = len(figures)
        while count > 1 and len("  ".join(figures[:count])) > room - SHORTEST_BAR:
            count -= 1
        text = "  ".join(figures[:count])
        self.bar.columns[BAR].bar_width = min(max(room - len(text), SHORTEST_BAR), LONGEST_BAR)
        if not self.bar.tasks:
            self.bar.add_task(name, total=self.total, figures=text, left=left)
            self.bar.start()  # an empty bar before would be an empty line
        task = self.bar.task_ids[0]
        self.bar.update(task, description=name, completed=self.done, figures=text, left=left)

    def _write(self, phase: str) -> None:
        if self.file is None:
            return
        self.written = time.monotonic()
        values = {"phase": phase, "done": self.done, "total": self.total, "unit": self.unit, "rate": self.rate}
        with suppress(OSError):  # a full disk: the command's own results report it
            write_whole(self.file, json.dumps(values | {"updated": time.time()}) + "\n")


class ScoringProgress(Progress):
    """Scoring: rank 0's share of the tokens stands for that of all replicas.

    Args:
        pairs: of all replicas.
        tokens: of this rank's replica.
        replicas: how many score at once.
        file, shown: as for :class:`Progress`.
    """

    def __init__(self, pairs: int, tokens: int, replicas: int, file: Path | None = None, *, shown: bool = True) -> None:
        super().__init__("scoring", pairs, "pairs", file, shown=shown)
        self.tokens, self.replicas, self.scored = tokens, replicas, 0

    def advance(self, tokens: int) -> None:
        """So many more tokens are scored."""
        self.scored += tokens
        share, pace = self.scored / self.tokens, self.scored / max(time.perf_counter() - self.start, 1e-9)
        left, rate = (self.tokens - self.scored) / pace, f"{pace * self.replicas:.0f} tokens/s"
        self.update(round(share * self.total), [rate], left=left)
        self.line_now_and_then(f"scored {100 * share:.0f} %  {rate}  {duration(left)} left")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    class Terminal(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # a process that is killed would leave it hidden

    return Bar(
        TextColumn("{task.description}", style="bold"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Terminal(force_terminal=True),
        refresh_per_second=4,
        redirect_stderr=sys.stderr.isatty(),  # a log of its own stays one
    )


def _short(seconds: float) -> str:
    """A duration, without hours where there are none."""
    return duration(seconds).removeprefix("00:")
