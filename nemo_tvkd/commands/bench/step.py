"""`bench step`: training steps of reference-free DPO, cached and online TVKD, taken in turn in one run of the engine.

Beside them: the same DPO step through full fp32 logits and Megatron's cross entropy (what other tools do), and the
teacher's forward pass alone.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, vocab_parallel_cross_entropy
from torch import Tensor

from nemo_tvkd.commands.bench.measure import MIB, StepMemory, Traffic, largest, peak_tflops, synchronize
from nemo_tvkd.commands.bench.models import architecture, forward_flops, hf_config, random_frozen, random_items
from nemo_tvkd.data.batch import Batch, next_batch
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.models.online import OnlineScorer
from nemo_tvkd.models.policy import Objective, PolicyModel
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.parallel.lm_head import gather_sequence
from nemo_tvkd.prepare.training import Prepared
from nemo_tvkd.training import trainer as build

WARMUP = 2
"""Rounds that are not counted."""

FULL, FREE, CACHED, ONLINE = "DPO, full fp32 logits", "DPO, reference-free", "TVKD, cached", "TVKD, online"
TEACHER = "teacher forward alone"
REFERENCE, VALUES = "reference.logprob", "teacher.value"

NOTES = """Medians of steps taken in turn (one of each a round) with random weights and tokens. ms: forward, backward
and optimizer step. crossing: bytes per token of the tensors that a replica's ranks reduce, gather or send, gradients
included. peak MiB: memory during the step above what the run holds between steps. MFU: model FLOP utilisation (the
model's own forward and backward FLOPs, output layer at response states only, over the GPU's dense bf16 peak). Times are
rank 0's, peaks and crossing the largest of all ranks'."""


@dataclass
class Variant:
    """One way to make a step."""

    objective: Objective
    keeps: tuple[str, ...]
    """The frozen models' numbers that it reads in a batch."""
    read: Any = None
    """What replaces :meth:`Readout.of`, if anything."""
    scorer: OnlineScorer | None = None


class FullLogits(Readout):
    """Log-probabilities as Megatron-based tools compute them: logits of all tokens, upcast, cross entropy."""

    def response_logps(self, batch: Batch, chosen_only: bool = False) -> Tensor:
        assert self.weight is not None
        if self.sequence_parallel:
            hidden = gather_sequence(self.hidden, self.group)
        else:
            hidden = copy_to_tensor_model_parallel_region(self.hidden)
        logits = (hidden @ self.weight.t()).float()
        per_token = -vocab_parallel_cross_entropy(logits, batch["labels"])
        sums = []
        spans = zip(per_token.split(batch["lengths"]), batch["prompt_lengths"], batch["response_lengths"], strict=False)
        for part, prompt, response in spans:
            sums.append(part[prompt - 1 : prompt - 1 + response].double().sum())
        return torch.stack(sums)


class Turns(pl.Callback):
    """Gives each step to the next variant and keeps its time and peak memory; after `timed` steps, its traffic."""

    def __init__(self, model: PolicyModel, variants: dict[str, Variant], timed: int) -> None:
        self.model, self.variants, self.timed = model, variants, timed
        self.seconds: dict[str, list[float]] = {name: [] for name in (*variants, TEACHER)}
        self.peaks: dict[str, list[int]] = {name: [] for name in (*variants, TEACHER)}
        self.traffic = {name: Traffic() for name in (*variants, TEACHER)}
        self.memory = StepMemory()
        self.steps = 0
        self.batches: list[Batch] = []

    @property
    def name(self) -> str:
        return list(self.variants)[self.steps % len(self.variants)]

    def on_train_batch_start(self, *args: Any) -> None:
        self._start(self.name)

    def on_megatron_step_start(self, step: Any) -> Any:
        """See nemo.lightning.megatron_parallel.CallbackMethods."""
        variant = self.variants[self.name]
        reduction = self.model.training_loss_reduction
        reduction.objective = variant.objective
        reduction.read = variant.read or (lambda hidden: Readout.of(self.model.module, hidden))
        batches = [next_batch(step.data) for _ in range(get_num_microbatches())]
        batches = [
            {**batch, "numbers": {name: part for name, part in batch["numbers"].items() if name in variant.keeps}}
            for batch in batches
        ]
        if variant.scorer:
            self.batches = batches
            batches = variant.scorer.score(batches)
        return dataclasses.replace(step, data=iter(batches))

    def on_train_batch_end(self, *args: Any) -> None:
        self._stop(self.name)
        scorer = self.variants[self.name].scorer
        if scorer:
            self._start(TEACHER)
            scorer.score(self.batches)
            self._stop(TEACHER)
        self.steps += 1

    def _start(self, name: str) -> None:
        if self.steps >= self.timed:
            self.traffic[name].__enter__()
        synchronize()
        self.memory.start()
        self.since = time.perf_counter()

    def _stop(self, name: str) -> None:
        synchronize()
        if self.steps >= self.timed:
            self.traffic[name].__exit__(None, None, None)
            return
        self.seconds[name].append(time.perf_counter() - self.since)
        self.peaks[name].append(self.memory.peak())


