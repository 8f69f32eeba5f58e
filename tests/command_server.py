"""Real `nemo-tvkd` commands without ten seconds of imports for each: they are forked from a process that has NeMo.

python command_server.py     reads {"words", "folder", "output"} a line, prints the exit code a line
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class CommandServer:
    """Runs commands in the folder it is given."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def run(self, words: list[str]) -> tuple[int, str]:
        """(exit code, what was printed) of `nemo-tvkd WORDS`."""
        output = self.folder / f"output_{self.process.pid}.txt"
        task = {"words": words, "folder": str(self.folder), "output": str(output)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server ended"
        return int(answer), output.read_text(encoding="utf-8")

    def __enter__(self) -> "CommandServer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    import rank_pool_preload  # noqa: F401

    import nemo_tvkd.commands.evaluate
    import nemo_tvkd.commands.train  # noqa: F401
    from nemo_tvkd.__main__ import main

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(task["folder"])
            output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 1
            try:
                code = main(task["words"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


if __name__ == "__main__":
    serve()
