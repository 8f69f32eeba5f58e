"""The reference's forward pass, values and shaping (tests/reference.py) checked against first principles."""

from __future__ import annotations

import copy
import math

import pytest
import reference as ref
import torch
from float64 import equal
from transformers import LlamaForCausalLM, PreTrainedModel

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return ref.tiny_llama(1, hidden=48, layers=3, kv_heads=4)


@pytest.fixture(scope="module")
def pairs() -> list[ref.RefPair]:
    return ref.random_pairs(0, 4)


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
def test_float64_forward_is_transformers_forward(model: PreTrainedModel) -> None:
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


def test_states_and_logp_by_a_loop_over_prefixes(teacher: PreTrainedModel) -> None:
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


def test_soft_value_tends_to_the_largest_logit(teacher: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """max z <= tau logsumexp(z / tau) <= max z + tau ln |V|."""
    pair = pairs[0]
    top = ref.sequence_logits(teacher, pair.prompt, pair.chosen)[len(pair.prompt) - 1 :].max(-1).values
    for tau in (0.5, 0.01, 1e-4):
        gap = ref.state_values(teacher, pair.prompt, pair.chosen, "soft_value", tau) - top
        assert (gap >= -1e-12).all()
        assert (gap <= tau * math.log(teacher.config.vocab_size) + 1e-12).all()


def test_soft_value_of_log_probabilities_is_zero(teacher: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
    """logsumexp(log pi) = 0: a teacher's log-probabilities carry no value at tau = 1."""
    z = ref.sequence_logits(teacher, pairs[0].prompt, pairs[0].chosen)
    assert ref.potential(z).abs().min() > 0.1
    equal(ref.potential(torch.log_softmax(z, -1)), torch.zeros(len(z), dtype=torch.float64))


def test_gauge(teacher: PreTrainedModel, pairs: list[ref.RefPair]) -> None:
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
def test_telescoping(teacher: PreTrainedModel, pairs: list[ref.RefPair], kind: str) -> None:
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
