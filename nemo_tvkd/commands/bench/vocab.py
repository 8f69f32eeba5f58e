"""`bench vocab`: the sweep over logits against torch's logsumexp and Megatron's cross entropy; the chunked output layer
against full logits.

Each rank measures its own shard: with parallel.tensor_model_parallel_size = TP the logits are [T, V/TP].
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from nemo_tvkd.commands.bench.measure import MIB, Traffic, interleaved, peak_extra_bytes
from nemo_tvkd.config.values import as_list
from nemo_tvkd.parallel.lm_head import head_logprobs, head_statistics
from nemo_tvkd.parallel.statistic import KINDS, LOGPROB, Statistic
from nemo_tvkd.parallel.vocab import token_statistics
from nemo_tvkd.runtime import cpu

VALUE_AND_LOGPROB = (Statistic("soft_value", 0.01), LOGPROB)
EVERYTHING = tuple(Statistic(kind, 0.01 if kind == "soft_value" else 1.0) for kind in KINDS)

NOTES = """V+logprob: soft value at tau = 0.01 and label log-probability. MB: what the operation must move (logits once;
weight and hidden states once a product), GB/s: that over the time. x: time over that of torch.logsumexp, or of the
product hidden @ weight.T alone. extra MiB: the most memory held at a time beyond the inputs, results included.
crossing: bytes per token of the tensors that ranks reduce or gather (0 at parallel.tensor_model_parallel_size=1)."""

Case = tuple[Callable[[], Any], int]
"""What to run, and the bytes that it must move."""


def measure(config: Any) -> dict[str, Any]:
    """Time, bandwidth and memory for every vocabulary size."""
    options = config.bench
    dtype = torch.float32 if cpu.on_cpu() else torch.bfloat16
    rows = []
    for vocab in as_list(options.vocab_sizes):
        rows += _from_logits(options, int(vocab), dtype)
        rows += _from_hidden(options, int(vocab), dtype, config.parallel.lm_head_memory_mib * MIB)
    return {"dtype": str(dtype), "tokens": tokens(options), "rows": rows, "notes": NOTES}


def tokens(options: Any) -> int:
    """Rows of logits: on a GPU too many for its cache."""
    return options.tokens or (512 if cpu.on_cpu() else 8192)


def _inputs(options: Any, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Any]:
    """Logits [T, V/TP], labels [T] and the tensor-parallel group."""
    group = parallel_state.get_tensor_model_parallel_group()
    width = vocab // group.size()
    generator = torch.Generator(cpu.device()).manual_seed(vocab)
    like: dict[str, Any] = {"device": cpu.device(), "generator": generator}
    logits = (3 * torch.randn(tokens(options), width, **like)).to(dtype)
    return logits, torch.randint(0, width, (tokens(options),), **like), group


def _from_logits(options: Any, vocab: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    logits, labels, group = _inputs(options, vocab, dtype)
    rule = {"vocab_size": vocab, "group": group}
    size = logits.numel() * logits.element_size()
    sink = torch.empty_like(logits)
    cases: dict[str, Case] = {
        "copy": (lambda: sink.copy_(logits), 2 * size),
        "torch.logsumexp": (lambda: torch.logsumexp(logits, -1), size),
        "V+logprob": (lambda: token_statistics(logits, labels, VALUE_AND_LOGPROB, **rule), size),
        "all statistics": (lambda: token_statistics(logits, labels, EVERYTHING, **rule), size),
        "Megatron cross entropy": (lambda: _megatron_logprobs(logits, labels), size),
    }
    return _rows("logits", vocab, options, cases, against="torch.logsumexp")


def _from_hidden(options: Any, vocab: int, dtype: torch.dtype, memory: int) -> list[dict[str, Any]]:
    _, labels, group = _inputs(options, vocab, dtype)
    like: dict[str, Any] = {"device": cpu.device(), "generator": torch.Generator(cpu.device()).manual_seed(7)}
    hidden = torch.randn(tokens(options), options.hidden_size, **like).to(dtype).requires_grad_()
    weight = torch.randn(vocab // group.size(), options.hidden_size, **like) * (3 / options.hidden_size**0.5)
    weight = weight.to(dtype).requires_grad_()
    rule = {"vocab_size": vocab, "group": group, "memory": memory}
    size = (weight.numel() + hidden.numel()) * weight.element_size()

    def backward(function: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function().sum(), (hidden, weight))

    cases: dict[str, Case] = {
        "hidden @ weight.T": (lambda: hidden.detach() @ weight.detach().t(), size),
        "V+logprob": (lambda: head_statistics(hidden, weight, labels, VALUE_AND_LOGPROB, **rule), size),
        "logprob, with gradients": (backward(lambda: head_logprobs(hidden, weight, labels, **rule)), 4 * size),
        "full logits, with gradients": (backward(lambda: _full_logprobs(hidden, weight, labels)), 3 * size),
    }
    return _rows("output layer", vocab, options, cases, against="hidden @ weight.T")


def _megatron_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """What Megatron computes a loss with; it overwrites its fp32 input."""
    return -vocab_parallel_cross_entropy(logits.float() if logits.dtype != torch.float32 else logits.clone(), labels)


def _full_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Plain autograd through this rank's full logits, upcast to fp32."""
    return F.log_softmax((hidden @ weight.t()).float(), -1).gather(-1, labels[:, None])[:, 0]


def _rows(name: str, vocab: int, options: Any, cases: dict[str, Case], against: str) -> list[dict[str, Any]]:
    seconds = interleaved({case: function for case, (function, _) in cases.items()}, options.repeats)
    rows = []
    for case, (function, size) in cases.items():
        with Traffic() as traffic:
            function()
        rows.append(
            {
                "from": name,
                "V": vocab,
                "operation": case,
                "us/token": 1e6 * seconds[case] / tokens(options),
                "x": seconds[case] / seconds[against],
                "MB": size / 1e6,
                "GB/s": size / seconds[case] / 1e9,
                "extra MiB": peak_extra_bytes(function) / MIB,
                "crossing": traffic.bytes / tokens(options),
            }
        )
    return rows
