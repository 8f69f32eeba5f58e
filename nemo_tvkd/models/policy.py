"""The NeMo model that trains. The only place where losses meet the reductions over ranks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections import llm
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_tvkd.data.batch import Batch, next_batch, to_device, trained_lengths
from nemo_tvkd.losses.method import Method
from nemo_tvkd.losses.reads import DATA, POLICY, Quantity, Read, base, select, source
from nemo_tvkd.models.architecture import CausalLMConfig
from nemo_tvkd.models.frozen import packed_forward
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.parallel.sequence import all_reduce_sums, broadcast_from_last
from nemo_tvkd.runtime import cpu

ROUNDING = 1e-12
"""A variance that is a smaller part of the mean square than this is what rounding left of 0."""


@dataclass
class Objective:
    """What a policy is trained on: a method's loss, bound to its configuration."""

    method: Method
    config: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metric sums, before the two counts (denominator and tokens)."""
        squares = tuple(f"{name}_squared" for name in self.method.spread)
        return self.method.metrics + squares + tuple(self.method.correlations)

    def no_sums(self) -> Tensor:
        """The metric sums [M + 2] of nothing, float64."""
        return torch.zeros(len(self.columns) + 2, dtype=torch.float64, device=cpu.device())

    def __call__(self, batch: Batch, readout: Readout) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one packed micro-batch.

        Args:
            readout: the policy's last hidden states and output layer.

        Returns:
            the loss summed over pairs (fp32 scalar); its denominator (int32 scalar); metric sums [M + 2] float64:
            the columns, the denominator, the number of tokens.
        """
        losses, reported = self.method.compute(self.terms(batch, readout), self.config)
        metrics = {name: value.detach().double() for name, value in reported.items()}
        denominator = sum(trained_lengths(batch)) if self.method.per_token else batch["count"]
        sums = [metrics[name].sum() for name in self.method.metrics]
        sums += [metrics[name].square().sum() for name in self.method.spread]
        sums += [(metrics[one] * metrics[other]).sum() for one, other in self.method.correlations.values()]
        tail = torch.tensor([denominator, sum(batch["lengths"])], dtype=torch.float64, device=losses.device)
        total = torch.tensor(denominator, dtype=torch.int, device=losses.device)
        return losses.sum().float(), total, torch.cat([torch.stack(sums), tail])

    def terms(self, batch: Batch, readout: Readout) -> dict[str, Tensor]:
        """The arguments of the loss, by name: the policy's own numbers and those of frozen models and the data."""
        reads = self.method.reads(self.config)
        own = dict.fromkeys(read.what for read in reads.values() if read.of in (POLICY, DATA))  # one order on all ranks
        answers = {what: readout.answer(what, batch, self._one_side(reads.values(), what)) for what in own}
        return {name: self._term(read, answers, batch) for name, read in reads.items()}

    @staticmethod
    def _one_side(reads: Iterable[Read], what: Quantity) -> bool:
        """Whether a quantity is read of the chosen responses alone."""
        return {read.side for read in reads if read.what == what} == {"chosen"}

    def _term(self, read: Read, answers: dict[Quantity, Tensor], batch: Batch) -> Tensor:
        if read.of in (POLICY, DATA):
            numbers = answers[read.what]
            alone = len(numbers) == batch["count"] and self.method.pairs  # [B] already
            return numbers if alone else select(numbers, read.side)
        (model,) = read.models
        reported = batch["numbers"]
        if not read.every:
            return select(read.what.reduce(reported[source(model, read.what)]), read.side)
        names = [name for name in reported if base(name.rpartition(".")[0]) == model and name.endswith(read.what.name)]
        return select(torch.stack([read.what.reduce(reported[name]) for name in names]), read.side)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Global means by metric name, from summed [M + 2] float64."""
        values = sums.tolist()
        denominator = values[-2]
        means = {name: value / denominator for name, value in zip(self.columns, values, strict=False)}
        for name in self.method.spread:
            square = means.pop(f"{name}_squared")
            variance = square - means[name] ** 2
            means[f"{name}_std"] = variance**0.5 if variance > ROUNDING * square else 0.0
        for name, (one, other) in self.method.correlations.items():
            covariance = means.pop(name) - means[one] * means[other]
            if scale := means[f"{one}_std"] * means[f"{other}_std"]:  # else there is no correlation to speak of
                means[name] = max(-1.0, min(1.0, covariance / scale))
        return means


class ObjectiveReduction(MegatronLossReduction):
    """NeMo's hook between the schedule and the loss."""

    def __init__(self, objective: Objective, read: Callable[[Tensor], Readout]) -> None:
        super().__init__()
        self.objective = objective
        self.read = read
        self.last_sums: Tensor | None = None

    def forward(self, batch: Batch, forward_out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, denominator, sums = self.objective(batch, self.read(forward_out))
        return loss, denominator, {"sums": sums}

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        """Sums over micro-batches and data-parallel ranks; the mean loss goes back to NeMo."""
        sums = torch.stack([m["sums"] for m in losses_reduced_per_micro_batch]).sum(0)
        self.last_sums = all_reduce_sums(sums, parallel_state.get_data_parallel_group())
        return (sums[0] / sums[-2]).float()


class PolicyModel(llm.GPTModel):
    """A Llama or Mistral policy as a NeMo GPTModel, trained on packed preference pairs."""

    def __init__(self, config: CausalLMConfig, optim: Any = None, tokenizer: Any = None, model_transform: Any = None):
        super().__init__(config, optim=optim, tokenizer=tokenizer, model_transform=model_transform)
        self._reduction: ObjectiveReduction | None = None

    def train_on(self, objective: Objective) -> None:
        """Set what :class:`nemo.lightning.Trainer` optimises."""
        self._reduction = ObjectiveReduction(objective, lambda hidden: Readout.of(self.module, hidden))

    def data_step(self, dataloader_iter: Iterator) -> Batch:
        return to_device(next_batch(dataloader_iter), cpu.device())

    def forward_step(self, batch: Batch) -> Tensor:
        return packed_forward(self.module, batch)

    @property
    def training_loss_reduction(self) -> ObjectiveReduction:
        assert self._reduction is not None, "train_on() sets the objective"
        return self._reduction

    def step_sums(self) -> Tensor:
        """The last step's metric sums on every rank (metrics arise on the last pipeline stage only)."""
        assert self._reduction is not None
        sums = self._reduction.last_sums
        if sums is None:
            sums = self._reduction.objective.no_sums()
        return broadcast_from_last(sums, parallel_state.get_pipeline_model_parallel_group())


def evaluate_sums(objective: Objective, results: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Metric sums [M + 2] over all data-parallel ranks, on every rank, from a forward pass with `objective`."""
    sums = objective.no_sums()
    for _, _, part in results:
        sums += part
    broadcast_from_last(sums, parallel_state.get_pipeline_model_parallel_group())
    return all_reduce_sums(sums, parallel_state.get_data_parallel_group())
