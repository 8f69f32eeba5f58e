"""The reference's losses, gradients and training (tests/reference.py) checked against first principles."""

from __future__ import annotations

import copy
import math

import pytest
import reference as ref
import torch
from float64 import equal
from transformers import LlamaForCausalLM, PreTrainedModel

FORMS = ("potential_difference", "next_value")
TERMINALS = ("bootstrap", "zero")


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return ref.tiny_llama(0)


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return ref.tiny_llama(1, hidden=48, layers=3, kv_heads=4)


@pytest.fixture(scope="module")
def pairs() -> list[ref.RefPair]:
    return ref.random_pairs(0, 4)


# ------------------------------------------------------------------------------------------------------------ losses


def test_dpo_of_the_reference_is_ln_2(student: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    for smoothing in (0.0, 0.2):
        loss, metrics = ref.dpo_loss(student, student, pairs, beta=0.3, label_smoothing=smoothing)
        equal(loss.detach(), math.log(2.0))
        assert metrics["rewards/margins"] == metrics["rewards/accuracies"] == 0.0


def test_dpo_by_hand(student: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """Plain Python over the four log-probabilities of each pair, with smoothing."""
    other = ref.tiny_llama(9)
    expected, margins = [], []
    for p in pairs:
        won, lost, ref_won, ref_lost = (
            ref.response_logp(m, p.prompt, y).item() for m in (student, other) for y in (p.chosen, p.rejected)
        )
        margins.append(0.3 * ((won - ref_won) - (lost - ref_lost)))
        expected.append(0.9 * math.log1p(math.exp(-margins[-1])) + 0.1 * math.log1p(math.exp(margins[-1])))
    loss, metrics = ref.dpo_loss(student, other, pairs, beta=0.3, label_smoothing=0.1)
    equal(loss.detach(), sum(expected) / len(pairs))
    equal(metrics["rewards/margins"], sum(margins) / len(pairs))
    equal(metrics["rewards/accuracies"], sum(m > 0 for m in margins) / len(pairs))


def test_tvkd_without_a_teacher_is_reference_free_dpo(
    student: PreTrainedModel, teacher: PreTrainedModel, pairs: list[ref.RefPair]
) -> None:
    """terminal=zero with gamma=1, and alpha=0, both leave -log sigmoid(beta (log pi_w - log pi_l))."""
    free, free_metrics = ref.reference_free_dpo_loss(student, pairs, 0.2)
    for kind in ref.STATE_KINDS:
        loss, metrics = ref.tvkd_loss(student, teacher, pairs, beta=0.2, alpha=0.7, kind=kind, terminal="zero")
        equal(loss.detach(), free.detach())
        equal(metrics["shaping/margins"], 0.0)
    equal(ref.tvkd_loss(student, teacher, pairs, beta=0.2, alpha=0.0)[0].detach(), free.detach())
    with_teacher, _ = ref.tvkd_loss(student, teacher, pairs, beta=0.2, alpha=0.7)
    assert (with_teacher - free).abs() > 1e-3
    bare, _ = ref.tvkd_loss(student, teacher, pairs, beta=0.2, alpha=0.0, reference=teacher)
    equal(bare.detach(), ref.dpo_loss(student, teacher, pairs, beta=0.2)[0].detach())
    assert free_metrics.keys() <= metrics.keys()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("kind", [*ref.STATE_KINDS, *ref.ACTION_KINDS])
def test_tvkd_by_hand(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    pairs: list[ref.RefPair],
    kind: str,
    form: str,
    terminal: str,
) -> None:
    """The loss from log-probabilities and a plain Python double sum; tau is beta unless given."""
    beta, alpha, gamma = 0.4, 0.7, 0.9
    for tau in (None, 1.0):
        total, shaped = 0.0, 0.0
        for p in pairs:
            margin = 0.0
            for sign, y in ((1, p.chosen), (-1, p.rejected)):
                v = ref.state_values(teacher, p.prompt, y, kind, tau or beta).tolist()
                if kind in ref.STATE_KINDS:
                    if terminal == "zero":
                        v[len(y)] = 0.0
                    keep = 1.0 if form == "potential_difference" else 0.0
                    v = [gamma * v[t + 1] - keep * v[t] for t in range(len(y))]
                assert len(v) == len(y)
                shaped += sign * sum(v) / len(pairs)
                margin += sign * (beta * ref.response_logp(student, p.prompt, y).item() - alpha * sum(v))
            total += math.log1p(math.exp(-margin)) / len(pairs)
        loss, metrics = ref.tvkd_loss(
            student,
            teacher,
            pairs,
            beta=beta,
            alpha=alpha,
            kind=kind,
            form=form,
            terminal=terminal,
            gamma=gamma,
            temperature=tau,
        )
        equal(loss.detach(), total)
        equal(metrics["shaping/margins"], shaped)
        equal(metrics["rewards/margins"], metrics["rewards/chosen"] - metrics["rewards/rejected"])


def test_sft_is_a_token_mean(student: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """All response tokens weigh the same; a model with a zero output layer pays ln |V| for each."""
    examples = [(p.prompt, p.chosen) for p in pairs]
    lengths = [len(y) for _, y in examples]
    singles = [ref.sft_loss(student, [e]).item() for e in examples]
    expected = sum(n * s for n, s in zip(lengths, singles, strict=True)) / sum(lengths)
    equal(ref.sft_loss(student, examples).detach(), expected)
    flat = ref.tiny_llama(0)
    flat.lm_head.weight.data.zero_()
    equal(ref.sft_loss(flat, examples).detach(), math.log(flat.config.vocab_size))


# -------------------------------------------------------------------------------------------- gradients and training


@pytest.mark.parametrize("tie", [False, True])
def test_gradients_by_finite_differences(teacher: PreTrainedModel, pairs: list[ref.RefPair], tie: bool) -> None:
    """A central difference along a random direction agrees to 1e-8, which float32 anywhere would not allow."""
    model = ref.tiny_llama(3, tie=tie)
    loss, _ = ref.tvkd_loss(model, teacher, pairs, beta=0.2, alpha=0.7)
    grads = ref.gradients(loss, model)
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert ("lm_head.weight" in grads) is not tie
    assert all(g.dtype == torch.float64 and g.abs().max() > 0 for g in grads.values())
    generator = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(g.shape, generator=generator, dtype=torch.float64) for name, g in grads.items()}
    sides = []
    for step in (1e-5, -1e-5):
        twin = copy.deepcopy(ref.as_float64(model))
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p += step * direction[name]
        sides.append(ref.tvkd_loss(twin, teacher, pairs, beta=0.2, alpha=0.7)[0].item())
    slope = sum((g * direction[name]).sum().item() for name, g in grads.items())
    assert abs(slope) > 1e-2
    assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_gradients_find_the_right_model(student: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """Sums of losses add up, the frozen model gets none, and the caller's .grad stays empty."""
    frozen = ref.tiny_llama(9)
    one, _ = ref.dpo_loss(student, frozen, pairs[:2], beta=0.2)
    two = ref.sft_loss(student, [(p.prompt, p.chosen) for p in pairs])
    both, first, second = (ref.gradients(loss, student) for loss in (one + two, one, two))
    for name in both:
        equal(both[name], first[name] + second[name])
    with pytest.raises(ValueError, match="does not depend"):
        ref.gradients(one, frozen)
    assert all(p.grad is None for p in student.parameters())


def test_adamw_first_step_by_hand(student: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """Step 1 of AdamW: theta (1 - lr wd) - lr g / (|g| + eps), g clipped, no decay on 1-D parameters."""
    examples = [(p.prompt, p.chosen) for p in pairs]
    before = ref.sft_loss(student, examples)
    grads = ref.gradients(before, student)
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in grads.values()))
    moved = copy.deepcopy(ref.as_float64(student))
    lr, decay, clip, eps = 1e-2, 0.1, 0.5, 1e-3
    assert norm > clip
    with torch.no_grad():
        for name, p in moved.named_parameters():
            g = grads[name] * clip / (norm + 1e-6)
            p -= lr * (decay if p.ndim > 1 else 0.0) * p + lr * g / (g.abs() + eps)
    losses = ref.adamw_losses(
        student,
        [lambda model: ref.sft_loss(model, examples)] * 2,
        lr=[lr, lr],
        betas=(0.9, 0.98),
        eps=eps,
        weight_decay=decay,
        clip_grad=clip,
    )
    equal(losses[0], before.item())
    equal(losses[1], ref.sft_loss(moved, examples).item(), 1e-9)
    assert losses[1] < losses[0]
    equal(ref.sft_loss(student, examples).detach(), before.item())


# -------------------------------------------------------------------------------------------------------------- data


def test_random_pairs_and_models_are_reproducible() -> None:
    """Seeds decide everything, the global RNG is left alone, and the awkward cases are there."""
    state = torch.random.get_rng_state()
    pairs = ref.random_pairs(3, 6)
    assert pairs == ref.random_pairs(3, 6)
    assert pairs != ref.random_pairs(4, 6)
    one, same, other = ref.tiny_llama(1), ref.tiny_llama(1), ref.tiny_llama(2)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(pairs[0].prompt) == 40
    assert [len(p.chosen) for p in pairs].count(1) == 2
    assert [len(p.rejected) for p in pairs].count(1) == 2
    for p in pairs:
        assert p.chosen[-1] == p.rejected[-1] == 2
        assert len(p.chosen) != len(p.rejected)
        assert all(3 <= t < 96 for t in p.prompt + p.chosen[:-1] + p.rejected[:-1])
