"""DRDO's loss as a pure function: log(1 - pi), values, gradients, the focal weight, extreme inputs."""

import math
from itertools import product
from typing import Any

import pytest
import reward_formulas as ref
import torch
from loss_inputs import DTYPES, EXTREMES, PAIRS, TOLERANCE, Numbers, columns, compare, numbers
from torch import Tensor

from nemo_tvkd.losses.drdo import drdo_loss, log1mexp


def drdo(inputs: Numbers, **rule: Any) -> tuple[Tensor, Numbers]:
    implicit = rule["student_reward"] == "implicit"
    rewards = (None, None) if implicit else columns(inputs["rewards"])
    return drdo_loss(
        *columns(inputs["logps"]), *columns(inputs["lengths"]), *columns(inputs["oracle"]), *rewards, **rule
    )


def drdo_reference(inputs: Numbers, **rule: Any) -> tuple[Tensor, Numbers]:
    return ref.drdo_pairs(inputs["logps"], inputs["lengths"], inputs["rewards"], inputs["oracle"], **rule)


DRDO: dict[str, Any] = {
    "alpha": 0.1,
    "gamma": 2.0,
    "beta": 0.1,
    "logprob": "sum",
    "contrast": "ratio",
    "student_reward": "head",
}
RULES = [
    {"logprob": logprob, "contrast": contrast, "student_reward": reward}
    for logprob, contrast, reward in product(("sum", "mean"), ("ratio", "product"), ("head", "implicit"))
]


# --------------------------------------------------------------------------------------------------------- log1mexp


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("x", [-0.0, 0.0, -1e-13, -1e-8, -1e-3, -0.5, -0.693, -0.694, -1.0, -10.0, -50.0, -1000.0])
def test_log1mexp_is_the_exact_value_rounded(x: float, dtype: torch.dtype) -> None:
    """Against 60 digits, at the number that x is in this dtype; a rounding or two of the dtype is allowed."""
    at = torch.tensor([x], dtype=dtype)
    exact = ref.log1mexp(at.double())
    got = log1mexp(at)
    assert got.dtype == dtype
    roundings = 1 if dtype == torch.bfloat16 else 4
    allowed = roundings * torch.finfo(dtype).eps * exact.abs().item() + torch.finfo(dtype).tiny
    assert abs(got.double().item() - exact.item()) <= allowed, (got.item(), exact.item())


