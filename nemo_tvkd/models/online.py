"""Online teachers and references: frozen models that run before each step and hand their numbers to the loss."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_tvkd.data.batch import Batch, Item, OtherReading, collate, next_batch
from nemo_tvkd.losses import ORACLE_REWARDS, REFERENCE_LOGPS, TEACHER_VALUE
from nemo_tvkd.models.frozen import Statistics, pipeline_forward
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic
from nemo_tvkd.prepare.needs import provides

BATCH_FIELDS = {
    TEACHER_VALUE: "teacher_values",
    REFERENCE_LOGPS: "reference_logps",
    ORACLE_REWARDS: "oracle_rewards",
}


def value_statistics(value: Statistic, ends: bool) -> Statistics:
    """A micro-batch's V(s_1..s_{T+1}) per response (psi_1..psi_T for action kinds), float32 nats.

    `ends=True` keeps V(s_1) and V(s_{T+1}) alone, at the cost of two states a response.
    """
    states = "actions" if value.kind in ACTION_KINDS else "ends" if ends else "all"
    return lambda batch, readout: readout.statistics(batch, [value], states)[value]


def logprob_statistics(batch: Batch, readout: Readout) -> Tensor:
    """A micro-batch's summed response log-probabilities [N], float64 nats."""
    return readout.response_logps(batch)


def reward_statistics(batch: Batch, readout: Readout) -> Tensor:
    """A micro-batch's rewards [1, N], float64 reward units: of one oracle."""
    return readout.response_rewards(batch)[None]


def _at_students_states(readings: list[OtherReading], values: list[Tensor]) -> list[Tensor]:
    """From the teacher's states to the student's: N tensors, chosen first."""
    half = len(readings)
    sides = zip(values[:half], values[half:], strict=True)
    pairs = [reading.at_students_states(both) for reading, both in zip(readings, sides, strict=True)]
    return [value for side in zip(*pairs, strict=True) for value in side]


class OnlineScorer(pl.Callback):
    """Runs frozen models over a step's micro-batches, through the pipeline schedule, before the policy sees them.

    NeMo lets callbacks replace a MegatronStep; this one replaces its data. Only the last pipeline stage, where the
    loss is, receives the numbers.

    Args:
        models: (name, module, statistics) of each frozen model. A name is what the model provides; that of a further
            one goes on with a slash, and its numbers are laid below those of the ones before.
    """

    def __init__(self, models: Sequence[tuple[str, MegatronModule, Statistics]]) -> None:
        self.models = models

    def score(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches with the models' numbers added (collective over the pipeline)."""
        scored = [dict(batch) for batch in batches]
        readings = [batch.pop("readings", {}) for batch in scored]
        for name, module, statistics in self.models:
            need = provides(name)
            theirs = [read.get(name) for read in readings]
            inputs = [
                collate([Item(reading.tokens) for reading in reads]) if reads else batch
                for reads, batch in zip(theirs, batches, strict=True)
            ]
            results = pipeline_forward(module, inputs, statistics)
            for batch, reads, result in zip(scored, theirs, results, strict=False):
                if need == TEACHER_VALUE and reads:
                    result = _at_students_states(reads, result)
                elif need != name:
                    result = torch.cat([batch[BATCH_FIELDS[need]], result])
                batch[BATCH_FIELDS[need]] = result
        return scored

    def on_megatron_step_start(self, step: Any) -> Any:
        """See nemo.lightning.megatron_parallel.CallbackMethods."""
        batches = [next_batch(step.data) for _ in range(get_num_microbatches())]
        return dataclasses.replace(step, data=iter(self.score(batches)))
