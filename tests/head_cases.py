"""What the tests of vocab-parallel statistics share: the equations in float64, rounding bounds, measured memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_tvkd.parallel.statistic import LOGPROB, Statistic

REAL, PADDED, TOKENS, HIDDEN = 1003, 1024, 36, 24
SOFT_VALUES = [Statistic("soft_value", tau) for tau in (0.01, 1.0, 5.0)]
PROBABILITIES = ("max", "margin", "sum_of_squares")
STATISTICS = SOFT_VALUES + [Statistic(kind) for kind in ("expectation", "entropy", "logit", "logprob", *PROBABILITIES)]


def tensor_group() -> torch.distributed.ProcessGroup:
    """On a rank of the pool: the ranks that share its replica of the model."""
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def equation(z: Tensor, labels: Tensor, statistic: Statistic) -> Tensor:
    """The statistic of float64 logits [T, V] over the real vocabulary; what has no probability adds nothing."""
    log_pi = z.log_softmax(-1)
    pi = log_pi.exp()
    match statistic.kind:
        case "soft_value":
            return statistic.temperature * torch.logsumexp(z / statistic.temperature, -1)
        case "max":
            return pi.max(-1).values  # of equal ones, one gets the slope: the right bound where they move apart
        case "margin":
            first, second = pi.topk(2, -1).values.unbind(-1)
            return first - second
        case "expectation":
            return torch.where(pi > 0, pi * z, 0.0).sum(-1)
        case "entropy":
            return -torch.where(pi > 0, pi * log_pi, 0.0).sum(-1)
        case "sum_of_squares":
            return pi.square().sum(-1)
        case kind:
            return {"logit": z, "logprob": log_pi}[kind].gather(-1, labels[:, None])[:, 0]


def fp32_error(statistic: Statistic, expected: Tensor) -> Tensor:
    """What fp32 arithmetic on given logits may be off by: nothing if it only picks one, else 1e-5 of a probability, of
    nats 2e-6 more (differences of larger ones)."""
    if statistic.kind == "logit":
        return torch.zeros_like(expected)
    floor = 0.0 if statistic.kind in PROBABILITIES else 2e-6
    return 1e-5 * expected.abs().nan_to_num(0.0, 0.0, 0.0) + floor


def logit_error(hidden: Tensor, weight: Tensor) -> Tensor:
    """How far a product of H terms may be off, each logit [T, V]: H roundings to 24 bits that know nothing of each
    other, and a last one to 8 bits where hidden is bf16 (a CPU's product has the dtype of its factors)."""
    h, w = hidden.double(), weight.double()
    error = h.size(-1) ** 0.5 * 2.0**-24 * (h.abs() @ w.abs().T)
    return error + 2.0**-8 * (h @ w.T).abs() if hidden.dtype == torch.bfloat16 else error


def propagated(z: Tensor, labels: Tensor, statistic: Statistic, error: Tensor) -> Tensor:
    """First order: sum_a |df/dz_a| error_a, and half as much again for the higher orders."""
    z = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(equation(z, labels, statistic).sum(), z)
    return 1.5 * (slope.abs() * error).sum(-1)


@dataclass
class HeadCase:
    """hidden [T, H], weight [padded, H], labels [T], weights of the tokens in the loss [T]."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    upstream: Tensor
    real: int

    def shard(self, rank: int, world: int) -> Tensor:
        return self.weight.chunk(world)[rank]

    def __post_init__(self) -> None:
        """In float64, of the inputs as they are after rounding: logits, what they may be off by, gradients."""
        h = self.hidden.double().requires_grad_()
        w = self.weight[: self.real].double().requires_grad_()
        z = h @ w.T
        loss = (equation(z, self.labels, LOGPROB) * self.upstream.double()).sum()
        self.grad_hidden, self.grad_weight = torch.autograd.grad(loss, [h, w])
        self.z, self.error = z.detach(), logit_error(self.hidden, self.weight[: self.real])

    def gradient_errors(self) -> tuple[Tensor, Tensor]:
        """What hidden's and weight's gradients may be off by: errors of logits move each probability pi_a, to first
        order, by pi_a (error_a + sum pi error); the logits' gradient, the products with it and the sum over ranks are
        then rounded, in fp32 or in bf16 (a CPU's products, block by block)."""
        pi = self.z.softmax(-1)
        size = self.upstream.double().abs()[:, None]
        moved = 1.5 * size * pi * (self.error + (pi * self.error).sum(-1, keepdim=True))
        onehot = torch.nn.functional.one_hot(self.labels, self.real)
        g = size * (onehot - pi).abs()
        rounding = 2.0**-8 if self.hidden.dtype == torch.bfloat16 else 0.0
        total = moved + (4 * rounding + 2e-6) * g
        h, w = self.hidden.double().abs(), self.weight[: self.real].double().abs()
        return total @ w, total.T @ h


def make_head_case(name: str, seed: int = 3) -> HeadCase:
    generator = torch.Generator().manual_seed(seed)
    real, padded = {"padding only on the last ranks": (5, 16), "wide": (9001, 9216)}.get(name, (REAL, PADDED))
    tokens = {"one token": 1, "no tokens": 0, "wide": 12}.get(name, TOKENS)
    hidden = torch.randn(tokens, HIDDEN, generator=generator) * 0.5
    weight = torch.randn(padded, HIDDEN, generator=generator)
    weight[real - 1] = weight[1]  # two equal logits in every row: some are the largest
    labels = torch.randint(0, real, (tokens,), generator=generator)
    borders = [b for b in (255, 0, 256, 255, 255, 511, 512, 767, 768, real - 1, 1) if b < real]
    labels[: len(borders)] = torch.tensor(borders)[:tokens]
    weight[:, 0], weight[real // 2, 0] = 1.0, 0.0
    hidden[3:4], labels[3:4] = weight[1], 1  # a likely label
    hidden[4:5], hidden[4:5, 0] = 0.0, -60.0  # all logits alike, but for one that is far larger
    if name == "large":
        hidden *= 1e4 / (hidden @ weight[:real].T).abs().amax(-1, keepdim=True)
    dtype = torch.bfloat16 if name.startswith("bf16") else torch.float32
    if name == "strided":
        hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
    weight[real:] = 1e30
    upstream = torch.randn(tokens, generator=generator)
    upstream[5:8] = 0.0  # tokens that a mask takes out
    return HeadCase(hidden.to(dtype), weight.to(dtype), labels, upstream, real)


def within(actual: Tensor, expected: Tensor, allowed: Tensor | float, what: object = "") -> None:
    """|actual - expected| <= allowed everywhere; infinities must be the same ones."""
    assert actual.shape == expected.shape, what
    error = torch.where(actual == expected, 0.0, (actual.double() - expected.double()).abs())
    wrong = ~(error <= allowed)
    if wrong.any():
        excess = torch.where(wrong, error, 0.0).nan_to_num(torch.inf)
        place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(f"{what}: {actual[place]} is not {expected[place]} at {place}; {int(wrong.sum())} wrong")


def same(ranks: list[Tensor], what: object = "") -> None:
    """Bit by bit, NaN included."""
    for other in ranks[1:]:
        torch.testing.assert_close(other, ranks[0], rtol=0, atol=0, equal_nan=True, msg=f"ranks differ: {what}")


def peak_extra_bytes(function: Callable[[], object]) -> int:
    """The most that was allocated at a time during the call, beyond what was there before; results count."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = function()
    del kept
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "no allocation was recorded"
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def in_fresh_process(module: str, function: str) -> dict[str, int]:
    """What `module.function()` returns where nothing else allocates."""
    code = f"import json, {module}; print('result:', json.dumps({module}.{function}()))"
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests / "distributed"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("result:")[-1])
