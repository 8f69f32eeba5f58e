"""`nemo-tvkd train`: any method, as a NeMo training run."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_tvkd.checkpoints.hf import newest_complete
from nemo_tvkd.config.paths import PATH_KEYS, absolute
from nemo_tvkd.data.noise import record
from nemo_tvkd.data.readings import tokens_of
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import take_lock, write_whole
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.losses.reads import base, source
from nemo_tvkd.prepare.needs import option
from nemo_tvkd.prepare.training import Prepared, prepare_training
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.runtime.outputs import FINISHED
from nemo_tvkd.training.metrics_file import read_metrics
from nemo_tvkd.training.weights_and_biases import check_installed

if TYPE_CHECKING:
    from nemo_tvkd.data.batch import Batch
    from nemo_tvkd.models.policy import PolicyModel


def main(config: Any) -> int:
    """Check, launch the ranks and train; returns the exit code."""
    check_installed(config.logger.wandb.project)
    prepared = prepare_training(config)
    done = _steps(_resumable(config))
    if done >= prepared.max_steps and _owes_validation(config, prepared, done):
        return launch.run(train_rank, (config, prepared), prepared.ranks)
    if is_rank_zero():
        for note in prepared.notes:
            print(note, file=sys.stderr if note.startswith("warning") else sys.stdout, flush=True)
        if done >= prepared.max_steps:
            print(f"{config.trainer.output_dir} is complete: step {done} of {prepared.max_steps}")
            _write_finished(Path(config.trainer.output_dir), prepared.max_steps)
    if done >= prepared.max_steps:
        return 0
    return launch.run(train_rank, (config, prepared), prepared.ranks)


def _owes_validation(config: Any, prepared: Prepared, step: int) -> bool:
    """Whether a run was stopped between its checkpoint of a step and the validation that comes after it."""
    file, interval = Path(config.trainer.output_dir) / "metrics.jsonl", config.trainer.val_interval
    due = step >= prepared.max_steps or (interval > 0 and step % interval == 0)
    if not step or not prepared.validation or not due or not file.exists():
        return False
    return not any(row["step"] == step and "eval_loss" in row for row in read_metrics(file))


def _resumable(config: Any) -> Path | None:
    """The checkpoint that the run continues from."""
    if config.trainer.resume != "auto":
        return None
    return newest_complete(Path(config.trainer.output_dir) / "checkpoints")


def _steps(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


def train_rank(config: Any, prepared: Prepared) -> None:
    """One rank's part of the run."""
    launch.join(config.parallel, config.trainer.seed)
    _use_nemo_checkpoints(config, prepared)
    fit(config, prepared)
    launch.leave()


def _use_nemo_checkpoints(config: Any, prepared: Prepared) -> None:
    from nemo_tvkd.models.conversion import as_nemo

    wanted = {option(name, "path"): (checkpoint, "") for name, checkpoint in prepared.frozen.items()}
    found = as_nemo({"student.path": (prepared.student, config.student.tokenizer), **wanted})
    prepared.student = found["student.path"]
    prepared.frozen = {name: found[option(name, "path")] for name in prepared.frozen}


def fit(config: Any, prepared: Prepared) -> None:
    """Train in a process group that exists already (collective).

    Resumes from the newest complete checkpoint in the output directory when trainer.resume=auto.
    """
    directory = Path(config.trainer.output_dir)
    resume: Path | None = launch.on_rank_zero(_take, config, prepared, directory)  # one view of a shared file system
    try:
        start = _steps(resume)
        _Run(config, prepared, start, launch.on_rank_zero(_owes_validation, config, prepared, start)).fit(resume)
        launch.on_rank_zero(_write_finished, directory, prepared.max_steps)
    finally:
        _LOCKS.pop(directory, None)


def _write_finished(directory: Path, step: int) -> None:
    """The mark of a run that has made its last step."""
    write_whole(directory / FINISHED, json.dumps({"step": step}) + "\n")


