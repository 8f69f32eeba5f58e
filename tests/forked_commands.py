"""Real `nemo-tvkd` commands without ten seconds of imports for each: they are forked from the rank pool's server.

A forked command is a process with its own session, environment, folder and streams; it handles signals and starts ranks
as one does that a shell started. What differs: NeMo is imported already, and it ends without Python's shutdown.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rank_pool import forking

STREAMS = tempfile.TemporaryDirectory(prefix="nemo-tvkd-streams-")
NUMBERS = itertools.count()


class Command:
    """A `nemo-tvkd` command that runs; the methods are those of `subprocess.Popen`."""

    def __init__(
        self,
        words: Sequence[object],
        environment: dict[str, str],
        folder: Path | None = None,
        output: Path | None = None,
        errors: Path | None = None,
        main: Callable[[list[str]], int] | None = None,
    ) -> None:
        """`output` and `errors`: files for the two streams, temporary ones by default; `main`: another program."""
        self.args = [str(word) for word in words]
        self._streams = [str(file or f"{STREAMS.name}/{next(NUMBERS)}") for file in (output, errors)]
        where = str(folder or Path.cwd())
        self._process = forking().Process(target=_command, args=(self.args, environment, where, self._streams, main))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What was written to the two streams, when the command has ended."""
        self.wait(timeout)
        output, errors = (Path(file).read_text(encoding="utf-8") for file in self._streams)
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(
    words: Sequence[object], environment: dict[str, str], folder: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`nemo-tvkd WORDS` to its end."""
    command = Command(words, environment, folder)
    try:
        output, errors = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.wait(), output, errors)


def _command(words: list[str], environment: dict[str, str], folder: str, streams: list[str], main: Any) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = ["nemo-tvkd", *words]
    if environment.get("HF_HUB_OFFLINE") == "1":
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # read at its import

    from nemo_tvkd.__main__ import main as nemo_tvkd

    code = 1
    try:
        code = (main or nemo_tvkd)(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
