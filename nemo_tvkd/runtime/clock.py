"""How long training takes: its pace, and the time that is left."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

PACE_STEPS = 100
"""The pace is that of so many last steps: recent enough to follow a change, long enough to be steady."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; hours may be more than 24."""
    whole = max(round(seconds), 0)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class _Tick(NamedTuple):
    step: int
    seconds: float
    tokens: float


class Clock:
    """The time that training steps take, without what stands between them (validation, checkpoints).

    Args:
        start: the step that the run continues after.
        total: its last step.
        now: the time in seconds.
    """

    def __init__(self, start: int, total: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.step, self.total, self.now = start, total, now
        self.ticks: deque[_Tick] = deque(maxlen=PACE_STEPS + 1)
        self.asides: dict[str, tuple[int, list[float]]] = {}
        self.begin()

    def begin(self) -> None:
        """Before the first step."""
        self.began, self.beside, self.tokens = self.now(), 0.0, 0.0
        self.lap_start = _Tick(self.step, 0.0, 0.0)
        self.first = True
        self.ticks.clear()
        self.ticks.append(self.lap_start)

    def elapsed(self) -> float:
        """Seconds since the start of this process's part of the run."""
        return self.now() - self.began

    def _tick(self) -> _Tick:
        return _Tick(self.step, self.elapsed() - self.beside, self.tokens)

    def tick(self, step: int, tokens: float) -> None:
        """A step is done, of so many tokens."""
        self.step, self.tokens = step, self.tokens + tokens
        if len(self.ticks) == 2 and self.first:  # the first step allocates, compiles and connects
            self.ticks.popleft()
            self.first = False
        self.ticks.append(self._tick())

    @contextmanager
    def aside(self, what: str, interval: int) -> Iterator[None]:
        """Within the block no training happens.

        Args:
            interval: steps between such blocks; there is one after the last step in any case. 0: only then.
        """
        start = self.now()
        try:
            yield
        finally:
            seconds = self.now() - start
            self.beside += seconds
            self.asides.setdefault(what, (interval, []))[1].append(seconds)

    def lap(self) -> float:
        """Tokens per second since the lap before."""
        before, self.lap_start = self.lap_start, self._tick()
        return (self.lap_start.tokens - before.tokens) / max(self.lap_start.seconds - before.seconds, 1e-9)

    def rate(self) -> float:
        """Tokens per second of the last steps."""
        first, last = self.ticks[0], self.ticks[-1]
        return (last.tokens - first.tokens) / max(last.seconds - first.seconds, 1e-9)

    def pace(self) -> float:
        """Seconds per step of the last steps."""
        first, last = self.ticks[0], self.ticks[-1]
        return (last.seconds - first.seconds) / max(last.step - first.step, 1)

    def left(self) -> float:
        """Seconds until the end: steps at the last ones' pace, and validations and checkpoints as long as so far."""
        beside = sum(self._due(interval) * sum(took) / len(took) for interval, took in self.asides.values())
        return (self.total - self.step) * self.pace() + beside

    def _due(self, interval: int) -> int:
        if self.step >= self.total:
            return 0
        if not interval:
            return 1
        return self.total // interval - self.step // interval + (self.total % interval > 0)
