"""What the last pipeline stage says about a packed row: statistics of the states of its responses.

The output layer of every model here hands its input through (see :func:`hand_over`), so that a stage ends in hidden
states; logits are made from them a chunk at a time, and only at the states where something is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from nemo_tvkd.data.batch import Batch, trained_lengths
from nemo_tvkd.losses.reads import Column, Length, LogProb, Quantity, Reward
from nemo_tvkd.models.reward_head import RewardHead
from nemo_tvkd.parallel.lm_head import gather_sequence, head_logprobs, head_statistics
from nemo_tvkd.parallel.sequence import response_states, rows_of_sequence, sum_over
from nemo_tvkd.parallel.statistic import Statistic


def hand_over(hidden: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None) -> Any:
    """An output layer's `forward` that computes nothing: Megatron's postprocessing then returns hidden states."""
    if runtime_gather_output:
        raise RuntimeError("the model ends in hidden states here: export it to Hugging Face to generate with it")
    return hidden, None


@dataclass
class Readout:
    """The last hidden states of a packed row and the output layer that reads them.

    Attributes:
        hidden: [T, H], or this rank's [T/TP, H] under sequence parallelism.
        weight: [V/TP, H] of the output layer or the tied embedding; None for a model without.
        vocab_size: real vocabulary.
        group: the tensor-parallel group.
        sequence_parallel: whether `hidden` is a part.
        memory: bytes that logits may take at a time; 0: the device's default.
        reward_head: None for a model without.
    """

    hidden: Tensor
    weight: Tensor | None
    vocab_size: int
    group: Any
    sequence_parallel: bool
    memory: int
    reward_head: RewardHead | None = None

    @classmethod
    def of(cls, module: nn.Module, output: Tensor) -> "Readout":
        """Of a last stage's module (wrapped or bare) and its output [1, T (/TP), H]."""
        inner = unwrap_model(module)
        tied = inner.share_embeddings_and_output_weights
        own = getattr(inner.output_layer, "weight", None)
        return cls(
            hidden=output.squeeze(0),
            weight=inner.shared_embedding_or_output_weight() if tied else own,
            vocab_size=inner.config.real_vocab_size,
            group=parallel_state.get_tensor_model_parallel_group(),
            sequence_parallel=inner.config.sequence_parallel,
            memory=inner.config.lm_head_memory,
            reward_head=getattr(inner, "reward_head", None),
        )

    def answer(self, what: Quantity, batch: Batch, chosen_only: bool = False) -> Tensor:
        """[N] numbers of the policy's or the data's, float64; [B] with `chosen_only`, and of a column of the data."""
        numbers = ANSWERS[type(what)](self, what, batch, chosen_only)
        return numbers[: batch["count"]] if chosen_only else numbers

    def response_logps(self, batch: Batch, chosen_only: bool = False) -> Tensor:
        """[N] float64 summed response log-probabilities (nats); differentiable, and summed in a fixed order.

        Of an example with a loss mask, of the tokens that it marks. `chosen_only=True`: [B], of the chosen responses.
        """
        assert self.weight is not None
        first = batch["count"] if chosen_only else None
        hidden, labels, counts = self._at(batch, "actions", first, batch.get("loss_masks"))
        per_token = head_logprobs(
            hidden,
            self.weight,
            labels,
            vocab_size=self.vocab_size,
            group=self.group,
            reduce_hidden_gradient=not self.sequence_parallel,
            memory=self.memory,
        )
        return torch.stack([part.double().sum() for part in per_token.split(counts)])

    def statistics(
        self, batch: Batch, wanted: Sequence[Statistic], states: str, host: bool = False
    ) -> dict[Statistic, list[Tensor]]:
        """Per statistic and sequence, a float32 tensor over its states (see `parallel.sequence.response_states`).

        `host=True` brings them to the CPU, in one copy a statistic.
        """
        assert self.weight is not None
        hidden, labels, counts = self._at(batch, states)
        found = head_statistics(
            hidden,
            self.weight,
            labels,
            wanted,
            vocab_size=self.vocab_size,
            group=self.group,
            memory=self.memory,
        )
        return {s: list((flat.cpu() if host else flat).split(counts)) for s, flat in found.items()}

    def response_rewards(self, batch: Batch) -> Tensor:
        """[N] float64 (computed in fp32) rewards, read at each response's last token; differentiable (reward units).

        Under sequence parallelism each rank reads its own tokens, and only rewards cross ranks.
        """
        assert self.reward_head is not None
        spans = (batch["lengths"], batch["prompt_lengths"], batch["response_lengths"])
        index = response_states(*spans, "last")[0].to(self.hidden.device, non_blocking=True)
        if not self.sequence_parallel:
            return self.reward_head(self.hidden.index_select(0, index)).double()
        hidden, own = rows_of_sequence(self.hidden, index, self.group)
        return sum_over(torch.where(own, self.reward_head(hidden).double(), 0.0), self.group)

    def _at(
        self, batch: Batch, states: str, first: int | None = None, masks: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Hidden states [R, H] and labels [R] at the responses' states, and how many belong to each sequence.

        `first`: of that many sequences only; `masks`: see `parallel.sequence.response_states`.
        """
        spans = (batch["lengths"], batch["prompt_lengths"][:first], batch["response_lengths"][:first])
        index, counts = response_states(*spans, states, masks)
        index = index.to(self.hidden.device, non_blocking=True)
        hidden = gather_sequence(self.hidden, self.group) if self.sequence_parallel else self.hidden
        return hidden.index_select(0, index), batch["labels"].index_select(0, index), counts


def _lengths(readout: Readout, what: Quantity, batch: Batch, chosen_only: bool) -> Tensor:
    return torch.tensor(trained_lengths(batch), dtype=torch.float64, device=readout.hidden.device)


ANSWERS: dict[type[Quantity], Callable[[Readout, Any, Batch, bool], Tensor]] = {
    LogProb: lambda readout, what, batch, chosen_only: readout.response_logps(batch, chosen_only=chosen_only),
    Reward: lambda readout, what, batch, chosen_only: readout.response_rewards(batch),
    Length: _lengths,
    Column: lambda readout, what, batch, chosen_only: batch["columns"][what.column],
}
"""How the policy and the data answer a quantity."""
