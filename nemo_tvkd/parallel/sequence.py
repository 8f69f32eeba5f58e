"""Where the responses are in a packed row, and sums of metrics over ranks.

A packed row is N sequences laid end to end, T tokens in all; `lengths`, `prompt_lengths` and `response_lengths` are
host lists. Position P - 1 of a sequence is state s_1 and predicts the first response token; position P - 1 + T is
s_{T+1}, the state after the last one.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

STATES = ("actions", "all", "ends", "last")
"""Of a response of T tokens: s_1..s_T, which predict its tokens; s_1..s_{T+1}; s_1 and s_{T+1} alone; s_{T+1} alone."""


def response_states(
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    states: str,
    masks: Sequence[Sequence[bool]] | None = None,
) -> tuple[Tensor, list[int]]:
    """Positions [R] int64 (on the host) of the responses' states in the row, and how many of them each sequence has.

    Sequences beyond the N described (padding) have none. Of "actions", `masks` (N of [T] bools) name those that are
    wanted: the states that predict the tokens they mark.
    """
    assert states in STATES, states
    assert masks is None or states == "actions", states
    positions: list[int] = []
    counts: list[int] = []
    start = 0
    for row, (length, prompt, response) in enumerate(zip(lengths, prompt_lengths, response_lengths, strict=False)):
        first, last = start + prompt - 1, start + prompt - 1 + response
        some = {"ends": [first, last], "last": [last]}
        found = some[states] if states in some else list(range(first, last + (states == "all")))
        if masks is not None:
            found = [at for at, wanted in zip(found, masks[row], strict=True) if wanted]
        positions += found
        counts.append(len(found))
        start += length
    return torch.tensor(positions, dtype=torch.int64), counts


def rows_of_sequence(hidden: Tensor, index: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Sequence parallelism: what a rank holds of rows [R] of the whole row, without moving hidden states.

    Args:
        hidden: [T/TP, H], this rank's tokens.
        index: [R] int64 positions in the whole row.

    Returns:
        [R, H], where a row of another rank's is some row of this one, and [R] bool, which ones are its own.
    """
    local = index - dist.get_rank(group) * hidden.size(0)
    own = (local >= 0) & (local < hidden.size(0))
    return hidden.index_select(0, local.clamp(0, hidden.size(0) - 1)), own


def sum_over(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of the ranks' tensors; backward, each rank keeps its part's gradient (the loss is the same on all)."""
    return _SumOver.apply(values, group)


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, group):  # type: ignore[no-untyped-def]
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


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
