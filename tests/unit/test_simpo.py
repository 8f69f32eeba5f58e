"""SimPO by hand: the margin, its parametrisation, what the reported reward leaves out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.dpo import dpo_loss
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.losses.simpo import simpo_loss

LOGPS = torch.tensor([[-6.0, -9.0], [-8.0, -2.0]], dtype=torch.float64)  # chosen, rejected
LENGTHS = torch.tensor([[3.0, 3.0], [2.0, 4.0]], dtype=torch.float64)  # means -2, -3 against -4, -0.5


def loss(**settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return simpo_loss(*LOGPS, *LENGTHS, **{"beta": 2.0, "gamma_beta_ratio": 0.5} | settings)


def test_by_hand() -> None:
    losses, metrics = loss()
    margins = [2.0, -2.5]
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-2 * (m - 0.5))) for m in margins])
    assert metrics["rewards/margins"].tolist() == [2 * m for m in margins], "without the margin gamma"
    assert metrics["simpo/margin_met"].tolist() == [1.0, 0.0]
    hinge, _ = loss(loss_type="hinge")
    assert hinge.tolist() == [0.0, 1 - 2 * (-2.5 - 0.5)]
    with_sft, metrics = loss(sft_weight=0.1)
    assert (with_sft - losses).tolist() == pytest.approx([0.2, 0.3])
    assert metrics["sft/loss"].tolist() == [2.0, 3.0]


def test_equal_shifts_of_the_means_change_nothing() -> None:
    shifted, _ = simpo_loss(*(LOGPS + 1.7 * LENGTHS), *LENGTHS, beta=2.0, gamma_beta_ratio=0.5)
    assert shifted.tolist() == pytest.approx(loss()[0].tolist())


def test_of_single_tokens_without_a_margin_it_is_dpo_without_a_reference() -> None:
    ones, zeros = torch.ones_like(LENGTHS), torch.zeros(2, dtype=torch.float64)
    ours, _ = simpo_loss(*LOGPS, *ones, beta=0.3, gamma_beta_ratio=0.0, label_smoothing=0.2)
    dpo, _ = dpo_loss(*LOGPS, zeros, zeros, beta=0.3, label_smoothing=0.2)
    assert ours.tolist() == pytest.approx(dpo.tolist())


def test_label_smoothing_is_refused_with_the_hinge() -> None:
    config = METHODS["simpo"].config(loss_type="hinge", label_smoothing=0.1)
    with pytest.raises(UserError, match=r"algorithm\.label_smoothing=0\.1"):
        METHODS["simpo"].check(config)
