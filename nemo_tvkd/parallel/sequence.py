"""From per-token tensors of a packed row to per-sequence tensors, and sums of metrics over ranks.

A packed row is N sequences laid end to end, T tokens in all; `lengths`, `prompt_lengths` and `response_lengths` are
host lists. Position P - 1 of a sequence is state s_1 and predicts the first response token; position P - 1 + T is
s_{T+1}, the state after the last one.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def split_responses(
    per_token: Tensor,
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    extra: int = 0,
) -> list[Tensor]:
    """The response part of each sequence: [T_n + extra] views of `per_token` [T], starting at state s_1.

    `extra=1` includes the state after the last response token. Sequences beyond the N described (padding) are left
    out. Differentiable.
    """
    parts = per_token.split(list(lengths))
    return [
        part[p - 1 : p - 1 + r + extra] for part, p, r in zip(parts, prompt_lengths, response_lengths, strict=False)
    ]


def response_sums(
    per_token: Tensor, lengths: Sequence[int], prompt_lengths: Sequence[int], response_lengths: Sequence[int]
) -> Tensor:
    """[N] float64 sums over response tokens; the order of additions is fixed, so results repeat bit for bit."""
    return torch.stack(
        [part.double().sum() for part in split_responses(per_token, lengths, prompt_lengths, response_lengths)]
    )


def all_reduce_sums(sums: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum `sums` over a group in place (float64 in, float64 out)."""
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    return sums


def broadcast_from_last(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Give every pipeline stage what the last one has; metrics exist only there."""
    if dist.get_world_size(group) > 1:
        dist.broadcast(tensor, src=dist.get_process_group_ranks(group)[-1], group=group)
    return tensor