def measure(config: Any) -> dict[str, Any]:
    """Time, memory and throughput of every kind of step (collective)."""
    options, precision, parallel = config.bench, config.trainer.precision, config.parallel
    student = hf_config(config.student.path, options.student, "student.path", parallel)
    teacher = hf_config(config.teacher.path, options.teacher, "teacher.path", parallel)
    rounds = WARMUP + options.repeats
    model = PolicyModel(
        architecture(student, "student.path", precision, parallel), optim=build.optimizer(config, 1000 * rounds)
    )
    variants = _variants(config, model, random_frozen(teacher, "teacher.path", precision, parallel))
    turns = Turns(model, variants, rounds * len(variants))
    items = random_items(4 * config.trainer.global_batch_size, options, min(student.vocab_size, teacher.vocab_size))
    prepared = Prepared(None, items, [], (rounds + 1) * len(variants), 0)  # type: ignore[arg-type]
    model.train_on(variants[FREE].objective)
    data = build.data_module(config, prepared, 0)
    build.trainer(config, prepared, [turns], data.data_sampler, restore=False).fit(model, data)
    return {"rows": _rows(config, turns, student, teacher), "notes": NOTES}


def _variants(config: Any, model: PolicyModel, teacher: Any) -> dict[str, Variant]:
    tvkd = Objective(METHODS["tvkd"], config.algorithm)
    scorer = OnlineScorer([("teacher", teacher, METHODS["tvkd"].frozen(config.algorithm)["teacher"])])
    dpo = Objective(METHODS["dpo"], METHODS["dpo"].config(beta=config.algorithm.beta))
    full = Variant(dpo, (REFERENCE,), read=lambda hidden: FullLogits.of(model.module, hidden))
    return {
        **({FULL: full} if config.bench.full_logits else {}),
        FREE: Variant(dpo, (REFERENCE,)),
        CACHED: Variant(tvkd, (VALUES, REFERENCE)),
        ONLINE: Variant(tvkd, (REFERENCE,), scorer=scorer),
    }


def _rows(config: Any, turns: Turns, student: Any, teacher: Any) -> list[dict[str, Any]]:
    options = config.bench
    pairs = config.trainer.global_batch_size
    length = options.prompt_length + options.response_length
    tokens, states = 2 * pairs * length, 2 * pairs * options.response_length
    passes = {FULL: (3, 0), FREE: (3, 0), CACHED: (3, 0), ONLINE: (3, 1), TEACHER: (0, 1)}
    peak, replicas = peak_tflops(), parallel_state.get_data_parallel_world_size()
    ranks = replicas * _model_ranks()
    rows = []
    for name, seen in turns.seconds.items():
        own, other = passes[name]
        flops = own * forward_flops(student, tokens, length, states) + other * forward_flops(teacher, tokens, length, 0)
        seconds = statistics.median(seen[WARMUP:])
        rows.append(
            {
                "step": name,
                "ms": 1e3 * seconds,
                "over reference-free": seconds / statistics.median(turns.seconds[FREE][WARMUP:]),
                "tokens/s": tokens / seconds,
                "crossing": largest(turns.traffic[name].bytes * replicas / tokens),
                "peak MiB": largest(max(turns.peaks[name][WARMUP:]) / MIB),
                "MFU": flops / seconds / (peak * 1e12 * ranks) if peak else None,
            }
        )
    return rows


def _model_ranks() -> int:
    return (
        parallel_state.get_tensor_model_parallel_world_size() * parallel_state.get_pipeline_model_parallel_world_size()
    )
