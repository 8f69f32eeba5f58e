"""The sweep over logits as one Triton kernel: each logit is read once, by GPUs that Triton supports.

The kernel is in :mod:`nemo_tvkd.parallel.kernel`, which is imported when it is first needed: Triton is no dependency of
a CPU. It is compiled at the first call for a dtype, a tile and a kind of sweep, with the C compiler that Triton asks
for; if that fails, Triton's error is the caller's. Under TRITON_INTERPRET=1, :func:`collect` takes CPU tensors.
"""

import functools
import importlib.util
import math

import torch
from torch import Tensor

from nemo_tvkd.parallel.statistic import Sweep

BLOCK = 8192
"""Columns of a tile, of which a whole vocabulary has 4 to 16. What a tile costs besides its logits (a maximum and a sum
or two across warps, two barriers each) is to hide behind reading it: 16 KiB of bf16 take an SM of an H100 1,100 cycles,
and 4 programs take turns on it. By these estimates and the compiler's register counts; not tuned on a GPU."""

COLUMNS_PER_WARP = 1024
"""32 columns a thread: four 16-byte loads of bf16 under way at once (eight of fp32), and some 64 registers a thread for
one or two temperatures, with which 4 programs of 8 warps fit an SM."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def usable(logits: Tensor) -> bool:
    """Whether the kernel runs on this tensor: bf16, fp16 or fp32 on a GPU that Triton supports, rows without gaps."""
    return (
        logits.is_cuda and logits.dtype in DTYPES and logits.stride(-1) == 1 and _triton_supports(logits.device.index)
    )


@functools.cache
def _triton_supports(device: int) -> bool:
    # Volta and Turing are too old for it (and have no maximum that keeps NaN, on which the kernel relies).
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def collect(
    logits: Tensor, labels: Tensor, sweep: Sweep, valid: int, out: Tensor, *, largest_block: int = BLOCK
) -> None:
    """This rank's partial numbers of some tokens, as :func:`nemo_tvkd.parallel.vocab.collect`.

    Args:
        logits: [T, W] bf16, fp16 or fp32; rows may be any distance apart, a row's columns are adjacent.
        labels: [T] int64, columns of this shard; a label outside [0, valid) is another rank's.
        valid: the first `valid` columns are real; others enter nothing.
        out: [P, T] fp32 of any strides, filled.
        largest_block: columns of a tile at most, a power of two.

    It differs from the torch path where the results are the same or are none: terms below e^-80 of a sum may be left
    out, the sums of a row of nothing but -inf are 0 (its peak is -inf), those of a row with a NaN or +inf are NaN.
    """
    from nemo_tvkd.parallel.kernel import sweep_row
    from nemo_tvkd.parallel.vocab import LEAST

    tokens, width = logits.shape
    if not tokens:
        return
    block = min(largest_block, max(_power_of_two(valid), COLUMNS_PER_WARP))
    count = len(sweep.temperatures)
    with torch.cuda.device_of(logits):
        sweep_row[(tokens,)](
            logits,
            logits.stride(0),
            valid,
            # Multiples of 16 let Triton vectorise masked loads; the kernel drops what lies in [valid, readable).
            min(width, 16 * math.ceil(valid / 16)),
            labels,
            labels.stride(0),
            _scales(sweep.temperatures, logits.device),
            out,
            out.stride(0),
            out.stride(1),
            K=count,
            LANES=_power_of_two(count),
            UNIT=sweep.total(1.0) - 1 if sweep.weighted else 0,
            WEIGHTED=sweep.weighted_row if sweep.weighted else 0,
            LABEL=sweep.label_row if sweep.labels else 0,
            SECOND=sweep.rows - 1 if sweep.second else 0,
            LEAST=LEAST,
            BLOCK=block,
            num_warps=max(1, block // COLUMNS_PER_WARP),
        )


@functools.lru_cache
def _scales(temperatures: tuple[float, ...], device: torch.device) -> Tensor:
    """log2(e) / tau, filled up to a power of two; kept on the device: a copy for each call would wait for the GPU."""
    scales = [math.log2(math.e) / tau for tau in temperatures]
    scales += [1.0] * (_power_of_two(len(scales)) - len(scales))
    return torch.tensor(scales, dtype=torch.float32, device=device)


def _power_of_two(n: int) -> int:
    """The least power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()
