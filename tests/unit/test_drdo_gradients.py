"""experiments/drdo_gradients.py on a tiny student: its paths add up to the loss of Eq. 7, its table has two rows."""

import sys
from types import SimpleNamespace

import drdo_gradients as experiment
import pytest
import torch
from bad_input import JUDGED, World
from float64 import as_float64
from transformers import AutoModelForCausalLM

OPTIONS = SimpleNamespace(alpha=0.3, gamma=2.0)


@pytest.mark.parametrize("logprob", ["sum", "mean"])
def test_the_paths_add_up(world: World, logprob: str) -> None:
    model = as_float64(AutoModelForCausalLM.from_pretrained(world.student).eval())
    head = torch.linspace(-1, 1, model.config.hidden_size, dtype=torch.float64).requires_grad_()
    rows = JUDGED[:2]
    losses = []
    for row in rows:
        (log_w, n_w, r_w), (log_l, n_l, r_l) = (
            experiment.responses(model, world.tokenizer, head, row, side) for side in ("chosen", "rejected")
        )
        if logprob == "mean":
            log_w, log_l = log_w / n_w, log_l / n_l
        focal = torch.sigmoid(log_l - log_w) ** OPTIONS.gamma
        contrast = log_w - torch.log(1 - log_l.exp())
        distance = (row["chosen_reward"] - row["rejected_reward"] - (r_w - r_l)) ** 2
        losses.append(distance - OPTIONS.alpha * focal * contrast)
    paths = experiment.paths(model, world.tokenizer, head, rows, OPTIONS, logprob)
    parts = [paths[name].mean() for name in ("distillation", "contrast", "focal weight")]
    parameters = [*model.parameters(), head]
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    for gradient, slopes in zip(expected, zip(*(_gradients(p, parameters) for p in parts), strict=True), strict=True):
        assert torch.allclose(sum(slopes), gradient, rtol=1e-8, atol=1e-12)


def _gradients(loss: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if slope is None else slope for p, slope in zip(parameters, slopes, strict=True)]


def test_the_table(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["drdo_gradients.py", str(world.student), str(world.judged), "--count", "2"])
    experiment.main()
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("2 pairs, alpha 0.1, gamma 2.0")
    assert [row.split()[0] for row in rows] == ["sum", "mean"]
    assert all(float(number) >= 0 for row in rows for number in row.split()[1:4])