def test_log1mexp_by_hand() -> None:
    x = torch.tensor([-math.log(2), -math.log(4), -1e-12, -1000.0], dtype=torch.float64)
    assert log1mexp(x).tolist() == pytest.approx([-math.log(2), math.log(0.75), math.log(1e-12), 0.0], rel=1e-12)
    assert log1mexp(torch.tensor([0.0, -1e-14])).tolist() == pytest.approx([math.log(1e-12)] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_log1mexp_is_finite_and_rising_in_steepness_everywhere(dtype: torch.dtype) -> None:
    """From -10,000 to -0: finite values and slopes, never positive, falling towards 0."""
    sweep = torch.cat([-torch.logspace(4, -45, 5000, dtype=torch.float64), torch.tensor([-math.log(2), -0.0])])
    x = sweep.to(dtype).requires_grad_()
    values = log1mexp(x)
    values.backward(torch.ones_like(values))
    assert x.grad is not None
    for tensor in (values, x.grad):
        assert torch.isfinite(tensor).all()
        assert (tensor <= 0).all()
    falling = values.detach()[:5000].double()
    assert (falling.diff() <= 4 * torch.finfo(dtype).eps * falling[1:].abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_of_log1mexp(dtype: torch.dtype) -> None:
    """-1 / (exp(-x) - 1) wherever x is not cut, also where the two usual formulas meet (-ln 2)."""
    points = [*torch.linspace(-60, -0.01, 400).tolist(), -0.693, -0.6931, -math.log(2), -0.6932, -1e-6, -1e-11]
    x = torch.tensor(points, dtype=dtype).requires_grad_()
    log1mexp(x).sum().backward()
    exact = x.detach().double().requires_grad_()
    ref.log1mexp(exact).sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    assert ((x.grad.double() / exact.grad - 1).abs() <= TOLERANCE[dtype]).all()


# ------------------------------------------------------------------------------------------------------------- DRDO


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
def test_drdo_follows_its_equation(rule: dict[str, str], gamma: float, dtype: torch.dtype) -> None:
    options = DRDO | rule | {"gamma": gamma, "alpha": 0.3, "beta": 0.2}
    wanted = ("logps",) if rule["student_reward"] == "implicit" else ("logps", "rewards")
    compare(
        lambda inputs: drdo(inputs, **options),
        lambda inputs: drdo_reference(inputs, **options),
        numbers(int(10 * gamma), dtype),
        wanted,
        dtype,
    )


def test_drdo_by_hand() -> None:
    """One pair in plain Python: log pi -1.0 and -2.0 in 2 and 4 tokens, rewards 0.5 and 0.2, oracle 3 and 1."""
    one = {"logps": [[-1.0, -2.0]], "lengths": [[2.0, 4.0]], "rewards": [[0.5, 0.2]], "oracle": [[3.0, 1.0]]}
    inputs = {name: torch.tensor(value, dtype=torch.float64) for name, value in one.items()}
    losses, metrics = drdo(inputs, **DRDO)
    weight = (1 - 1 / (1 + math.exp(-1))) ** 2
    focal = -weight * (-1.0 - math.log(1 - math.exp(-2)))
    assert metrics["focal/weight"].item() == pytest.approx(weight, rel=1e-12)
    assert metrics["focal/loss"].item() == pytest.approx(focal, rel=1e-12)
    assert losses.item() == pytest.approx((2 - 0.3) ** 2 + 0.1 * focal, rel=1e-12)
    losses, metrics = drdo(inputs, **(DRDO | {"logprob": "mean", "contrast": "product", "student_reward": "implicit"}))
    weight = 0.25  # both have -0.5 a token
    focal = -weight * (-0.5 + math.log(1 - math.exp(-0.5)))
    assert metrics["focal/loss"].item() == pytest.approx(focal, rel=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(0.1, rel=1e-12)
    assert losses.item() == pytest.approx((2 - 0.1) ** 2 + 0.1 * focal, rel=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
def test_the_focal_weight_is_not_detached(rule: dict[str, str]) -> None:
    """The gradient is that of the whole formula, and would be visibly another one with a constant weight."""
    options = DRDO | rule | {"alpha": 1.0, "beta": 0.0}  # the focal term alone depends on log pi
    inputs = numbers(5, torch.float64, 8)
    inputs["logps"] = -torch.linspace(0.2, 3.0, 16, dtype=torch.float64).reshape(8, 2).flip(0) * inputs["lengths"]
    if rule["logprob"] == "sum":
        inputs["logps"] = inputs["logps"] / inputs["lengths"]
    slopes = []
    for loss in (
        lambda i: drdo(i, **options),
        lambda i: drdo_reference(i, **options),
        lambda i: drdo_reference(i, **options, detach_weight=True),
    ):
        logps = inputs["logps"].clone().requires_grad_()
        loss(inputs | {"logps": logps})[0].sum().backward()
        slopes.append(logps.grad)
    ours, whole, detached = slopes
    assert ours is not None
    assert torch.allclose(ours, whole, rtol=1e-10, atol=1e-12)
    assert ((ours - detached).abs() > 1e-3 * detached.abs()).all(), "each response of each pair feels the weight"


def test_a_sure_pair_has_an_exact_weight() -> None:
    """(1 - p_w)^gamma where p_w is 1 to the last digit of its dtype: 1 - sigmoid would lose it."""
    for dtype, apart in ((torch.float32, 25.0), (torch.float64, 60.0)):
        inputs = numbers(1, dtype, 1) | {"logps": torch.tensor([[-1.0, -1.0 - apart]], dtype=dtype)}
        for gamma in (0.5, 1.0):
            weight = drdo(inputs, **(DRDO | {"gamma": gamma}))[1]["focal/weight"].item()
            assert weight == pytest.approx(math.exp(-gamma * apart), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
def test_drdo_is_finite_far_out(rule: dict[str, str], gamma: float, dtype: torch.dtype) -> None:
    logps = torch.tensor(list(product(EXTREMES, EXTREMES)), dtype=dtype).repeat(2, 1)
    inputs = {name: value.requires_grad_() for name, value in numbers(0, dtype, len(logps)).items()}
    inputs |= {"logps": logps.requires_grad_(), "lengths": torch.ones_like(logps).detach()}
    inputs["lengths"][len(logps) // 2 :] = 3.0
    losses, metrics = drdo(inputs, **(DRDO | rule | {"gamma": gamma}))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(value).all() for value in metrics.values())
    for name in ("logps", "rewards"):
        grad = inputs[name].grad
        assert (grad is None) == (name == "rewards" and rule["student_reward"] == "implicit")
        assert grad is None or torch.isfinite(grad).all(), name


def test_ties_are_no_wins_in_drdo() -> None:
    same = {name: value[:, :1].repeat(1, 2) for name, value in numbers(2, torch.float32, 4).items()}
    metrics = drdo(same, **DRDO)[1]
    for name in ("rewards/accuracies", "logps/accuracies", "oracle/accuracies"):
        assert metrics[name].tolist() == [0.0] * 4, name
    won = {name: value + torch.tensor([1e-3, 0.0]) for name, value in same.items()}
    metrics = drdo(won, **DRDO)[1]
    for name in ("rewards/accuracies", "logps/accuracies", "oracle/accuracies"):
        assert metrics[name].tolist() == [1.0] * 4, name


def test_gamma_0_is_a_weight_of_1() -> None:
    inputs = numbers(3, torch.float64)
    metrics = drdo(inputs, **(DRDO | {"gamma": 0.0}))[1]
    assert metrics["focal/weight"].tolist() == [1.0] * PAIRS


def test_implicit_rewards_are_sums_whatever_logprob_is() -> None:
    inputs = numbers(4, torch.float64)
    for logprob in ("sum", "mean"):
        metrics = drdo(inputs, **(DRDO | {"logprob": logprob, "student_reward": "implicit"}))[1]
        assert torch.allclose(metrics["rewards/chosen"], 0.1 * inputs["logps"][:, 0], rtol=1e-12)
        assert torch.equal(metrics["logps/rejected"], inputs["logps"][:, 1])
