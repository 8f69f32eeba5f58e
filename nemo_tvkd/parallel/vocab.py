"""Per-token statistics of logits that are split over ranks along the vocabulary.

Shapes: logits [T, V/TP] are this rank's columns [rank * V/TP, (rank + 1) * V/TP) of the padded vocabulary, T tokens.
`vocab_size` is the real one; padded columns beyond it enter nothing. Arithmetic is fp32 whatever the dtype of the
logits, in chunks of rows, so the extra memory does not grow with T. Logits are never gathered: each rank sweeps its
columns once and keeps a few partial numbers per token, relative to its own largest logit; one maximum and a few sums
per token cross ranks (for the top-2 margin two numbers per rank).

Softmax probabilities are those of temperature 1; only the soft value takes a temperature. All values are in nats.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tvkd.parallel import fused
from nemo_tvkd.parallel.statistic import Statistic, Sweep

CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Upper bound of the fp32 work buffers of a sweep: what stays in a CPU's cache, and what keeps a GPU busy."""

LEAST = -80.0
"""Exponents are cut off here: e^-80 adds nothing to a sum that holds a 1, and smaller results are slow on a CPU."""


def shard_bounds(width: int, vocab_size: int, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """First column of this rank's shard and the number of its columns that are real, for shards `width` wide."""
    rank = dist.get_rank(group) if group is not None else 0
    start = rank * width
    return start, min(max(vocab_size - start, 0), width)


def token_statistics(
    logits: Tensor,
    labels: Tensor,
    statistics: Sequence[Statistic],
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
) -> dict[Statistic, Tensor]:
    """What is asked of each token's logits, from one pass over them, without gradients.

    Args:
        logits: [T, V/TP], any floating dtype.
        labels: [T] int64 in [0, vocab_size), read by the action-dependent kinds.
        vocab_size: real vocabulary.
        group: the tensor-parallel group; None for one rank.

    Returns:
        [T] float32 for each statistic: nats (probabilities for `max` and `margin`).
    """
    sweep = Sweep.over(statistics)
    start, valid = shard_bounds(logits.size(-1), vocab_size, group)
    with torch.no_grad():
        partial = logits.new_empty(sweep.rows, logits.size(0), dtype=torch.float32)
        collect(logits, labels - start, sweep, valid, partial)
        combine(partial, sweep, group)
        return {s: finish(s, partial, sweep) for s in statistics}


def collect(logits: Tensor, labels: Tensor, sweep: Sweep, valid: int, out: Tensor) -> None:
    """This rank's partial numbers of some tokens.

    Args:
        logits: [T, W], this rank's columns; the first `valid` are real.
        labels: [T] int64, columns of this shard; a label outside [0, valid) is another rank's.
        out: [P, T] fp32, filled (see :class:`Sweep`).
    """
    if not valid:
        out.zero_()
        out[0] = float("-inf")
        if sweep.second:
            out[-1] = float("-inf")
        return
    if fused.usable(logits):
        fused.collect(logits, labels, sweep, valid, out)
        return
    buffers = 2 if sweep.weighted else 1
    rows = max(1, CHUNK_BYTES[logits.device.type] // (4 * valid * buffers))
    work = logits.new_empty(buffers, min(rows, logits.size(0)), valid, dtype=torch.float32)
    for first in range(0, logits.size(0), rows):
        span = slice(first, first + rows)
        z = logits[span, :valid]
        _collect_chunk(z, sweep, work[:, : z.size(0)], out[:, span])
    if sweep.labels:
        here = (labels >= 0) & (labels < valid)
        picked = logits.gather(-1, labels.clamp(0, valid - 1)[:, None])[:, 0].float()
        out[sweep.label_row] = torch.where(here, picked, torch.zeros_like(picked))


def _collect_chunk(z: Tensor, sweep: Sweep, work: Tensor, out: Tensor) -> None:
    """z [R, W] -> out [P, R], with the buffers `work` [1 or 2, R, W]."""
    out[0] = z.amax(-1)
    # A row of nothing but -inf has no finite maximum: 0 in its place keeps NaN out of z - peak.
    base = torch.where(out[0].isinf(), torch.zeros_like(out[0]), out[0])[:, None]
    for tau in sweep.temperatures:
        # Given other dtypes, `out=` would make a hidden fp32 copy of its own.
        exponent = torch.sub(z, base, out=work[0]) if z.dtype == torch.float32 else work[0].copy_(z).sub_(base)
        if tau != 1:
            exponent.mul_(1 / tau)
        exponent.clamp_(min=LEAST)
        if tau == 1 and sweep.weighted:
            weight = torch.exp(exponent, out=work[1])
            out[sweep.total(tau)] = weight.sum(-1)
            out[sweep.weighted_row] = weight.mul_(exponent).sum(-1)
        else:
            out[sweep.total(tau)] = exponent.exp_().sum(-1)
    if sweep.second:
        out[-1] = z.topk(2, -1).values[:, 1] if z.size(-1) > 1 else float("-inf")


def combine(partial: Tensor, sweep: Sweep, group: dist.ProcessGroup | None) -> None:
    """From each rank's partial numbers [P, T] to those of the whole vocabulary, in place.

    One maximum and `sweep.sums` sums per token are all-reduced, in two calls whatever T is; with `second`, two numbers
    per rank are gathered instead of the maximum.
    """
    if group is None or dist.get_world_size(group) == 1:
        return
    peak = partial[0].clone()
    if sweep.second:
        everyone = partial.new_empty(dist.get_world_size(group) * 2, partial.size(1))
        dist.all_gather_into_tensor(everyone, torch.stack([partial[0], partial[-1]]), group=group)
        peak, partial[-1] = everyone.topk(2, dim=0).values
    else:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    if sweep.sums:
        _relate(partial, sweep, peak)
        dist.all_reduce(partial[1 : 1 + sweep.sums], group=group)
    partial[0] = peak


def merge(partial: Tensor, other: Tensor, sweep: Sweep) -> None:
    """Add the partial numbers [P, T] of further columns to `partial`, in place; `other` is used up."""
    peak = torch.maximum(partial[0], other[0])
    if sweep.second:
        partial[-1] = torch.stack([partial[0], partial[-1], other[0], other[-1]]).topk(2, dim=0).values[1]
    _relate(partial, sweep, peak)
    _relate(other, sweep, peak)
    partial[1 : 1 + sweep.sums] += other[1 : 1 + sweep.sums]
    partial[0] = peak


def _relate(partial: Tensor, sweep: Sweep, peak: Tensor) -> None:
    """Rewrite sums that were taken relative to partial[0] as ones relative to a larger `peak` [T]."""
    shift = torch.where(partial[0].isneginf(), -torch.inf, partial[0] - peak)
    if sweep.weighted:
        unit = shift.clamp(min=LEAST)
        partial[sweep.weighted_row].add_(unit * partial[sweep.total(1.0)]).mul_(unit.exp())
    for tau in sweep.temperatures:
        partial[sweep.total(tau)].mul_((shift / tau).clamp_(min=LEAST).exp_())


def finish(statistic: Statistic, partial: Tensor, sweep: Sweep) -> Tensor:
    """A statistic [T] fp32 from combined partial numbers [P, T]."""
    kind, peak = statistic.kind, partial[0]
    if kind == "soft_value":
        tau = statistic.temperature
        return peak + tau * partial[sweep.total(tau)].log()
    if kind == "logit":
        return partial[sweep.label_row].clone()
    # Without a largest logit there is no softmax: what was summed relative to a stand-in must not look like one.
    total = torch.where(peak.isfinite(), partial[sweep.total(1.0)], torch.nan)
    if kind == "logprob":
        # Peak and log-sum stay apart: added up, logits of 1e4 would round the difference to 1e-3.
        return (partial[sweep.label_row] - peak) - total.log()
    if kind == "max":
        return total.reciprocal()
    if kind == "margin":
        return -(partial[-1] - peak).expm1() / total
    if kind == "sum_of_squares":
        return partial[sweep.total(0.5)] / total.square()
    mean = partial[sweep.weighted_row] / total
    return peak + mean if kind == "expectation" else total.log() - mean


def logprob_gradient(z: Tensor, labels: Tensor, peak: Tensor, log_total: Tensor, grad: Tensor) -> Tensor:
    """(onehot - softmax) * grad, the gradient of sum(grad * log softmax(z)[label]) with respect to z.

    Args:
        z: [T, W] fp32 logits of some columns; overwritten with the result.
        labels: [T] int64, columns of z; a label outside [0, W) is elsewhere.
        peak, log_total, grad: [T] fp32.
    """
    z.sub_(peak[:, None]).sub_(log_total[:, None]).clamp_(min=LEAST).exp_().mul_(-grad[:, None])
    here = (labels >= 0) & (labels < z.size(-1))
    return z.scatter_add_(-1, labels.clamp(0, z.size(-1) - 1)[:, None], torch.where(here, grad, 0.0)[:, None])
