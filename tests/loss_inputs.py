"""Random numbers of pairs for the pure losses, and a comparison of losses, metrics and gradients with a reference."""

from collections.abc import Callable

import torch
from torch import Tensor

PAIRS = 64
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]
EXTREMES = [-1e4, -30.0, -1.0, -1e-8, 0.0]
"""Log-probabilities that a loss must survive."""
Numbers = dict[str, Tensor]


def numbers(seed: int, dtype: torch.dtype, pairs: int = PAIRS) -> Numbers:
    """[pairs, 2] each: log-probabilities from -0.01 to -150 nats, lengths, rewards, an oracle, a reference policy."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(pairs, 2, generator=generator, dtype=torch.float64).to(dtype)

    spread = torch.rand(pairs, 2, generator=generator, dtype=torch.float64)
    logps = -torch.exp(spread * 9.6 - 4.6).to(dtype)
    return {
        "logps": logps,
        "lengths": torch.randint(1, 30, (pairs, 2), generator=generator).to(dtype),
        "rewards": draw(),
        "oracle": 2 * draw(),
        "reference": logps + draw(),
        "margins": draw().abs(),
    }


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Within the dtype's tolerance of each value, or of the typical (root mean square) one where terms cancel."""
    assert actual.dtype == dtype, what
    expected = expected.detach()
    scale = expected.abs().clamp(min=expected.square().mean().sqrt().item())
    difference = (actual.detach().double() - expected).abs()
    assert (difference <= TOLERANCE[dtype] * scale).all(), (what, (difference / scale.clamp(min=1e-300)).max())


def compare(
    ours: Callable[..., tuple[Tensor, Numbers]],
    theirs: Callable[..., tuple[Tensor, Numbers]],
    inputs: Numbers,
    needs_grad: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    """Losses, metrics and the gradients with respect to `needs_grad`; `inputs` [B, 2] are passed by name."""
    left = {name: value.clone().requires_grad_(name in needs_grad) for name, value in inputs.items()}
    right = {name: value.double().requires_grad_(name in needs_grad) for name, value in inputs.items()}
    got, got_metrics = ours(left)
    want, want_metrics = theirs(right)
    assert got.shape == want.shape
    close(got, want, dtype, "loss")
    assert set(got_metrics) == set(want_metrics)
    for name, value in want_metrics.items():
        close(got_metrics[name], value, dtype, name)
    weights = torch.linspace(0.5, 1.5, len(want), dtype=torch.float64)
    (got * weights.to(dtype)).sum().backward()
    (want * weights).sum().backward()
    for name in needs_grad:
        assert right[name].grad is not None
        close(left[name].grad, right[name].grad, dtype, f"gradient of {name}")


def columns(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:, 0], values[:, 1]
