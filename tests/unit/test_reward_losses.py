"""The losses of reward models and e-DPO as pure functions: values, gradients, extreme inputs; metrics (DRDO's too)."""

import math
from itertools import product

import pytest
import reward_formulas as ref
import torch
from loss_inputs import DTYPES, EXTREMES, PAIRS, Numbers, columns, compare, numbers
from torch import Tensor

from nemo_tvkd.losses import dpo
from nemo_tvkd.losses.drdo import drdo_loss
from nemo_tvkd.losses.edpo import edpo_loss, oracle_errors
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.losses.reward import reward_loss

# ---------------------------------------------------------------------------------------------------- reward models


def reward(inputs: Numbers, sft: bool = True, margins: bool = False, **rule: float) -> tuple[Tensor, Numbers]:
    options = (inputs["logps"][:, 0], inputs["lengths"][:, 0]) if sft else (None, None)
    return reward_loss(*columns(inputs["rewards"]), *options, inputs["margins"][:, 0] if margins else None, **rule)


def reward_reference(inputs: Numbers, sft: bool = True, margins: bool = False, **rule: float) -> tuple[Tensor, Numbers]:
    options = (inputs["logps"][:, 0], inputs["lengths"][:, 0]) if sft else (None, None)
    return ref.reward_pairs(inputs["rewards"], *options, inputs["margins"][:, 0] if margins else None, **rule)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("center", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("alpha_sft", [0.0, 0.01, 2.0])
def test_the_reward_loss_follows_its_equation(
    alpha_sft: float, center: float, margins: bool, dtype: torch.dtype
) -> None:
    rule = {"alpha_sft": alpha_sft, "center_rewards_coefficient": center}
    sft = alpha_sft > 0
    compare(
        lambda inputs: reward(inputs, sft, margins, **rule),
        lambda inputs: reward_reference(inputs, sft, margins, **rule),
        numbers(7, dtype),
        ("rewards", "logps") if sft else ("rewards",),
        dtype,
    )


PLAIN = {"alpha_sft": 0.0, "center_rewards_coefficient": 0.0}


def test_the_reward_loss_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    inputs = numbers(0, torch.float64, 1) | {"rewards": rewards, "logps": rewards - 7, "lengths": rewards + 2}
    losses, metrics = reward(inputs, alpha_sft=0.5, center_rewards_coefficient=0.25)
    assert losses.item() == pytest.approx(math.log1p(math.exp(-1)) + 0.25 + 0.5 * 6 / 3, rel=1e-12)
    assert metrics["sft/loss"].item() == pytest.approx(2.0, rel=1e-12)
    tie = reward_loss(torch.ones(2), torch.ones(2), **PLAIN)
    assert tie[0].tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
    assert tie[1]["rewards/accuracies"].tolist() == [0.0, 0.0], "a tie is no win"
    assert tie[1]["sft/loss"].tolist() == [0.0, 0.0]


def test_margins_are_a_handicap_of_the_chosen_reward() -> None:
    """The loss with margins m is that of r_w - m; the reported rewards and accuracies are without it."""
    inputs = numbers(8, torch.float64)
    handicap = torch.stack([inputs["margins"][:, 0], torch.zeros(PAIRS, dtype=torch.float64)], 1)
    losses, metrics = reward(inputs, margins=True, **PLAIN)
    shifted, _ = reward(inputs | {"rewards": inputs["rewards"] - handicap}, **PLAIN)
    assert torch.allclose(losses, shifted, rtol=1e-12)
    without, plain_metrics = reward(inputs, **PLAIN)
    assert (losses > without).all(), "these margins are positive"
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert torch.equal(metrics[name], plain_metrics[name]), name


def test_the_centring_gradient() -> None:
    """c (r_w + r_l)^2 adds 2 c (r_w + r_l) to the slope of either reward, and nothing else."""
    slopes = []
    for coefficient in (0.0, 0.3):
        inputs = numbers(9, torch.float64)
        inputs["rewards"].requires_grad_()
        reward(inputs, alpha_sft=0.01, center_rewards_coefficient=coefficient)[0].sum().backward()
        slopes.append(inputs["rewards"].grad)
    total = numbers(9, torch.float64)["rewards"].sum(1, keepdim=True)
    assert torch.allclose(slopes[1] - slopes[0], (2 * 0.3 * total).expand(-1, 2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reward_loss_is_finite_far_out(dtype: torch.dtype) -> None:
    sizes = [-1e4, 0.0, 1e-8, 1e4]
    rewards = torch.tensor(list(product(sizes, sizes)), dtype=dtype).requires_grad_()
    logps = torch.tensor(EXTREMES, dtype=dtype).repeat(4)[: len(rewards)].requires_grad_()
    losses, metrics = reward_loss(
        *columns(rewards), logps, torch.ones_like(logps), alpha_sft=0.01, center_rewards_coefficient=0.01
    )
    losses.sum().backward()
    assert rewards.grad is not None
    assert logps.grad is not None
    for tensor in (losses, rewards.grad, logps.grad, *metrics.values()):
        assert torch.isfinite(tensor).all()


# ------------------------------------------------------------------------------------------------------------ e-DPO


def edpo_arguments(inputs: Numbers, oracles: int) -> tuple[Tensor, ...]:
    margins = numbers(99, inputs["logps"].dtype, len(inputs["logps"]) * oracles)["oracle"]
    delta = (margins[:, 0] - margins[:, 1]).reshape(oracles, -1)
    return *columns(inputs["logps"]), *columns(inputs["reference"].detach()), delta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("oracles", [1, 3])
def test_edpo_follows_its_equation(oracles: int, dtype: torch.dtype) -> None:
    inputs = numbers(10, dtype)
    delta = edpo_arguments(inputs, oracles)[4].double()
    compare(
        lambda given: edpo_loss(*edpo_arguments(given, oracles), beta=0.4),
        lambda given: ref.edpo_pairs(given["logps"], given["reference"], delta, beta=0.4),
        inputs,
        ("logps",),
        dtype,
    )


def test_edpo_by_hand() -> None:
    """Rewards 0.5 * (-1 + 3) = 1 and 0.5 * (-2 + 1) = -0.5; oracles say 3 and 1, on average 2."""
    one = [torch.tensor([value], dtype=torch.float64) for value in (-1.0, -2.0, -3.0, -1.0)]
    delta = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    losses, metrics = edpo_loss(*one, delta, beta=0.5)
    assert losses.tolist() == pytest.approx([(2 - 1.5) ** 2])
    assert metrics["oracle/margins"].tolist() == [2.0]
    assert oracle_errors(*one, delta, beta=0.5).tolist() == pytest.approx([1.5**2, 0.5**2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_oracle_errors_are_each_oracles_own(dtype: torch.dtype) -> None:
    inputs = numbers(11, dtype)
    arguments = edpo_arguments(inputs, 4)
    errors = oracle_errors(*arguments, beta=0.4)
    assert errors.shape == (4,)
    exact = ref.edpo_errors(inputs["logps"].double(), inputs["reference"].double(), arguments[4].double(), beta=0.4)
    assert errors.tolist() == pytest.approx(exact.tolist(), rel=1e-5 if dtype == torch.float32 else 1e-10)
    for k in range(4):
        alone, _ = edpo_loss(*arguments[:4], arguments[4][k : k + 1], beta=0.4)
        assert errors[k].item() == pytest.approx(alone.sum().item(), rel=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edpo_is_finite_far_out(dtype: torch.dtype) -> None:
    logps = torch.tensor(list(product(EXTREMES, EXTREMES)), dtype=dtype).requires_grad_()
    base = logps.detach().flip(0)
    delta = torch.zeros(2, len(logps), dtype=dtype)
    delta[1] = 1e4
    losses, metrics = edpo_loss(*columns(logps), *columns(base), delta, beta=1.0)
    losses.sum().backward()
    assert logps.grad is not None
    for tensor in (losses, logps.grad, *metrics.values()):
        assert torch.isfinite(tensor).all()
    assert torch.isfinite(oracle_errors(*columns(logps.detach()), *columns(base), delta, beta=1.0)).all()


def test_ties_are_no_wins_in_edpo() -> None:
    same = torch.tensor([-3.0, -4.0])
    metrics = edpo_loss(same, same, same, same, torch.zeros(1, 2), beta=0.1)[1]
    assert metrics["rewards/accuracies"].tolist() == metrics["oracle/accuracies"].tolist() == [0.0, 0.0]


# ---------------------------------------------------------------------------------------------------------- metrics

DRDO = {"alpha": 0.1, "gamma": 2.0, "beta": 0.1, "logprob": "sum", "contrast": "ratio", "student_reward": "head"}
REWARDS = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
DISTILLATION = {"reward_distillation/mse", "oracle/margins", "oracle/accuracies"}
NAMES = {
    "reward": {"loss", "sft/loss", *REWARDS},
    "drdo": {
        *("loss", "logps/chosen", "logps/rejected", "logps/accuracies", "focal/weight", "focal/loss"),
        *REWARDS,
        *DISTILLATION,
    },
    "edpo": {*dpo.METRICS, *DISTILLATION},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_metrics_are_those_of_the_table(name: str) -> None:
    """Each [B]; the method's table lists exactly what its loss reports, `loss` first."""
    inputs = numbers(12, torch.float32)
    losses, metrics = {
        "reward": lambda: reward(inputs, **PLAIN),
        "drdo": lambda: drdo_loss(
            *(half for name in ("logps", "lengths", "oracle", "rewards") for half in columns(inputs[name])), **DRDO
        ),
        "edpo": lambda: edpo_loss(*edpo_arguments(inputs, 2), beta=0.1),
    }[name]()
    assert set(metrics) == NAMES[name]
    assert {"loss", *REWARDS} <= set(metrics), "the names that other methods report too"
    assert all(value.shape == losses.shape == (PAIRS,) for value in metrics.values())
    assert torch.equal(metrics["loss"], losses)
    method = METHODS[name]
    assert method.metrics[0] == "loss"
    assert set(method.metrics) == set(metrics)
    assert method.pairs
    assert not method.per_token
