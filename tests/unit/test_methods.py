"""The table of methods: every loss's arguments are what its row reads and its settings, and nothing knows a name."""

import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_methods import DRAFTS, Advantage, Divergence
from torch import Tensor

from nemo_tvkd.keys import values_of
from nemo_tvkd.losses.method import Method
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.losses.reads import POLICY, Length, LogProb, Read, both, select

ROWS = METHODS | DRAFTS
PACKAGE = Path(__file__).resolve().parents[2] / "nemo_tvkd"


def settings_of(method: Method) -> Iterator[Any]:
    """Configurations with every combination of what changes what a method reads: choices, switches, zeros."""
    default = method.config()
    options: dict[str, list[Any]] = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if isinstance(value, bool):
            options[field.name] = [False, True]
        elif values_of(field).choices:
            options[field.name] = list(values_of(field).choices)
        elif isinstance(value, float) and values_of(field).above is None:
            options[field.name] = [value, 0.0, 0.3]
    for values in itertools.product(*options.values()):
        yield dataclasses.replace(default, **dict(zip(options, values, strict=True)))


@pytest.mark.parametrize("name", ROWS)
def test_the_arguments_of_a_loss_are_its_reads_and_settings(name: str) -> None:
    method = ROWS[name]
    parameters = inspect.signature(method.function).parameters
    keys = {field.name for field in dataclasses.fields(method.config)}
    positional = {n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} <= keys
    assert not positional & keys, "a tensor or a setting, not both"
    read_at_all: set[str] = set()
    for config in settings_of(method):
        reads = method.reads(config)
        read_at_all |= reads.keys()
        assert reads.keys() <= positional
        left_out = positional - reads.keys()
        assert all(parameters[n].default is None for n in left_out), (left_out, config)
        if choice := method.choice(config):
            assert choice.partition(".")[0] == method.loss.partition(".")[0]
    assert read_at_all == positional


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_whole(name: str) -> None:
    method = METHODS[name]
    assert method.config().name == name
    assert method.metrics[0] == "loss"
    assert set(method.spread) <= set(method.metrics)
    assert {each for both_names in method.correlations.values() for each in both_names} <= set(method.spread)
    assert method.summary
    assert method.rows in ("pairs", "examples")


def test_what_frozen_models_are_asked() -> None:
    asked = {name: sorted(method.frozen(method.config())) for name, method in ROWS.items()}
    assert asked == {
        "tvkd": ["teacher"],
        "dpo": ["reference"],
        "simpo": [],
        "sft": [],
        "reward": [],
        "drdo": ["oracle"],
        "edpo": ["oracle", "reference"],
        "kd": ["teacher"],
        "adpa": ["teacher", "teacher_reference"],
    }
    heads = {name: sorted(method.heads(method.config())) for name, method in METHODS.items()}
    assert heads["reward"] == heads["drdo"] == ["lm", "reward"]
    assert heads["simpo"] == ["lm"]
    assert METHODS["reward"].heads(METHODS["reward"].config(alpha_sft=0)) == {"reward"}


def test_no_consumer_knows_a_method_by_name() -> None:
    """Outside losses/, no module compares a method's name or names one as a key of the table."""
    named = re.compile(r"algorithm\.name\s*(==|!=|in\b)|METHODS\[\"")
    places = [file for file in PACKAGE.rglob("*.py") if "losses" not in file.parts and named.search(file.read_text())]
    assert {file.parent.name for file in places} <= {"bench"}, "bench compares DPO with TVKD"


def test_the_table_needs_no_torch() -> None:
    code = "import sys, nemo_tvkd.losses.methods; assert not {'torch', 'numpy', 'hydra', 'nemo'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a toy consumer: one process, dense logits, two models ------------------------------------------------------------


class Toy:
    """Answers reads from dense log-probabilities of each model at each response's states, N responses of T tokens."""

    def __init__(self, models: Mapping[str, Tensor], labels: Tensor) -> None:
        self.models, self.labels = models, labels

    def answer(self, read: Read) -> Tensor:
        policy, others = self.models[POLICY], [self.models[name] for name in read.frozen]
        if isinstance(read.what, LogProb):
            numbers = policy.gather(2, self.labels[..., None]).sum((1, 2))
        elif isinstance(read.what, Length):
            numbers = torch.full((len(policy),), policy.size(1), dtype=policy.dtype)
        elif isinstance(read.what, Divergence):
            numbers = (others[0].exp() * (others[0] - policy)).sum((1, 2))
        else:
            assert isinstance(read.what, Advantage)
            top = others[0].topk(read.what.top, dim=2).indices
            numbers = (policy.exp() * (others[0] - others[1])).gather(2, top).sum((1, 2))
        return select(numbers, read.side)


@pytest.fixture
def toy() -> Toy:
    generator = torch.Generator().manual_seed(0)
    names = (POLICY, "teacher", "teacher_reference")
    logits = {name: torch.randn(4, 5, 11, generator=generator, dtype=torch.float64) for name in names}
    models = {name: z.requires_grad_(name == POLICY).log_softmax(2) for name, z in logits.items()}
    return Toy(models, torch.randint(11, (4, 5), generator=generator))


@pytest.mark.parametrize(("name", "settings"), [("kd", {"sft_weight": 0.5}), ("adpa", {"top": 3})])
def test_drafts_of_token_level_methods(toy: Toy, name: str, settings: dict[str, Any]) -> None:
    """The row alone leads from models to [B] losses with gradients: no consumer is changed for a method."""
    method = DRAFTS[name]
    config = method.config(**settings)
    terms = {argument: toy.answer(read) for argument, read in method.reads(config).items()}
    losses, _ = method.compute(terms, config)
    assert losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses.sum(), toy.models[POLICY])
    assert gradient[:2].norm() > 0, "the chosen responses"
    assert (gradient[2:].norm() > 0) == (name == "adpa"), "student-written responses in the place of the rejected"
    policy, teacher, _ = toy.models.values()
    if name == "kd":
        kl = (teacher.exp() * (teacher - policy)).sum((1, 2))[:2] / 5
        nll = -policy.gather(2, toy.labels[..., None]).sum((1, 2))[:2] / 5
        assert torch.allclose(losses, 0.1 * kl + 0.5 * nll)


def test_both_names_two_arguments() -> None:
    assert both("logps", LogProb()) == {
        "chosen_logps": Read(LogProb(), side="chosen"),
        "rejected_logps": Read(LogProb(), side="rejected"),
    }
