"""When checkpoints are saved: every so many steps, at the end, and when a signal asks for one."""

import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from nemo_tvkd.checkpoints.hf import complete_checkpoints
from nemo_tvkd.runtime import cpu, signals
from nemo_tvkd.runtime.exits import SAVE_SIGNALS, Preempted

ONE_CTRL_C_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a rank twice within this time: directly, and through the process that started it."""


class Checkpointer(pl.Callback):
    """NeMo checkpoints every `interval` steps, at the end, and on SIGUSR1, SIGTERM or Ctrl-C; whole or not at all.

    A checkpoint is written under a hidden name and renamed when every rank is done, so a reader never sees a part.

    Args:
        directory: the run's checkpoints/ folder.
        interval: steps between checkpoints; 0: at the end only.
        keep: how many of the newest to keep.
        max_steps: the last step, which is always saved.
        write_context: (checkpoint folder) -> None, adds context/ (called on rank 0).
        aside: a context for what is no training.
    """

    def __init__(
        self,
        directory: Path,
        interval: int,
        keep: int,
        max_steps: int,
        write_context: Callable[[Path], None],
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.directory, self.interval, self.keep, self.max_steps = directory, interval, keep, max_steps
        self.write_context, self.aside = write_context, aside
        self.signalled: int | None = None
        self.since = 0.0
        self.give_back: Callable[[], None] = lambda: None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if dist.get_rank() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(".step-*"):
                shutil.rmtree(leftover)
        dist.barrier()  # the ranks change their minds about signals together
        self.give_back = signals.take_over(self._remember, SAVE_SIGNALS)

    def _remember(self, signum: int, frame: Any) -> None:
        now = time.monotonic()
        if signum == signal.SIGINT and self.signalled == signum:
            if now - self.since < ONE_CTRL_C_SECONDS:
                return
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signalled, self.since = signum, now

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        stop = self._any_rank_signalled()
        if stop or step >= self.max_steps or (self.interval and step % self.interval == 0):
            with self.aside():
                self.save(trainer, step)
        if step >= self.max_steps:
            self.give_back()  # all is saved: a signal in the last validation ends the run at once
        elif stop:
            raise Preempted(f"stopped by a signal after step {step}; run the same command again to continue")

    def _any_rank_signalled(self) -> bool:
        flag = torch.tensor([float(self.signalled is not None)], device=cpu.device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Write the checkpoint of `step` (collective)."""
        final = self.directory / f"step-{step:08d}"
        partial = self.directory / f".{final.name}"
        trainer.save_checkpoint(str(partial))
        if dist.get_rank() == 0:
            self.write_context(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in complete_checkpoints(self.directory)[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.give_back()
