"""The most likely next tokens from hidden states and the vocab-parallel output layer, without full logits."""

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tvkd.parallel.lm_head import product, tile
from nemo_tvkd.parallel.vocab import shard_bounds


def top_tokens(
    hidden: Tensor,
    weight: Tensor,
    count: int,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    memory: int = 0,
) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of each state and their tokens, the largest first; no gradients.

    Arguments as :func:`nemo_tvkd.parallel.lm_head.head_statistics`. Of each state, `count` numbers a rank cross ranks.

    Returns:
        logits [T, count] float32 and token ids [T, count] int64.
    """
    start, valid = shard_bounds(weight.size(0), vocab_size, group)
    rows, columns = tile(hidden.size(0), valid, hidden.device, memory)
    best = hidden.new_full((hidden.size(0), count), -torch.inf, dtype=torch.float32)
    ids = torch.zeros_like(best, dtype=torch.int64)
    with torch.no_grad():
        for left in range(0, valid, columns):
            block = weight[left : min(left + columns, valid)].t()
            for first in range(0, hidden.size(0), rows):
                span = slice(first, first + rows)
                logits = product(hidden[span], block).float()  # rounded as those that log pi is made of
                top = logits.topk(min(count, logits.size(-1)), -1)
                best[span], ids[span] = _largest(
                    [best[span], top.values], [ids[span], top.indices + (start + left)], count
                )
        if group is None or dist.get_world_size(group) == 1:
            return best, ids
        return _largest(_of_all_ranks(best, group), _of_all_ranks(ids, group), count)


def _of_all_ranks(part: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return parts


def _largest(logits: list[Tensor], ids: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Of several parts [T, .] of the vocabulary, the `count` largest."""
    top = torch.cat(logits, -1).topk(count, -1)
    return top.values, torch.cat(ids, -1).gather(-1, top.indices)
