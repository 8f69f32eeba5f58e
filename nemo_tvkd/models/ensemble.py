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
        oracles: how many there are.
    """

    def __init__(self, model: PolicyModel, objective: Objective, oracles: int) -> None:
        self.model, self.objective, self.oracles = model, objective, oracles

    def choose(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches with one oracle's rewards (collective over the pipeline and the replicas)."""
        errors = self.objective.method.errors
        assert errors is not None

        def statistics(batch: Batch, readout: Readout) -> torch.Tensor:
            return errors(self.objective.inputs(batch, readout), self.objective.config)

        results = pipeline_forward(self.model.module, batches, statistics)
        if not parallel_state.is_pipeline_last_stage():
            return list(batches)
        totals = torch.zeros(self.oracles, dtype=torch.float64, device=cpu.device())
        for part in results:  # none on a replica without pairs, which takes part in the sum all the same
            totals += part
        least = int(all_reduce_sums(totals, parallel_state.get_data_parallel_group()).argmin())
        return [{**batch, "oracle_rewards": batch["oracle_rewards"][least : least + 1]} for batch in batches]

    def on_megatron_step_start(self, step: Any) -> Any:
        """See nemo.lightning.megatron_parallel.CallbackMethods."""
        batches = [next_batch(step.data) for _ in range(get_num_microbatches())]
        return dataclasses.replace(step, data=iter(self.choose(batches)))
