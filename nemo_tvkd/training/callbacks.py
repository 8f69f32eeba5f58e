"""What happens around training steps: seeds, records, progress, validation.

NeMo's own progress bar issues a collective on rank 0 alone, which hangs multi-rank gloo runs; everything here that
talks to other ranks does so on all of them.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist

from nemo_tvkd.checkpoints.hf import complete_checkpoints
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.clock import Clock, duration
from nemo_tvkd.runtime.exits import EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted
from nemo_tvkd.runtime.outputs import progress_file
from nemo_tvkd.runtime.progress import Progress
from nemo_tvkd.training.records import Record


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
    """Rows of figures and the line of progress; stops a run whose loss is not a number.

    It is a context, within which the run is recorded: how that ends is how the run has ended.

    Args:
        directory: the run's output directory.
        interval: steps between rows.
        start: the step that the run continues after.
        max_steps: its last step.
        records: what makes the places that rank 0 writes rows to.
    """

    def __init__(
        self, directory: Path, interval: int, start: int, max_steps: int, records: Callable[[], list[Record]]
    ) -> None:
        self.directory, self.interval, self.max_steps = directory, interval, max_steps
        self.clock = Clock(start, max_steps)
        self.open_records = records
        self.records: list[Record] = []
        speaks = dist.get_rank() == 0
        file = progress_file("train", directory) if speaks else None
        self.progress = Progress("training", max_steps, "steps", file, shown=speaks, done=start)
        self.means: dict[str, float] = {}
        self.tokens = 0.0

    def __enter__(self) -> "Recorder":
        if dist.get_rank() == 0:
            self.records = self.open_records()
        self.progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        with ExitStack() as ends:  # each of them, whatever happens to the others
            for record in self.records:
                ends.callback(record.close, _exit_code(error))
            ends.callback(self.progress.__exit__, kind, error, trace)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.clock.begin()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """After the backward pass: read the step's sums on every rank, before weights change."""
        sums = pl_module.step_sums()
        if not torch.isfinite(sums).all():
            raise UserError(
                f"the loss is not finite at step {trainer.global_step + 1}: stopped before the weights changed; the "
                f"last good checkpoint is {_newest(self.directory)}; lower optim.lr or look at that batch's data"
            )
        self.tokens = float(sums[-1])
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
        self.clock.tick(step, self.tokens)
        self.progress.update(step, self._figures(), 1 / max(self.clock.pace(), 1e-9), self.clock.left())
        if step % self.interval == 0 or step >= self.max_steps:
            row = {"step": step, **self.means, "lr": self.lr, "grad_norm": grad_norm}
            row["tokens_per_second"] = round(self.clock.lap(), 1)
            row["pairs_seen"] = step * trainer.datamodule.data_sampler.global_batch_size
            self.write(row, step)
            self.progress.line(
                f"step {step}/{self.max_steps}  {_short(row)}  lr {row['lr']:.3g}  "
                f"{row['tokens_per_second']:.0f} tokens/s  {duration(self.clock.left())} left"
            )

    def write(self, row: dict[str, Any], step: int) -> None:
        """One row for every record, from rank 0."""
        for record in self.records:
            record.write(row, step)

    @contextmanager
    def aside(self, what: str, interval: int) -> Iterator[None]:
        """For what is not training and happens every `interval` steps (0: at the end only)."""
        with self.clock.aside(what, interval), self.progress.busy(what):
            yield

    def _figures(self) -> list[str]:
        """Figures of the last step for the bar, the most important first."""
        rate = self.clock.rate()
        names = (("loss", "loss", ".4f"), ("rewards/accuracies", "acc", ".2f"), ("rewards/margins", "margin", ".3f"))
        loss, *others = [f"{short} {self.means[name]:{form}}" for name, short, form in names if name in self.means]
        speed = f"{rate:.0f} tok/s" if rate < 1000 else f"{rate / 1000:.1f}k tok/s"
        return [loss, *others[:1], speed, *others[1:], f"lr {self.lr:.2g}"]


class Validator(pl.Callback):
    """Validation means every `interval` steps (0: at the end only), recorded under "eval_" names.

    It comes after the checkpointer, so that a validation that fails costs no training.

    Args:
        owed: the step that the run goes on from, if it was stopped before that step's validation.
    """

    def __init__(
        self, validate: Callable[[], dict[str, float]], recorder: Recorder, interval: int, owed: int | None = None
    ) -> None:
        self.validate, self.recorder, self.interval, self.owed = validate, recorder, interval, owed

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Make up for the validation that is owed (collective)."""
        if self.owed is not None:
            step, self.owed = self.owed, None
            self.run(step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, last = trainer.global_step, self.recorder.max_steps
        if step >= last or (self.interval and step % self.interval == 0):
            self.run(step)

    def run(self, step: int) -> None:
        """Validate after a step and record it (collective)."""
        with self.recorder.aside("validating", self.interval):
            means = {f"eval_{name}": value for name, value in self.validate().items()}
            self.recorder.write({"step": step, **means}, step)
        self.recorder.progress.note(f"step {step}/{self.recorder.max_steps}  {_short(means)}")


def _short(row: dict[str, float]) -> str:
    shown = ("loss", "rewards/accuracies", "rewards/margins")
    names = [(n, n.removeprefix("eval_")) for n in row]
    return "  ".join(f"{n.replace('rewards/', '')} {row[n]:.4f}" for n, plain in names if plain in shown)


def _exit_code(error: BaseException | None) -> int:
    """What the command will end with."""
    if error is None:
        return 0
    return EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_USER_ERROR if isinstance(error, UserError) else 1


def _newest(directory: Path) -> str:
    checkpoints = complete_checkpoints(directory / "checkpoints")
    return str(checkpoints[-1]) if checkpoints else "none"
