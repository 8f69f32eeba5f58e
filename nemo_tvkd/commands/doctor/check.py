"""One line of what `doctor` found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A thing that was looked at."""

    name: str
    level: str
    """OK | WARN | FAIL."""
    detail: str
    advice: str = ""
    """What to do about it, in one line."""
