"""The loss functions by hand: what telescopes, what vanishes, what is refused."""

import math
from typing import Any

import pytest
import torch

from nemo_tvkd.losses.dpo import dpo_loss
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.losses.tvkd import tvkd_loss
from nemo_tvkd.parallel.statistic import Statistic


def shaping(kind: str = "soft_value", **rule: Any) -> Shaping:
    return Shaping(Statistic(kind), **rule)


VALUES = torch.tensor([3.0, -1.0, 4.0, 1.5])  # V(s_1) .. V(s_4), three response tokens


@pytest.mark.parametrize(
    ("form", "terminal", "gamma", "expected"),
    [
        ("potential_difference", "bootstrap", 1.0, 1.5 - 3.0),
        ("potential_difference", "zero", 1.0, -3.0),
        ("potential_difference", "bootstrap", 0.5, 0.5 * (-1 + 4 + 1.5) - (3 - 1 + 4)),
        ("potential_difference", "zero", 0.5, 0.5 * (-1 + 4) - (3 - 1 + 4)),
        ("next_value", "bootstrap", 1.0, -1 + 4 + 1.5),
        ("next_value", "zero", 0.5, 0.5 * (-1 + 4)),
    ],
)
def test_shaping_by_hand(form: str, terminal: str, gamma: float, expected: float) -> None:
    psi = shaping(form=form, terminal=terminal, gamma=gamma).total(VALUES)
    assert psi.dtype == torch.float64
    assert psi.item() == pytest.approx(expected, abs=1e-12)


def test_psi_telescopes() -> None:
    """gamma = 1: the sum is V(s_{T+1}) - V(s_1), also for 2,000 fp32 values of very different size."""
    values = torch.randn(2001, generator=torch.Generator().manual_seed(0)) * 1e3
    psi = shaping(form="potential_difference", terminal="bootstrap", gamma=1.0).total(values)
    assert psi.item() == pytest.approx((values[-1].double() - values[0].double()).item(), abs=1e-6)


@pytest.mark.parametrize("terminal", ["bootstrap", "zero"])
@pytest.mark.parametrize("length", [1, 2, 300])
def test_the_ends_are_enough_for_what_telescopes(terminal: str, length: int) -> None:
    """V(s_1) and V(s_{T+1}) alone give what all values give; with another gamma or form they do not."""
    values = 20 + 3 * torch.randn(length + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    ends = values[[0, -1]]
    rule = {"form": "potential_difference", "terminal": terminal, "gamma": 1.0}
    assert shaping(form="potential_difference", gamma=1.0).telescopes
    psi, of_ends = (shaping(**rule).total(v).item() for v in (values, ends))
    assert of_ends == pytest.approx(psi, rel=0, abs=1e-12)
    for change in ({"gamma": 0.9}, {"form": "next_value"}):
        assert not shaping(kind="soft_value", **{"form": rule["form"], "gamma": 1.0, **change}).telescopes
        psi, of_ends = (shaping(**{**rule, **change}).total(v).item() for v in (values, ends))
        assert (of_ends != pytest.approx(psi, rel=1e-3)) == (length > 1)
    assert not shaping(kind="logit", form="potential_difference", gamma=1.0).telescopes


def test_a_single_token() -> None:
    one = torch.tensor([2.0, 5.0])
    assert shaping(form="next_value", terminal="zero", gamma=1.0).total(one) == 0
    assert shaping(form="potential_difference", terminal="bootstrap", gamma=1.0).total(one) == 3


VANISHING = {"kind": "soft_value", "form": "potential_difference", "terminal": "zero", "gamma": 1.0, "alpha": 0.7}


@pytest.mark.parametrize(
    ("change", "vanishes"),
    [
        ({}, True),
        ({"kind": "max"}, True),
        ({"kind": "logit"}, False),
        ({"terminal": "bootstrap"}, False),
        ({"gamma": 0.99}, False),
        ({"form": "next_value"}, False),
        ({"form": "next_value", "gamma": 0.0}, True),
        ({"terminal": "bootstrap", "alpha": 0.0}, True),
    ],
)
def test_when_the_teacher_vanishes(change: dict, vanishes: bool) -> None:
    """The rule against the loss itself: it vanishes exactly where no choice of values moves the loss of a pair."""
    rule = {**VANISHING, **change}
    assert bool(shaping(**{k: v for k, v in rule.items() if k != "alpha"}).vanishes(rule["alpha"])) == vanishes
    losses = set()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(1, generator=generator)  # V(s_1) is the same for both responses
        chosen, rejected = (torch.cat([start, torch.randn(n, generator=generator)]) for n in (3, 5))
        shape = {key: rule[key] for key in ("form", "terminal", "gamma")}
        if rule["kind"] == "logit":
            psi = [chosen[1:].double().sum(), rejected[1:].double().sum()]
        else:
            psi = [shaping(**shape).total(v) for v in (chosen, rejected)]
        loss, _ = tvkd_loss(torch.zeros(1), torch.zeros(1), psi[0][None], psi[1][None], beta=0.1, alpha=rule["alpha"])
        losses.add(round(loss.item(), 9))
    assert (losses == {round(math.log(2), 9)}) == vanishes


def test_dpo_at_its_reference_is_ln_2() -> None:
    logps = torch.tensor([-5.0, -70.0])
    losses, metrics = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.1)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert metrics["rewards/accuracies"].tolist() == [0.0, 0.0], "a tie is no win"


def test_losses_are_finite_far_out() -> None:
    big = torch.tensor([1e6]), torch.tensor([-1e6])
    for chosen, rejected in (big, big[::-1]):
        chosen = chosen.clone().requires_grad_()
        losses, _ = tvkd_loss(chosen, rejected, torch.zeros(1), torch.zeros(1), beta=1.0, alpha=1.0)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(chosen.grad).all()


def test_every_method_reports_its_metrics() -> None:
    for name, method in METHODS.items():
        assert method.metrics[0] == "loss", name
        assert set(method.spread) <= set(method.metrics)
