"""The pessimistic form of an ensemble: of several oracles, the one that the policy fits best on a step's pairs.

Which one that is depends on the whole global batch, and so on every micro-batch and replica: it is found by a forward
pass of the policy before the step, at the price of that pass.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches

from nemo_tvkd.data.batch import Batch, next_batch
from nemo_tvkd.models.frozen import pipeline_forward
from nemo_tvkd.models.policy import Objective, PolicyModel
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.parallel.sequence import all_reduce_sums
from nemo_tvkd.runtime import cpu


class LeastLoss(pl.Callback):
    """Leaves each micro-batch the rewards of the one oracle with the least loss over the global batch.

    It comes after the online scorer, whose rewards it reads.

    Args:
        numbers: names of the oracles' numbers in batches, in their order.
    """

    def __init__(self, model: PolicyModel, objective: Objective, numbers: Sequence[str]) -> None:
        self.model, self.objective, self.numbers = model, objective, numbers

    def choose(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches with one oracle's rewards (collective over the pipeline and the replicas)."""

        def statistics(batch: Batch, readout: Readout) -> torch.Tensor:
            objective = self.objective
            return objective.method.errors(objective.terms(batch, readout), objective.config)

        results = pipeline_forward(self.model.module, batches, statistics)
        if not parallel_state.is_pipeline_last_stage():
            return list(batches)
        totals = torch.zeros(len(self.numbers), dtype=torch.float64, device=cpu.device())
        for part in results:  # none on a replica without pairs, which takes part in the sum all the same
            totals += part
        least = int(all_reduce_sums(totals, parallel_state.get_data_parallel_group()).argmin())
        others = {name for index, name in enumerate(self.numbers) if index != least}
        return [
            {**batch, "numbers": {name: value for name, value in batch["numbers"].items() if name not in others}}
            for batch in batches
        ]

    def on_megatron_step_start(self, step: Any) -> Any:
        """See nemo.lightning.megatron_parallel.CallbackMethods."""
        batches = [next_batch(step.data) for _ in range(get_num_microbatches())]
        return dataclasses.replace(step, data=iter(self.choose(batches)))