def _lock(directory: Path) -> IO[str]:
    """Take the lock of the run's folder; in a job that Slurm has restarted a dead node may hold it for a while."""
    restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    try:
        return take_lock(directory / ".lock", LOCK_SECONDS if restarted else 0)
    except TimeoutError as error:
        if restarted:  # not the user's mistake: the job may be restarted again
            raise RuntimeError(f"{directory} is still locked after {LOCK_SECONDS} s") from error
        raise UserError(
            f"trainer.output_dir: another run is writing to {directory}; choose another directory"
        ) from error
    except OSError as error:
        raise UserError(f"trainer.output_dir: cannot write to {directory}: {error.strerror}") from error


LOCK_SECONDS = 300
_LOCKS: dict[Path, IO[str]] = {}
"""Open lock files of the runs in this process; closing one releases it."""


def _take(config: Any, prepared: Prepared, directory: Path) -> Path | None:
    """Claim the output directory for this run; what it resumes from."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"trainer.output_dir: cannot write to {directory}: {error.strerror}") from error
    _LOCKS[directory] = _lock(directory)
    _save_config(config, directory)
    (directory / FINISHED).unlink(missing_ok=True)  # a longer run goes on
    noise = directory / "label_noise.json"
    noise.unlink(missing_ok=True)  # of a run that was stopped before its first checkpoint
    if config.data.label_noise:
        flipped, data = tokens_of(prepared.flipped), config.data
        record(noise, data.label_noise, data.label_noise_seed, flipped, len(prepared.train))
    resume = _resumable(config)
    if resume:
        print(f"resuming {directory} after step {_steps(resume)}", flush=True)
    return resume


def _save_config(config: Any, directory: Path) -> None:
    """config.yaml, with local paths made absolute so that `--from` works from anywhere."""
    from omegaconf import OmegaConf

    saved = OmegaConf.to_container(config)
    for section in saved.values():
        for key in PATH_KEYS & section.keys():
            section[key] = absolute(section[key])
    write_whole(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)))


class _Run:
    """The NeMo objects of one training run."""

    def __init__(self, config: Any, prepared: Prepared, start: int, owes_validation: bool) -> None:
        from nemo_tvkd.models.policy import Objective

        self.config, self.prepared, self.start = config, prepared, start
        self.owed = start if owes_validation else None
        self.method = METHODS[config.algorithm.name]
        self.objective: Objective = Objective(self.method, config.algorithm)
        self.lm_head_memory = config.parallel.lm_head_memory_mib * 2**20

    def fit(self, resume: Path | None) -> None:
        from nemo_tvkd.training import trainer as build
        from nemo_tvkd.training.callbacks import Recorder, Validator

        model = self._model()
        scorer = self._online_scorer()
        data = build.data_module(self.config, self.prepared, self.start)
        callbacks = self._callbacks(model, scorer)
        new_head = model.config.reward_head and not self.prepared.student.has_reward_head
        trainer = build.trainer(self.config, self.prepared, callbacks, data.data_sampler, resume is None, new_head)
        (recorder,) = (callback for callback in callbacks if isinstance(callback, Recorder))
        with recorder:
            trainer.fit(model, data, ckpt_path=str(resume) if resume else None)
            for callback in callbacks:
                if isinstance(callback, Validator):
                    callback.catch_up()  # where it was all that was left to do, no training has started

    def _model(self) -> "PolicyModel":
        import torch

        from nemo_tvkd.models.architecture import model_config
        from nemo_tvkd.models.policy import PolicyModel
        from nemo_tvkd.training.trainer import optimizer

        dtype = torch.bfloat16 if self.config.trainer.precision == "bf16" else torch.float32
        # Weights come from a checkpoint, but Megatron marks them as tensor-parallel only where it initialises them,
        # and without the marks its gradient norm leaves out all but the first rank's.
        heads = self.method.heads(self.config.algorithm)
        architecture = model_config(self.prepared.student.config, "student.path", dtype, lm_head="lm" in heads)
        architecture.reward_head = "reward" in heads
        architecture.reward_head_seed = self.config.trainer.seed
        architecture.lm_head_memory = self.lm_head_memory
        if self.config.trainer.recompute:
            architecture.recompute_granularity = "full"
            architecture.recompute_method, architecture.recompute_num_layers = "uniform", 1
        model = PolicyModel(architecture, optim=optimizer(self.config, self.prepared.max_steps))
        model.train_on(self.objective)
        return model

    def _online_scorer(self) -> Any:
        from nemo_tvkd.models.frozen import load_frozen
        from nemo_tvkd.models.online import OnlineScorer

        asked, precision, models = self.method.frozen(self.config.algorithm), self.config.trainer.precision, []
        for name, checkpoint in self.prepared.frozen.items():
            quantities = asked[base(name)]
            lm_head = any(what.head == "lm" for what in quantities)
            module = load_frozen(checkpoint, option(name, "path"), precision, self.lm_head_memory, lm_head)
            models.append((name, module, quantities))
        return OnlineScorer(models) if models else None

    def _callbacks(self, model: "PolicyModel", scorer: Any) -> list[Any]:
        from nemo_tvkd.models.conversion import write_context
        from nemo_tvkd.training.callbacks import Recorder, StepSeed, Validator
        from nemo_tvkd.training.checkpointer import Checkpointer
        from nemo_tvkd.training.records import records

        options, steps = self.config.trainer, self.prepared.max_steps
        directory = Path(options.output_dir)
        places = partial(records, self.config, directory, self.start)
        log = Recorder(directory, options.log_interval, self.start, steps, places)
        told: dict[str, Any] = {"reward_model": self.method.reward_model, "dialogue": self.prepared.dialogue}
        context = partial(write_context, model, self.prepared.student, **told)
        save = Checkpointer(
            *(directory / "checkpoints", options.save_interval, options.keep_checkpoints, steps, context),
            partial(log.aside, "saving", options.save_interval),
        )
        chooser = self._chooser(model)
        callbacks = [StepSeed(options.seed), *(c for c in (scorer, chooser) if c), log, save]
        if self.prepared.validation:
            callbacks.append(Validator(self._validation(model, scorer, chooser), log, options.val_interval, self.owed))
        return callbacks

    def _chooser(self, model: "PolicyModel") -> Any:
        """Chooses, of several models of one kind, the one that enters each step (algorithm.ensemble=min)."""
        asked, several = self.method.frozen(self.config.algorithm), self.method.several(self.config.algorithm)
        online = [source(name, what) for name in self.prepared.frozen for what in asked[base(name)]]
        stored = [name for name in self.prepared.train[0].numbers if name not in online]
        numbers = [name for name in (*stored, *online) if base(name.rpartition(".")[0]) in several]
        if not self.method.choice(self.config.algorithm) or len(numbers) < 2:
            return None
        from nemo_tvkd.models.ensemble import LeastLoss

        return LeastLoss(model, self.objective, numbers)

    def _validation(self, model: "PolicyModel", scorer: Any, chooser: Any) -> Callable[[], dict[str, float]]:
        from megatron.core import parallel_state

        from nemo_tvkd.data.batch import micro_batches
        from nemo_tvkd.models.frozen import pipeline_forward
        from nemo_tvkd.models.policy import evaluate_sums
        from nemo_tvkd.training.trainer import row_multiple

        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        size = self.config.trainer.micro_batch_size
        batches = list(micro_batches(self.prepared.validation, size, row_multiple(self.config.parallel), rank, ranks))
        scored: list[Batch] = []

        def validate() -> dict[str, float]:
            if scorer and not scored:  # frozen models do not change: their numbers are computed once
                scored.extend(scorer.score(batches))
            chosen = chooser.choose(scored or batches) if chooser else scored or batches
            results = pipeline_forward(model.module, chosen, self.objective)
            return self.objective.means(evaluate_sums(self.objective, results))

        return validate
