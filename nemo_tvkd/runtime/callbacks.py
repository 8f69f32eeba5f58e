"""What happens around training steps: records, progress, validation, checkpoints, preemption.

NeMo's own progress bar issues a collective on rank 0 alone, which hangs multi-rank gloo runs; everything here that
talks to other ranks does so on all of them.
"""

import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist

from nemo_tvkd.errors import UserError
from nemo_tvkd.models.hf import complete_checkpoints
from nemo_tvkd.runtime import cpu, signals
from nemo_tvkd.runtime.exits import SAVE_SIGNALS, Preempted


class StepSeed(pl.Callback):
    """Seeds every generator from (seed, step), so that a resumed step draws what the uninterrupted one would have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        value = int(np.random.SeedSequence([self.seed, trainer.global_step]).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)


class Recorder(pl.Callback):
    """metrics.jsonl, TensorBoard and a line of progress; stops a run whose loss is not a number.

    Args:
        directory: the run's output directory.
        interval: steps between rows.
        max_steps: for the time left.
        tensorboard: whether to write tensorboard/.
    """

    def __init__(self, directory: Path, interval: int, max_steps: int, tensorboard: bool) -> None:
        self.directory, self.interval, self.max_steps = directory, interval, max_steps
        self.tensorboard = tensorboard
        self.means: dict[str, float] = {}
        self.writer: Any = None
        self.since = 0.0
        self.tokens = 0.0
        self.first_step = 0
        self.started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.first_step = trainer.global_step
        self.started = self.since = time.perf_counter()
        if dist.get_rank():
            return
        _drop_rows_after(self.directory / "metrics.jsonl", trainer.global_step)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """After the backward pass: read the step's sums on every rank, before weights change."""
        sums = pl_module.step_sums()
        if not torch.isfinite(sums).all():
            raise UserError(
                f"the loss is not finite at step {trainer.global_step + 1}: stopped before the weights changed; the "
                f"last good checkpoint is {_newest(self.directory)}; lower optim.lr or look at that batch's data"
            )
        self.tokens += float(sums[-1])
        self.means = pl_module.training_loss_reduction.objective.means(sums)
        self.lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        grad_norm = float(trainer.callback_metrics.get("grad_norm", float("nan")))
        if not math.isfinite(grad_norm):
            raise UserError(
                f"the gradient norm is not finite at step {step}: stopped; the last good checkpoint is "
                f"{_newest(self.directory)}; lower optim.lr or look at that batch's data"
            )
        last = step >= self.max_steps
        if step % self.interval == 0 or last:
            now = time.perf_counter()
            row = {"step": step, **self.means, "lr": self.lr, "grad_norm": grad_norm}
            row["tokens_per_second"] = round(self.tokens / max(now - self.since, 1e-9), 1)
            row["pairs_seen"] = step * trainer.datamodule.data_sampler.global_batch_size
            self.since, self.tokens = now, 0.0
            self.write(row, step)
            self._progress(row, step)

    def write(self, row: dict[str, Any], step: int) -> None:
        """One row of metrics.jsonl and TensorBoard, from rank 0."""
        if dist.get_rank():
            return
        with open(self.directory / "metrics.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def _progress(self, row: dict[str, Any], step: int) -> None:
        pace = (time.perf_counter() - self.started) / max(step - self.first_step, 1)
        left = time.strftime("%H:%M:%S", time.gmtime(pace * (self.max_steps - step)))
        self.say(
            f"step {step}/{self.max_steps}  {_short(row)}  lr {row['lr']:.3g}  "
            f"{row['tokens_per_second']:.0f} tokens/s  {left} left"
        )

    def say(self, line: str) -> None:
        """One line, from rank 0."""
        if dist.get_rank() == 0:
            print(line, file=sys.stdout, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.writer is not None:
            self.writer.close()


class Validator(pl.Callback):
    """Validation means every `interval` steps (0: at the end only), recorded under "eval_" names.

    It comes after the checkpointer, so that a validation that fails costs no training.
    """

    def __init__(self, validate: Callable[[], dict[str, float]], recorder: Recorder, interval: int) -> None:
        self.validate, self.recorder, self.interval = validate, recorder, interval

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, last = trainer.global_step, self.recorder.max_steps
        if step >= last or (self.interval and step % self.interval == 0):
            self.run(step)

    def run(self, step: int) -> None:
        """Validate after a step and record it (collective)."""
        start = time.perf_counter()
        means = {f"eval_{name}": value for name, value in self.validate().items()}
        self.recorder.write({"step": step, **means}, step)
        self.recorder.say(f"step {step}/{self.recorder.max_steps}  {_short(means)}")
        self.recorder.since += time.perf_counter() - start  # no training time


def _short(row: dict[str, float]) -> str:
    shown = ("loss", "rewards/accuracies", "rewards/margins")
    names = [(n, n.removeprefix("eval_")) for n in row]
    return "  ".join(f"{n.replace('rewards/', '')} {row[n]:.4f}" for n, plain in names if plain in shown)


def _newest(directory: Path) -> str:
    found = complete_checkpoints(directory / "checkpoints")
    return str(found[-1]) if found else "none"


def _drop_rows_after(file: Path, step: int) -> None:
    """A resumed run repeats the steps after its checkpoint; their old rows would stand twice."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the row that was being written when the run died
    partial = file.with_suffix(".tmp")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(file)


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
    """

    def __init__(
        self, directory: Path, interval: int, keep: int, max_steps: int, write_context: Callable[[Path], None]
    ) -> None:
        self.directory, self.interval, self.keep, self.max_steps = directory, interval, keep, max_steps
        self.write_context = write_context
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
