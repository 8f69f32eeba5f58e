"""The reference implementation (tests/reference.py) checked against first principles, not against the project."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import reference as ref

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FORMS = ("potential_difference", "next_value")
TERMINALS = ("bootstrap", "zero")


@pytest.fixture(scope="module")
def student() -> ref.LlamaForCausalLM:
    return ref.tiny_llama(0)


@pytest.fixture(scope="module")
def teacher() -> ref.LlamaForCausalLM:
    return ref.tiny_llama(1, hidden=48, layers=3, kv_heads=4)


@pytest.fixture(scope="module")
def pairs() -> list[ref.RefPair]:
    return ref.random_pairs(0, 4)


def equal(actual: Tensor | float, expected: Tensor | float, tolerance: float = 1e-11) -> None:
    """Assert float64 agreement, relative to the larger of 1 and the expected size."""
    actual, expected = (torch.as_tensor(side, dtype=torch.float64) for side in (actual, expected))
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= tolerance * expected.abs().clamp(min=1.0)).all(), (actual, expected)


# ------------------------------------------------------------------------------------------------------ forward pass


@pytest.mark.parametrize(
    "model",
    [
        ref.tiny_llama(2),
        ref.tiny_llama(3, tie=True, kv_heads=1),
        ref.tiny_llama(4, rope_scaling=LLAMA3_ROPE, head_dim=12),
        ref.tiny_mistral(5, sliding_window=5),
        ref.tiny_mistral(6, sliding_window=None, head_dim=16, tie=True),
    ],
    ids=["llama", "llama-tied-mqa", "llama3-rope-head_dim", "mistral-window", "mistral-tied-head_dim"],
)
def test_float64_forward_is_transformers_forward(model: ref.PreTrainedModel) -> None:
    """The float64 copy is the same function as transformers' eager float32 model, and the logits have a real spread."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    pair = ref.random_pairs(1, 1)[0]
    mine = ref.sequence_logits(model, pair.prompt, pair.chosen)
    with torch.no_grad():
        theirs = model(torch.tensor([pair.prompt + pair.chosen])).logits[0]
    assert mine.dtype == torch.float64
    assert mine.shape == (len(pair.prompt) + len(pair.chosen), model.config.vocab_size)
    assert (mine - theirs).abs().max() < 2e-5
    assert 1.0 < mine.std(-1).mean() < 6.0
    assert model.config._attn_implementation == "eager"
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_sliding_window_and_rope_scaling_matter() -> None:
    """The two options change the logits of a long sequence: a test that compares them is not empty."""
    pair = ref.random_pairs(1, 1)[0]
    for one, other in (
        (ref.tiny_mistral(5, sliding_window=5), ref.tiny_mistral(5, sliding_window=None)),
        (ref.tiny_llama(5, rope_scaling=LLAMA3_ROPE), ref.tiny_llama(5)),
    ):
        left, right = (ref.sequence_logits(m, pair.prompt, pair.chosen)[-1] for m in (one, other))
        assert (left - right).abs().max() > 0.01


def test_states_and_logp_by_a_loop_over_prefixes(teacher: ref.PreTrainedModel) -> None:
    """s_t is the prefix (x, y_<t): a forward of each prefix alone, its last row, and plain Python sums."""
    pair = ref.random_pairs(7, 1, long_prompt=6)[0]
    twin = ref.as_float64(teacher)
    values, logit, logprob = [], [], []
    for t in range(len(pair.chosen) + 1):
        row = twin(torch.tensor([pair.prompt + pair.chosen[:t]]), use_cache=False).logits[0, -1].tolist()
        values.append(0.3 * math.log(sum(math.exp(z / 0.3) for z in row)))
        if t < len(pair.chosen):
            logit.append(row[pair.chosen[t]])
            logprob.append(logit[-1] - math.log(sum(math.exp(z) for z in row)))
    equal(
        ref.state_values(teacher, pair.prompt, pair.chosen, "soft_value", 0.3),
        torch.tensor(values, dtype=torch.float64),
    )
    equal(ref.state_values(teacher, pair.prompt, pair.chosen, "logit"), torch.tensor(logit, dtype=torch.float64))
    equal(ref.state_values(teacher, pair.prompt, pair.chosen, "logprob"), torch.tensor(logprob, dtype=torch.float64))
    equal(ref.response_logp(teacher, pair.prompt, pair.chosen), math.fsum(logprob))


# ------------------------------------------------------------------------------------------------------------ values


def test_value_kinds_by_hand() -> None:
    """pi = (1/2, 1/3, 1/6) whatever tau is; tau = 1/2 squares the odds in the soft value only."""
    z = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    equal(ref.potential(z, "soft_value", 1.0), math.log(6.0))
    equal(ref.potential(z, "soft_value", 0.5), 0.5 * math.log(9.0 + 4.0 + 1.0))
    for tau in (0.1, 1.0):
        equal(ref.potential(z, "max", tau), 1 / 2)
        equal(ref.potential(z, "margin", tau), 1 / 2 - 1 / 3)
        equal(ref.potential(z, "expectation", tau), math.log(3.0) / 2 + math.log(2.0) / 3)


