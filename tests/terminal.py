"""A terminal for tests: commands run in a real pseudo-terminal, and what its screen then shows."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable

PART = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")


def screen(written: str, width: int) -> list[str]:
    """The lines that a terminal of `width` shows after `written`; it wraps what is longer, as real ones do."""
    lines, row, column = [""], 0, 0
    for match in PART.finditer(written):
        _, number, command, back, down, sign = match.groups()
        if back:
            column = 0
        elif down:
            row, column = row + 1, 0  # programs' \n is \r\n behind a terminal's driver
        elif command == "A":
            row = max(row - int(number or 1), 0)
        elif command == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif sign:
            if column == width:
                row, column = row + 1, 0
            while row >= len(lines):
                lines.append("")
            lines[row] = lines[row].ljust(column)[:column] + sign + lines[row][column + 1 :]
            column += 1
        while row >= len(lines):
            lines.append("")
    return [line.rstrip() for line in lines]


def run_in_terminal(
    command: list[str],
    environment: dict[str, str],
    width: int = 80,
    ready: Callable[[str], bool] | None = None,
    keys: bytes = b"\x03",
    timeout: float = 240,
) -> tuple[int, str]:
    """A command in a terminal of its own; its exit code, and all that it wrote.

    Args:
        ready: of what was written so far, whether `keys` are to be typed now (once).
    """
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(command[0], command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    written, deadline = b"", time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                part = os.read(terminal, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            written += part
            if ready is not None and ready(written.decode(errors="replace")):
                ready = None
                os.write(terminal, keys)
        else:
            os.kill(process, 9)
            raise AssertionError(f"did not end within {timeout} s: {written.decode(errors='replace')[-2000:]}")
    finally:
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), written.decode(errors="replace")
