"""The reward head: a linear map from the hidden state at the last response token to a scalar.

It is what transformers calls `score` in a sequence-classification model with one label: no bias, read after the final
norm. It lives on the last pipeline stage, whole on every tensor-parallel rank, and computes in fp32 whatever the model
is. Its weight is fp32, too, where it is frozen; under bf16 training Float16Module makes it bf16 with an fp32 master, as
all the others (Megatron's optimizer cannot save fp32 weights among bf16 ones).
"""

from typing import Any

import torch
from torch import Tensor, nn


class RewardHead(nn.Module):
    """r = w . h.

    Args:
        hidden_size: H.
        std: of the normal distribution that weights are drawn from.
        seed: of the head's own generator, so that every rank and layout draws the same.
        sequence_parallel: whether each rank sees its own part of the tokens; Megatron then adds up the weight's
            gradients over the tensor-parallel group, as it does for norms.
    """

    def __init__(self, hidden_size: int, std: float, seed: int, sequence_parallel: bool = False) -> None:
        super().__init__()
        drawn = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(seed), device="cpu") * std
        self.weight = nn.Parameter(drawn.float())
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]
        self.stored = True
        """Whether checkpoints are asked for the weight; not where one from before the head is loaded."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Rewards [N] fp32 of hidden states [N, H]."""
        return (hidden.float() * self.weight.float()).sum(-1)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's: replicated over the tensor-parallel group."""
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        state = self.state_dict(prefix="", keep_vars=True) if self.stored else {}
        return make_sharded_tensors_for_checkpoint(state, prefix, {}, sharded_offsets)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any) -> None:
        if self.stored:
            super()._load_from_state_dict(state_dict, prefix, *rest, **options)
