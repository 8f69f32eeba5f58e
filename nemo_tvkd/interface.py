"""Commands as functions: `train`, `score` and `evaluate` for scripts and notebooks.

Keys, checks, files and printed lines are the command line's; what a command refuses is raised as
:class:`~nemo_tvkd.errors.UserError`. The command runs in a process of its own: a notebook has threads, and perhaps
CUDA, with which no ranks can be forked, and NeMo without CUDA changes what torch does.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tvkd.config.compose import compose, quoted
from nemo_tvkd.config.paths import expand_homes
from nemo_tvkd.errors import UserError

if TYPE_CHECKING:
    from nemo_tvkd.scores.store import ScoreStore

SHORT: dict[str, dict[str, str]] = {
    "train": {
        "student": "student.path",
        "teacher": "teacher.path",
        "reference": "reference.path",
        "oracle": "oracle.path",
        "data": "data.train",
        "validation": "data.validation",
        "output": "trainer.output_dir",
    },
    "score": {
        "model": "score.model",
        "what": "score.what",
        "data": "data.train",
        "validation": "data.validation",
        "output": "score.output",
    },
    "evaluate": {"teacher": "teacher.path", "oracle": "oracle.path", "data": "data.validation"},
}
"""Arguments that stand for a key; one whose value is a mapping is the section of its name instead."""

SPEAKER = "nemo-tvkd: "
"""Begins the line in which a command says why it ended."""


@dataclass(frozen=True)
class Run:
    """A finished training run; wherever a path is taken, it stands for its output directory."""

    output_dir: Path

    def __fspath__(self) -> str:
        return str(self.output_dir)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: one a step, and one for each validation (its names begin with eval_)."""
        from nemo_tvkd.training.metrics_file import read_metrics

        return read_metrics(self.output_dir / "metrics.jsonl")


def train(algorithm: str, **keys: Any) -> Run:
    """Run `nemo-tvkd train algorithm=ALGORITHM KEY=VALUE ...`; resumes what is in the output directory.

    Args:
        algorithm: a name of METHODS.
        keys: student, teacher, reference, oracle, data, validation, output (paths), any key by its dotted name as in
            **{"trainer.max_steps": 10}, and sections as mappings as in trainer={"max_steps": 10}.

    Raises:
        UserError: what the command line reports with exit code 2.
        Preempted: a signal stopped the run after it had saved a checkpoint; the same call continues it.
        KeyboardInterrupt: Ctrl-C before there was anything to save.
        RuntimeError: a rank crashed; its traceback was printed.
    """
    return Run(Path(_run("train", {"algorithm": algorithm, **keys}).trainer.output_dir))


def score(**keys: Any) -> "ScoreStore":
    """Run `nemo-tvkd score KEY=VALUE ...` and open the store that it wrote.

    Args:
        keys: model, what, data, validation, output; and other keys as in :func:`train`.

    Raises:
        As :func:`train`.
    """
    from nemo_tvkd.scores.store import ScoreStore

    return ScoreStore.open(_run("score", keys).score.output, "score.output")


def evaluate(checkpoint: Any, **keys: Any) -> dict[str, Any]:
    """Run `nemo-tvkd evaluate checkpoint=CHECKPOINT KEY=VALUE ...`; returns what `output=FILE` would hold.

    Args:
        checkpoint: a path or a run, or a list of them.
        keys: data (the held-out pairs), reference, teacher, oracle; and other keys as in :func:`train`.

    Raises:
        As :func:`train`.
    """
    with tempfile.TemporaryDirectory(prefix="nemo-tvkd-") as folder:
        keys = {"output": Path(folder) / "result.json", **keys, "checkpoint": checkpoint}
        config = _run("evaluate", keys)
        result: dict[str, Any] = json.loads(Path(config.output).read_text(encoding="utf-8"))
    return result


def _run(command: str, keys: Mapping[str, Any]) -> Any:
    """Run a command and return its configuration; its lines are printed as they come, in a notebook's cell too."""
    words = overrides(command, keys)
    config = compose(command, words)
    expand_homes(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_tvkd", command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
        errors="replace",
    )
    reason = ""
    while process.poll() is None:
        try:
            reason = _echo(process.stdout) or reason
            process.wait()
        except KeyboardInterrupt:  # the command saves a checkpoint, or ends; twice ends it at once
            process.send_signal(signal.SIGINT)
    _check_exit(process.returncode, reason or f"{command} ended with exit code {process.returncode}")
    return config


def _echo(lines: Any) -> str:
    """Print what a command prints, but for the line that says why it ended: that is returned."""
    reason = ""
    for line in lines:
        if line.startswith(SPEAKER):
            reason = line.removeprefix(SPEAKER).strip()
        else:
            print(line, end="", flush=True)
    return reason


def _check_exit(code: int, reason: str) -> None:
    """Raise what an exit code other than 0 means."""
    from nemo_tvkd.runtime.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted

    errors = {EXIT_USER_ERROR: UserError, EXIT_PREEMPTED: Preempted, EXIT_INTERRUPTED: KeyboardInterrupt}
    if code:
        raise errors.get(code, RuntimeError)(reason)


def overrides(command: str, keys: Mapping[str, Any]) -> list[str]:
    """Arguments of a function as `key=value` overrides of its command."""
    words = []
    for name, value in keys.items():
        if isinstance(value, Mapping):
            words += overrides("", {f"{name}.{part}": inner for part, inner in value.items()})
        elif name == "algorithm":
            words.append(f"algorithm={value}")
        else:
            words.append(f"{SHORT.get(command, {}).get(name, name)}={quoted(_plain(value))}")
    return words


def _plain(value: Any) -> Any:
    """Paths as text and tuples as lists, as configurations hold them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
