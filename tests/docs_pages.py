"""The code blocks of docs/: which are run, which are only checked, and what they must print.

```bash {.run}        run, in order, in the folder that all such blocks of the site share (the tutorial's come first)
```python {.run}      run likewise; a page's blocks are one program, whose output blocks are compared in order
```text {.output}     what the block before it prints, in this order: numbers may differ; `...` leaves lines out
```bash               its `nemo-tvkd` commands are composed, so that their keys exist
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w+) *(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d,.:]*(e[-+]?\d+)?%?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, and its text."""

    place: str
    language: str
    options: str
    text: str

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and ".run" in self.options

    @property
    def is_output(self) -> bool:
        return ".output" in self.options

    @property
    def title(self) -> str:
        """The file that the block is, or changes."""
        found = re.search(r'title="([^"]*)"', self.options)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(f"{page.relative_to(DOCS)}:{line}", match[1], match[2], match[3]))
    return found


def lines_of(text: str) -> list[str]:
    """Lines of a shell, those that end with a backslash joined with the next."""
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def nemo_tvkd_words(text: str) -> Iterator[list[str]]:
    """The words behind `nemo-tvkd` of each command in a block."""
    for line in lines_of(text):
        words = shlex.split(line, comments=True)
        if words[:1] == ["nemo-tvkd"]:
            yield words[1:]


def shape(line: str) -> str:
    """A line of output without what differs from machine to machine: digits, and the width of columns."""
    return " ".join(NUMBER.sub("0", line).split())


def missing_output(expected: str, printed: str) -> str:
    """The first expected line that was not printed behind those before it; empty if all were."""
    rest = iter([shape(line) for line in printed.splitlines()])
    for line in expected.splitlines():
        wanted = shape(line)
        if wanted not in ("", "...") and wanted not in rest:
            return line
    return ""
