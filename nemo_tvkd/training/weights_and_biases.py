"""A run in Weights & Biases: the rows of metrics.jsonl under their names, each at its step."""

import importlib.util
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_whole
from nemo_tvkd.runtime.exits import EXIT_PREEMPTED

RUN_ID = "wandb_run_id"
"""File in the output directory: a resumed run continues the same run there."""
ONLINE_SECONDS = 60
"""How long the first contact with the server and the last upload may take; nothing is lost, for all is on disk."""


def check_installed(project: str) -> None:
    """Whether the package is there, where it is asked for.

    Raises:
        UserError: it is not.
    """
    if not project:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name, which the package leaves where it runs
        raise UserError("logger.wandb.project is set but wandb is not installed: pip install wandb")


class WeightsAndBiases:
    """One run there. What goes wrong with it is one line of warning: it never ends a training run.

    Args:
        options: the section logger.wandb of the configuration.
        directory: the run's output directory, which gets wandb/.
        config: the resolved configuration, as plain values.
        start: the step that the run continues after.
    """

    def __init__(self, options: Any, directory: Path, config: dict[str, Any], start: int) -> None:
        self.directory = directory
        self.run: Any = None
        asked = {
            "project": options.project,
            "entity": options.entity or None,
            "name": options.name or directory.resolve().name,
            "group": options.group or None,
            "id": _run_id(directory, start),
            "resume": "allow",
            "dir": str(directory),
            "config": config,
        }
        mode = options.mode if options.mode == "offline" else os.environ.get("WANDB_MODE", options.mode)
        try:
            self.run = _init(asked, mode)
        except Exception as error:
            if mode == "offline":
                _warn(f"there will be no record of this run: {_line(error)}")
                return
            _warn(
                f"the server cannot be used ({_line(error)}); this run is recorded offline: "
                f"wandb sync {directory}/wandb/offline-run-*"
            )
            try:
                _end_process()  # in which the run's id is taken
                self.run = _init(asked, "offline")
            except Exception as again:
                _warn(f"there will be no record of this run: {_line(again)}")

    def write(self, row: dict[str, Any], step: int) -> None:
        """A row of metrics.jsonl; the rows of one step are one there."""
        if self.run is None:
            return
        try:
            self.run.log({name: value for name, value in row.items() if name != "step"}, step=step)
        except Exception as error:  # its process is gone
            self.run = None
            _warn(f"nothing is recorded from step {step} on: {_line(error)}")

    def close(self, code: int) -> None:
        """The run ends with this exit code; one that was stopped by a signal goes on at the next start."""
        if self.run is None:
            return
        try:
            if code == EXIT_PREEMPTED:
                self.run.mark_preempting()
            self.run.finish(exit_code=code)
            _end_process()
        except Exception as error:
            _warn(f"the end of the run is not recorded: {_line(error)}")


def _run_id(directory: Path, start: int) -> str:
    """The run's name for the server; one that begins anew gets another."""
    file = directory / RUN_ID
    if start and file.exists() and (known := file.read_text().strip()):
        return known
    new = secrets.token_hex(4)
    write_whole(file, new + "\n")
    return new


def _init(asked: dict[str, Any], mode: Any) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=ONLINE_SECONDS)
    if hasattr(settings, "finish_timeout"):  # wandb of 2026
        settings.finish_timeout = ONLINE_SECONDS
    with _nobody_to_ask():
        return wandb.init(**asked, mode=mode, settings=settings)


def _end_process() -> None:
    """Wait for wandb's own process: only at its end is all of an offline run on disk."""
    import wandb

    end = threading.Thread(target=wandb.teardown, daemon=True)
    end.start()
    end.join(ONLINE_SECONDS)


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Without a terminal to read from: a login that is missing is an error, not a question that a run waits for."""
    before = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def _line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"


def _warn(text: str) -> None:
    print(f"warning: Weights & Biases: {text}", file=sys.stderr, flush=True)
