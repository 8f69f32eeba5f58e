"""A run in Weights & Biases: the rows of metrics.jsonl under their names, each at its step."""

import importlib.util
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError, one_line
from nemo_tvkd.files import write_whole
from nemo_tvkd.runtime.exits import EXIT_PREEMPTED

RUN_ID = "wandb_run_id"
"""File in the output directory: a resumed run continues the same run there."""
ONLINE_SECONDS = 60
"""How long the first contact with the server and the last upload may take; nothing is lost, for all is on disk."""


def check_installed(project: str) -> None:
    """Whether the package can be imported, if a project is set.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("wandb") if project else None
    if project and (spec is None or spec.origin is None):  # a folder of that name, which a run leaves where it runs
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
        self.run: Any = None
        settings = {
            **{"project": options.project, "entity": options.entity or None, "group": options.group or None},
            **{"name": options.name or directory.resolve().name, "dir": str(directory), "config": config},
            **{"id": _run_id(directory, start), "resume": "allow"},
        }
        mode = options.mode if options.mode == "offline" else os.environ.get("WANDB_MODE", options.mode)
        try:
            try:
                self.run = _init(settings, mode)
            except Exception as error:
                if mode == "offline":
                    raise
                instead = f"recorded offline: wandb sync {directory}/wandb/offline-run-*"
                _warn(f"the server cannot be used ({_described(error)}); this run is {instead}")
                _end_process()  # which has reserved the run's id
                self.run = _init(settings, "offline")
        except Exception as error:
            _warn(f"this run is not recorded: {_described(error)}")

    def write(self, row: dict[str, Any], step: int) -> None:
        """A row of metrics.jsonl; the rows of one step are one there."""
        if self.run is None:
            return
        try:
            self.run.log({name: value for name, value in row.items() if name != "step"}, step=step)
        except Exception as error:  # wandb's own process has ended
            self.run = None
            _warn(f"nothing is recorded from step {step} on: {_described(error)}")

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
            _warn(f"the end of the run is not recorded: {_described(error)}")


def _run_id(directory: Path, start: int) -> str:
    """The run's id for the server; a run that begins anew gets another."""
    file = directory / RUN_ID
    if start and file.exists() and (known := file.read_text().strip()):
        return known
    new = secrets.token_hex(4)
    write_whole(file, new + "\n")
    return new


def _init(arguments: dict[str, Any], mode: Any) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=ONLINE_SECONDS, finish_timeout=ONLINE_SECONDS)
    # Without a terminal to read from, a missing login is an error, not a question that a run waits for.
    stdin = sys.stdin
    try:
        with open(os.devnull) as sys.stdin:
            return wandb.init(**arguments, mode=mode, settings=settings)
    finally:
        sys.stdin = stdin


def _end_process() -> None:
    """Wait for wandb's own process: only at its end is all of an offline run on disk."""
    import wandb

    end = threading.Thread(target=wandb.teardown, daemon=True)
    end.start()
    end.join(ONLINE_SECONDS)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error).splitlines()[0])}" if str(error) else type(error).__name__


def _warn(text: str) -> None:
    print(f"warning: Weights & Biases: {text}", file=sys.stderr, flush=True)