def test_soft_value_tends_to_the_largest_logit(teacher: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """max z <= tau logsumexp(z / tau) <= max z + tau ln |V|."""
    pair = pairs[0]
    top = ref.sequence_logits(teacher, pair.prompt, pair.chosen)[len(pair.prompt) - 1 :].max(-1).values
    for tau in (0.5, 0.01, 1e-4):
        gap = ref.state_values(teacher, pair.prompt, pair.chosen, "soft_value", tau) - top
        assert (gap >= -1e-12).all()
        assert (gap <= tau * math.log(teacher.config.vocab_size) + 1e-12).all()


def test_soft_value_of_log_probabilities_is_zero(teacher: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """logsumexp(log pi) = 0: a teacher's log-probabilities carry no value at tau = 1."""
    z = ref.sequence_logits(teacher, pairs[0].prompt, pairs[0].chosen)
    assert ref.potential(z).abs().min() > 0.1
    equal(ref.potential(torch.log_softmax(z, -1)), torch.zeros(len(z), dtype=torch.float64))


def test_gauge(teacher: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """u added to every row of the output layer adds c(s) = h(s).u to all logits: pi stays, V moves by c(s)."""
    pair, plain = pairs[0], ref.as_float64(teacher)
    moved = copy.deepcopy(plain)
    u = torch.randn(teacher.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved.lm_head.weight += u
        ids = torch.tensor([pair.prompt + pair.chosen])
        c = plain.model(ids, use_cache=False).last_hidden_state[0, len(pair.prompt) - 1 :] @ u
    assert c.abs().min() > 1e-3
    equal(ref.response_logp(moved, pair.prompt, pair.chosen), ref.response_logp(plain, pair.prompt, pair.chosen))
    for kind, shift in (("soft_value", c), ("expectation", c), ("max", 0 * c), ("margin", 0 * c), ("logit", c[:-1])):
        before, after = (ref.state_values(m, pair.prompt, pair.chosen, kind, 0.1) for m in (plain, moved))
        equal(after - before, shift)


# ----------------------------------------------------------------------------------------------------------- shaping


@pytest.mark.parametrize(
    ("form", "terminal", "expected"),
    [
        ("potential_difference", "bootstrap", (0.5 * 2 - 1) + (0.5 * 6 - 2)),
        ("potential_difference", "zero", (0.5 * 2 - 1) + (0.0 - 2)),
        ("next_value", "bootstrap", 0.5 * 2 + 0.5 * 6),
        ("next_value", "zero", 0.5 * 2),
    ],
)
def test_shaping_by_hand(form: str, terminal: str, expected: float) -> None:
    """V = (1, 2, 6), two response tokens, gamma = 1/2."""
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    equal(ref.shaping(values, "soft_value", form, terminal, 0.5), expected)
    for kind in ref.ACTION_KINDS:
        equal(ref.shaping(values, kind, form, terminal, 0.5), 9.0)


@pytest.mark.parametrize("kind", ref.STATE_KINDS)
def test_telescoping(teacher: ref.PreTrainedModel, pairs: list[ref.RefPair], kind: str) -> None:
    """gamma = 1: Psi = V(s_{T+1}) - V(s_1), and V(s_1) is the same for both responses; not so at gamma != 1."""
    for pair in pairs:
        start = []
        for response in (pair.chosen, pair.rejected):
            values = ref.state_values(teacher, pair.prompt, response, kind, 0.1)
            assert values.shape == (len(response) + 1,)
            psi = ref.shaping(values, kind, "potential_difference", "bootstrap", 1.0)
            equal(psi, values[-1] - values[0])
            equal(ref.shaping(values, kind, "potential_difference", "zero", 1.0), -values[0])
            assert (ref.shaping(values, kind, "potential_difference", "bootstrap", 0.9) - psi).abs() > 1e-4
            start.append(values[0])
        equal(start[0], start[1])


# ------------------------------------------------------------------------------------------------------------ losses


def test_dpo_of_the_reference_is_ln_2(student: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    for smoothing in (0.0, 0.2):
        loss, metrics = ref.dpo_loss(student, student, pairs, beta=0.3, label_smoothing=smoothing)
        equal(loss.detach(), math.log(2.0))
        assert metrics["rewards/margins"] == metrics["rewards/accuracies"] == 0.0


def test_dpo_by_hand(student: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
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
    student: ref.PreTrainedModel, teacher: ref.PreTrainedModel, pairs: list[ref.RefPair]
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
    student: ref.PreTrainedModel,
    teacher: ref.PreTrainedModel,
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


def test_sft_is_a_token_mean(student: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
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
def test_gradients_by_finite_differences(teacher: ref.PreTrainedModel, pairs: list[ref.RefPair], tie: bool) -> None:
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


def test_gradients_find_the_right_model(student: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
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


def test_adamw_first_step_by_hand(student: ref.PreTrainedModel, pairs: list[ref.RefPair]) -> None:
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
