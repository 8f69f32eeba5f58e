"""The reference of reward models, DRDO and e-DPO (tests/reference_rewards.py) checked against first principles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import reward_formulas
import torch
from float64 import equal
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

HIDDEN = 32


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return ref.tiny_llama(0, tie=True)


@pytest.fixture(scope="module")
def oracle() -> LlamaForCausalLM:
    return ref.tiny_llama(1, hidden=48, layers=3, kv_heads=4)


@pytest.fixture(scope="module")
def head() -> Tensor:
    return rewards.random_head(5, HIDDEN).double()


@pytest.fixture(scope="module")
def pairs() -> list[ref.RefPair]:
    return ref.random_pairs(0, 4)


@pytest.fixture(scope="module")
def judged(oracle: PreTrainedModel, pairs: list[ref.RefPair]) -> Tensor:
    return rewards.oracle_rewards(oracle, rewards.random_head(6, 48), pairs)


# ---------------------------------------------------------------------------------------------------------- rewards


def test_a_reward_is_what_hugging_faces_classifier_says(oracle: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """Its score at the last token that is no padding: the end token."""
    head = rewards.random_head(6, 48)
    classifier = rewards.as_classifier(oracle, head)
    by_classifier = rewards.oracle_rewards(classifier, head, pairs)
    equal(rewards.oracle_rewards(oracle, head, pairs), by_classifier)
    for p, row in zip(pairs, by_classifier, strict=True):
        for y, value in zip((p.chosen, p.rejected), row, strict=True):
            with torch.no_grad():
                theirs = classifier(input_ids=torch.tensor([[*p.prompt, *y]])).logits
            assert theirs.shape == (1, 1)
            assert theirs.item() == pytest.approx(value.item(), abs=1e-4), "theirs is in float32"
    assert by_classifier.std() > 0.1


def test_a_reward_reads_the_end_token_and_all_before_it(
    student: PreTrainedModel, head: Tensor, pairs: list[ref.RefPair]
) -> None:
    """Changing any token changes it, the last one included; the head is linear."""
    p = pairs[2]
    base = rewards.reward(student, head, p.prompt, p.chosen).item()
    for place in (0, len(p.chosen) - 1):
        changed = list(p.chosen)
        changed[place] = 50 if changed[place] != 50 else 51
        assert rewards.reward(student, head, p.prompt, changed).item() != pytest.approx(base, abs=1e-6)
    equal(rewards.reward(student, 3 * head, p.prompt, p.chosen).detach(), 3 * base)


def test_log1mexp_of_the_reference() -> None:
    x = torch.tensor([-math.log(2), -1e-8, -50.0, -1000.0, 0.0], dtype=torch.float64)
    expected = [-math.log(2), math.log(-math.expm1(-1e-8)), -math.exp(-50), 0.0, math.log(1e-12)]
    equal(reward_formulas.log1mexp(x), torch.tensor(expected, dtype=torch.float64))
    x = -torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 - 0.01
    assert torch.autograd.gradcheck(reward_formulas.log1mexp, (x.requires_grad_(),))


# ----------------------------------------------------------------------------------------------------------- losses


def plain_numbers(model: PreTrainedModel, head: Tensor, p: ref.RefPair) -> list[tuple[float, float]]:
    """(log pi, reward) of the chosen and the rejected response as Python floats."""
    return [
        (ref.response_logp(model, p.prompt, y).item(), rewards.reward(model, head, p.prompt, y).item())
        for y in (p.chosen, p.rejected)
    ]


def test_reward_loss_by_hand(student: PreTrainedModel, head: Tensor, pairs: list[ref.RefPair]) -> None:
    margins = [0.5, 0.0, 1.0, 2.0]
    expected = 0.0
    for m, p in zip(margins, pairs, strict=True):
        (lw, rw), (_, rl) = plain_numbers(student, head, p)
        expected += math.log1p(math.exp(-(rw - rl - m))) + 0.2 * (rw + rl) ** 2 - 0.3 * lw / len(p.chosen)
    options: dict[str, Any] = {"alpha_sft": 0.3, "center_rewards_coefficient": 0.2, "margins": margins}
    loss, metrics = rewards.reward_loss(student, head, pairs, **options)
    equal(loss.detach(), expected / 4)
    sides = [[plain_numbers(student, head, p)[side][1] for p in pairs] for side in (0, 1)]
    equal(metrics["rewards/chosen"], sum(sides[0]) / 4)
    mean = sum(sides[1]) / 4
    equal(metrics["rewards/rejected_std"], math.sqrt(sum((r - mean) ** 2 for r in sides[1]) / 4))
    equal(metrics["rewards/accuracies"], sum(w > r for w, r in zip(*sides, strict=True)) / 4)


@pytest.mark.parametrize("contrast", ["ratio", "product"])
@pytest.mark.parametrize("logprob", ["sum", "mean"])
def test_drdo_by_hand(
    student: PreTrainedModel, head: Tensor, judged: Tensor, pairs: list[ref.RefPair], logprob: str, contrast: str
) -> None:
    for student_reward in ("head", "implicit"):
        total, mse = 0.0, 0.0
        for p, (best, worst) in zip(pairs, judged.tolist(), strict=True):
            (lw, rw), (ll, rl) = plain_numbers(student, head, p)
            margin = rw - rl if student_reward == "head" else 0.2 * (lw - ll)
            if logprob == "mean":
                lw, ll = lw / len(p.chosen), ll / len(p.rejected)
            p_w = 1 / (1 + math.exp(ll - lw))
            rest = math.log(1 - math.exp(ll))
            term = lw - rest if contrast == "ratio" else lw + rest
            mse += (best - worst - margin) ** 2 / 4
            total += ((best - worst - margin) ** 2 - 0.3 * (1 - p_w) ** 1.5 * term) / 4
        rule: dict[str, Any] = {"logprob": logprob, "contrast": contrast, "student_reward": student_reward}
        loss, metrics = rewards.drdo_loss(student, head, judged, pairs, alpha=0.3, gamma=1.5, beta=0.2, **rule)
        equal(loss.detach(), total, 1e-9)
        equal(metrics["reward_distillation/mse"], mse)
        equal(metrics["loss"], metrics["reward_distillation/mse"] + 0.3 * metrics["focal/loss"])


def test_edpo_by_hand(
    student: PreTrainedModel, oracle: PreTrainedModel, judged: Tensor, pairs: list[ref.RefPair]
) -> None:
    """Two oracles: their mean, and the better one of them over the batch (not over each pair)."""
    other = ref.tiny_llama(9)
    both = torch.stack([judged + torch.tensor([0.0, 2.0]), judged.flip(1)])
    own = [
        0.3 * math.fsum(s * ref.response_logp(m, p.prompt, y).item() for s, m, y in signs)
        for p in pairs
        for signs in [
            [(1, student, p.chosen), (-1, other, p.chosen), (-1, student, p.rejected), (1, other, p.rejected)]
        ]
    ]
    delta = [[w - r for w, r in rows] for rows in both.tolist()]
    means = [sum((d - o) ** 2 for d, o in zip(row, own, strict=True)) / 4 for row in delta]
    averaged = sum(((a + b) / 2 - o) ** 2 for a, b, o in zip(*delta, own, strict=True)) / 4
    equal(rewards.edpo_loss(student, other, both, pairs, beta=0.3)[0].detach(), averaged)
    loss, metrics = rewards.edpo_loss(student, other, both, pairs, beta=0.3, ensemble="min")
    equal(loss.detach(), min(means))
    best = delta[means.index(min(means))]
    equal(metrics["oracle/margins"], sum(best) / 4)
    pairwise = sum(min((d - o) ** 2 for d in row) for *row, o in zip(*delta, own, strict=True)) / 4
    assert pairwise < min(means) - 1e-3, "a choice by pair would be another one"


def test_correlation_is_pearsons(student: PreTrainedModel, head: Tensor, judged: Tensor, pairs: list) -> None:
    _, metrics = rewards.drdo_loss(student, head, judged, pairs)
    x = (judged[:, 0] - judged[:, 1]).tolist()
    y = [n[0][1] - n[1][1] for n in (plain_numbers(student, head, p) for p in pairs)]
    mx, my = sum(x) / 4, sum(y) / 4
    cross = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / 4
    equal(metrics[rewards.CORRELATION], cross / (metrics["oracle/margins_std"] * metrics["rewards/margins_std"]))
    flat = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    assert rewards.CORRELATION not in rewards.drdo_loss(student, head, flat, pairs)[1]
    assert rewards.CORRELATION not in rewards.drdo_loss(student, head, judged[:1], pairs[:1])[1]


# --------------------------------------------------------------------------------------------- gradients and training

LOSSES: dict[str, Callable[..., Tensor]] = {
    "reward": lambda model, head, judged, pairs: rewards.reward_loss(
        model, head, pairs, alpha_sft=0.2, center_rewards_coefficient=0.1
    )[0],
    "drdo": lambda model, head, judged, pairs: rewards.drdo_loss(model, head, judged, pairs, logprob="mean")[0],
    "drdo implicit": lambda model, head, judged, pairs: rewards.drdo_loss(
        model, None, judged, pairs, logprob="mean", contrast="product", student_reward="implicit"
    )[0],
    "edpo": lambda model, head, judged, pairs: rewards.edpo_loss(
        model, ref.tiny_llama(9), torch.stack([judged, -judged]), pairs, ensemble="min"
    )[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(
    student: PreTrainedModel, head: Tensor, judged: Tensor, pairs: list[ref.RefPair], name: str
) -> None:
    """A central difference along a random direction of all parameters, the head's included."""
    leaf = head.clone().requires_grad_()
    loss = LOSSES[name](student, leaf, judged, pairs)
    grads = ref.gradients(loss, student)
    uses_head = name in ("reward", "drdo")
    slope_of_head = torch.zeros_like(leaf)
    if uses_head:
        (slope_of_head,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert slope_of_head.abs().max() > 0
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(g.shape, generator=generator, dtype=torch.float64) for n, g in grads.items()}
    of_head = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    sides = []
    for step in (1e-5, -1e-5):
        twin = copy.deepcopy(ref.as_float64(student))
        with torch.no_grad():
            for n, p in twin.named_parameters():
                p += step * direction[n]
        sides.append(LOSSES[name](twin, head + step * of_head, judged, pairs).item())
    slope = sum((g * direction[n]).sum().item() for n, g in grads.items()) + (slope_of_head * of_head).sum().item()
    assert abs(slope) > 1e-2
    assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_the_head_trains_with_the_model(
    student: PreTrainedModel, head: Tensor, judged: Tensor, pairs: list[ref.RefPair]
) -> None:
    """`with_head` makes the head one of the parameters that AdamW moves and the gradient's norm counts."""
    model = rewards.with_head(student, head.float())
    loss = lambda m: rewards.drdo_loss(m, m.reward_head.weight, judged, pairs)[0]  # noqa: E731
    frozen = lambda m: rewards.drdo_loss(m, m.reward_head.weight.detach(), judged, pairs)[0]  # noqa: E731
    rule: dict[str, Any] = {"lr": [1e-2] * 3, "betas": (0.9, 0.999), "clip_grad": 1.0}
    moving, still = (ref.adamw_losses(model, [one] * 3, **rule) for one in (loss, frozen))
    equal(moving[0], rewards.drdo_loss(student, head, judged, pairs)[0].item(), 1e-6)
    assert moving[0] == still[0]
    assert abs(moving[2] - still[2]) > 1e-4
    assert moving[2] < moving[0]
    assert "reward_head.weight" in ref.gradients(loss(ref.as_float64(model)), model)
    assert not hasattr(student, "reward_head")
