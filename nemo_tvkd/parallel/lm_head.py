"""Per-token statistics from hidden states and the vocab-parallel output layer, without full logits.

Shapes: hidden [T, H] are the last hidden states at which something is asked; weight [V/TP, H] is this rank's rows of
the output layer (or of the tied embedding), padded as in :mod:`nemo_tvkd.parallel.vocab`. Logits exist for a
few columns (of all tokens, or of some) at a time, as many as a memory budget admits, so memory beyond tensors of
hidden's and weight's own sizes depends on neither T nor V. Blocks of columns, rather than of tokens: each row of the
weight is read once, and its gradient is finished in one place.

Forward, only per-token scalars cross ranks; backward, one sum of hidden's size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_tvkd.parallel.statistic import LOGPROB, Statistic, Sweep
from nemo_tvkd.parallel.vocab import (
    collect,
    combine,
    finish,
    logprob_gradient,
    merge,
    shard_bounds,
)

MEMORY = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Default budget in bytes for the logits that exist at a time."""

BYTES_PER_LOGIT = 12
"""fp32 logits, a work buffer of the same size, and (backward) their gradient in the weight's dtype."""

LEAST_COLUMNS = 2048
"""Narrower products would not keep a device busy."""

ALIGNED = 128
"""Blocks are a multiple of this many columns: products and loads of rows that start anywhere are much slower."""

FP32_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")
"""Whether this torch can keep the fp32 accumulator of a half-precision product (CUDA only, torch >= 2.8)."""


def head_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    statistics: Sequence[Statistic],
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    memory: int = 0,
) -> dict[Statistic, Tensor]:
    """What is asked of each token's logits, without gradients.

    Args:
        hidden: [T, H]; the same on every rank of `group`.
        weight: [V/TP, H], of hidden's dtype.
        labels: [T] int64 in [0, vocab_size), read by the action-dependent kinds.
        vocab_size: real vocabulary.
        group: the tensor-parallel group; None for one rank.
        memory: bytes that logits may take at a time; 0: MEMORY.

    Returns:
        [T] float32 for each statistic (see :class:`nemo_tvkd.parallel.vocab.Statistic`).
    """
    sweep = Sweep.over(statistics)
    with torch.no_grad():
        partial = _collect(hidden, weight, labels, sweep, vocab_size, group, memory)
        return {s: finish(s, partial, sweep) for s in statistics}


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    reduce_hidden_gradient: bool = True,
    memory: int = 0,
) -> Tensor:
    """log pi(label) per token, differentiable with respect to hidden and weight.

    Arguments as :func:`head_statistics`; `reduce_hidden_gradient=False` leaves each rank its own part of hidden's
    gradient, for callers whose next step backward adds the parts up (:func:`gather_sequence`).

    Returns:
        [T] float32, in nats. Backward recomputes the logits and accumulates in fp32.
    """
    return _HeadLogprobs.apply(hidden, weight, labels, vocab_size, group, reduce_hidden_gradient, memory)


def gather_sequence(hidden: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sequence parallelism: each rank's [T/TP, H] to [T, H]; backward, the ranks' gradients are summed and split."""
    if group is None or dist.get_world_size(group) == 1:
        return hidden
    return _GatherSequence.apply(hidden, group)


def tile(tokens: int, columns: int, device: torch.device, memory: int, beside: int = 0) -> tuple[int, int]:
    """How many tokens and columns of logits exist at a time: all tokens, unless that leaves only few columns.

    `beside` is what else every column takes, in bytes.
    """
    budget = memory or MEMORY[device.type]
    width = max(budget // (BYTES_PER_LOGIT * max(tokens, 1) + beside), LEAST_COLUMNS)
    width = max(1, min(width, columns, budget // (BYTES_PER_LOGIT + 2 * beside)))  # half of it is the logits', at least
    if ALIGNED < width < columns:
        width -= width % ALIGNED
    return max(1, (budget - beside * width) // (BYTES_PER_LOGIT * width)), width


def _block(weight: Tensor, left: int, columns: int, valid: int) -> Tensor:
    """Rows of the weight from `left` on; the last block takes some of the padding along where its width is odd."""
    return weight[left : min(left + columns, -(-valid // 16) * 16)]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in fp32 where the device can give the unrounded result of half-precision operands."""
    if a.is_cuda and FP32_PRODUCTS and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def _collect(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    sweep: Sweep,
    vocab_size: int,
    group: dist.ProcessGroup | None,
    memory: int,
) -> Tensor:
    """Combined partial numbers [P, T] of all tokens."""
    start, valid = shard_bounds(weight.size(0), vocab_size, group)
    partial = hidden.new_empty(sweep.rows, hidden.size(0), dtype=torch.float32)
    rows, columns = tile(hidden.size(0), valid, hidden.device, memory)
    for first in range(0, hidden.size(0), rows):
        span = slice(first, first + rows)
        for left in range(0, max(valid, 1), columns):
            block = _block(weight, left, columns, valid)
            out = partial[:, span] if left == 0 else torch.empty_like(partial[:, span])
            logits = product(hidden[span], block.t())
            collect(logits, labels[span] - (start + left), sweep, min(block.size(0), valid - left), out)
            del logits  # before the next ones are made
            if left:
                merge(partial[:, span], out, sweep)
    combine(partial, sweep, group)
    return partial


class _HeadLogprobs(torch.autograd.Function):
    """Saves its inputs and two numbers per token."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, vocab_size, group, reduce, memory):  # type: ignore[no-untyped-def]
        sweep = Sweep.over([LOGPROB])
        partial = _collect(hidden, weight, labels, sweep, vocab_size, group, memory)
        ctx.save_for_backward(hidden, weight, labels, partial[0].clone(), partial[sweep.total(1.0)].log())
        ctx.vocab_size, ctx.group, ctx.reduce, ctx.memory = vocab_size, group, reduce, memory
        return finish(LOGPROB, partial, sweep)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        hidden, weight, labels, peak, log_total = ctx.saved_tensors
        start, valid = shard_bounds(weight.size(0), ctx.vocab_size, ctx.group)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        # Beside the logits: a block's rows of the weight's gradient in fp32, and one product that is added to them.
        rows, columns = tile(hidden.size(0), valid, hidden.device, ctx.memory, beside=8 * hidden.size(1))
        for left in range(0, valid, columns):
            block = _block(weight, left, columns, valid)
            grad_block = None if grad_weight is None else torch.zeros_like(block, dtype=torch.float32)
            for first in range(0, hidden.size(0), rows):
                span = slice(first, first + rows)
                z = product(hidden[span], block.t()).float()
                logprob_gradient(z, labels[span] - (start + left), peak[span], log_total[span], grad[span])
                z[:, valid - left :] = 0
                z = z.to(weight.dtype)
                grad_hidden[span] += product(z, block)
                if grad_block is not None:
                    grad_block += product(z.t(), hidden[span])
            if grad_weight is not None and grad_block is not None:
                grad_weight[left : left + block.size(0)] = grad_block
        if ctx.reduce and ctx.group is not None and dist.get_world_size(ctx.group) > 1:
            dist.all_reduce(grad_hidden, group=ctx.group)
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        whole = hidden.new_empty(hidden.size(0) * dist.get_world_size(group), *hidden.shape[1:])
        dist.all_gather_into_tensor(whole, hidden.contiguous(), group=group)
        return whole

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        part = grad.new_empty(grad.size(0) // dist.get_world_size(ctx.group), *grad.shape[1:])
        dist.reduce_scatter_tensor(part, grad.contiguous(), group=ctx.group)
        return part, None
