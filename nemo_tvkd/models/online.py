"""Online teachers, references and oracles: frozen models that run before each step and give the loss their numbers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_tvkd.data.batch import Batch, Item, OtherReading, collate, next_batch
from nemo_tvkd.losses.reads import LogProb, Psi, Quantity, Reward, source
from nemo_tvkd.models.frozen import Statistics, pipeline_forward
from nemo_tvkd.models.readout import Readout


def _logprob(what: LogProb) -> Statistics:
    return lambda batch, readout: readout.response_logps(batch)


def _reward(what: Reward) -> Statistics:
    return lambda batch, readout: readout.response_rewards(batch)


def _psi(what: Psi) -> Statistics:
    """The values per response, float32 nats: at the states where the rule needs them."""
    return lambda batch, readout: readout.statistics(batch, [what.statistic], what.states)[what.statistic]


STATISTICS: dict[type[Quantity], Callable[[Any], Statistics]] = {LogProb: _logprob, Reward: _reward, Psi: _psi}
"""How a frozen model answers a quantity: a micro-batch's N numbers, or N tensors by state, on the last stage."""


def statistics_of(what: Quantity) -> Statistics:
    """What a frozen model is asked for a quantity."""
    return STATISTICS[type(what)](what)


def _at_owners_states(readings: list[OtherReading], values: list[Tensor]) -> list[Tensor]:
    """From the frozen model's states to those of the model whose tokens count: N tensors, chosen first."""
    half = len(readings)
    sides = zip(values[:half], values[half:], strict=True)
    pairs = [reading.at_students_states(both) for reading, both in zip(readings, sides, strict=True)]
    return [value for side in zip(*pairs, strict=True) for value in side]


class OnlineScorer(pl.Callback):
    """Runs frozen models over a step's micro-batches, through the pipeline schedule, before the policy sees them.

    NeMo lets callbacks replace a MegatronStep; this one replaces its data. Only the last pipeline stage, where the
    loss is, receives the numbers.

    Args:
        models: (name, module, what is asked of it) of each frozen model.
    """

    def __init__(self, models: Sequence[tuple[str, MegatronModule, Sequence[Quantity]]]) -> None:
        self.models = models

    def score(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches with the models' numbers added (collective over the pipeline)."""
        scored = [{**batch, "numbers": dict(batch.get("numbers", {}))} for batch in batches]
        readings = [batch.pop("readings", {}) for batch in scored]
        for name, module, quantities in self.models:
            own_readings = [reading.get(name) for reading in readings]
            inputs = [
                collate([Item(each.tokens) for each in own]) if own else batch
                for own, batch in zip(own_readings, batches, strict=True)
            ]
            for batch, own, answer in zip(scored, own_readings, self._ask(module, inputs, quantities), strict=False):
                for what, numbers in zip(quantities, answer, strict=True):
                    if own and isinstance(numbers, list):
                        numbers = _at_owners_states(own, numbers)
                    batch["numbers"][source(name, what)] = numbers
        return scored

    def _ask(self, module: MegatronModule, inputs: Sequence[Batch], quantities: Sequence[Quantity]) -> list[list[Any]]:
        """By micro-batch, the answers to the quantities from one forward pass; nothing but on the last stage."""
        asked = [statistics_of(what) for what in quantities]

        def statistics(batch: Batch, readout: Readout) -> list[Any]:
            return [each(batch, readout) for each in asked]

        return pipeline_forward(module, inputs, statistics)

    def on_megatron_step_start(self, step: Any) -> Any:
        """See nemo.lightning.megatron_parallel.CallbackMethods."""
        batches = [next_batch(step.data) for _ in range(get_num_microbatches())]
        return dataclasses.replace(step, data=iter(self.score(batches)))
