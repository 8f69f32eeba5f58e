"""Vocab-parallel statistics against float64 on one process: values, gradients, every TP size, hostile logits."""

import pytest
import torch
from rank_pool import Layout, RankPool

from nemo_tvkd.parallel import vocab

VOCAB, PADDED, TOKENS = 1003, 1024, 37
KINDS = [("soft_value", 1.0), ("soft_value", 0.01), ("soft_value", 5.0)] + [
    (kind, 1.0) for kind in ("max", "margin", "expectation", "logit", "logprob")
]
CASES = ("normal", "bf16", "large", "minus_infinity")


def make_logits(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, padded V] with garbage in the padding, and labels [T] whose logits are finite."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(TOKENS, PADDED, generator=generator) * 3
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    labels[0], labels[1] = 0, VOCAB - 1
    if case == "bf16":
        logits = logits.bfloat16()
    if case == "large":
        logits = torch.where(torch.rand(logits.shape, generator=generator) < 0.5, -1e4, 1e4) + logits
    if case == "minus_infinity":
        logits[torch.rand(logits.shape, generator=generator) < 0.3] = float("-inf")
        logits[2, :300] = float("-inf")
        logits[torch.arange(TOKENS), labels] = 1.0
    logits[:, VOCAB:] = 1e30 if case != "bf16" else 1e4  # padded columns must enter nothing
    return logits, labels


def expected_value(logits: torch.Tensor, labels: torch.Tensor, kind: str, tau: float) -> torch.Tensor:
    """The equations, in float64, over the real columns."""
    z = logits[:, :VOCAB].double()
    pi = z.softmax(-1)
    if kind == "soft_value":
        return tau * torch.logsumexp(z / tau, -1)
    if kind == "max":
        return pi.max(-1).values
    if kind == "margin":
        top = pi.topk(2, -1).values
        return top[:, 0] - top[:, 1]
    if kind == "expectation":
        return (pi * z.nan_to_num(neginf=0.0)).sum(-1)
    chosen = z if kind == "logit" else z.log_softmax(-1)
    return chosen.gather(-1, labels[:, None])[:, 0]


def rank_values(case: str, world: int) -> dict:
    import torch.distributed as dist

    logits, labels = make_logits(case)
    shard = logits.chunk(world, -1)[dist.get_rank()].clone()
    group = dist.group.WORLD
    values = {
        (kind, tau): vocab.token_values(shard, labels, kind, tau, vocab_size=VOCAB, group=group) for kind, tau in KINDS
    }
    shard.requires_grad_()
    logps = vocab.label_logprobs(shard, labels, vocab_size=VOCAB, group=group)
    weights = torch.linspace(-1, 2, TOKENS)
    (logps * weights).sum().backward()
    return {"values": values, "logps": logps.detach(), "grad": shard.grad}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_values_and_gradients_match_float64(pool: RankPool, world: int, case: str) -> None:
    logits, labels = make_logits(case)
    ranks = pool.run(Layout(tp=world), rank_values, case, world)
    for kind, tau in KINDS:
        expected = expected_value(logits, labels, kind, tau)
        for rank in ranks:
            got = rank["values"][kind, tau].double()
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)
    z = logits[:, :VOCAB].double().requires_grad_()
    expected_logps = z.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    (expected_logps * torch.linspace(-1, 2, TOKENS).double()).sum().backward()
    gradient = torch.cat([rank["grad"] for rank in ranks], -1)
    assert gradient.dtype == logits.dtype
    assert gradient[:, VOCAB:].abs().max() == 0, "padding must receive no gradient"
    tolerance = 4e-3 if case == "bf16" else 1e-5
    torch.testing.assert_close(gradient[:, :VOCAB].double(), z.grad, rtol=tolerance, atol=tolerance * 1e-1)
    torch.testing.assert_close(ranks[0]["logps"].double(), expected_logps.detach(), rtol=1e-5, atol=2e-5)


def count_traffic(width: int) -> dict[str, int]:
    """Elements per collective that one V and one log-prob send, forward and backward."""
    import torch.distributed as dist

    sent: dict[str, int] = {}

    def counting(name: str, original):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            tensor = args[1] if name == "all_gather" else args[0]
            sent[name] = sent.get(name, 0) + tensor.numel()
            return original(*args, **kwargs)

        return call

    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast", "reduce_scatter")}
    for name, original in originals.items():
        setattr(dist, name, counting(name, original))
    try:
        shard = torch.randn(TOKENS, width // 2).requires_grad_()
        labels = torch.randint(0, width, (TOKENS,))
        group = dist.group.WORLD
        vocab.token_values(shard, labels, "soft_value", 0.1, vocab_size=width, group=group)
        vocab.label_logprobs(shard, labels, vocab_size=width, group=group).sum().backward()
        sent["before_margin"] = sent["all_reduce"]
        vocab.token_values(shard, labels, "margin", vocab_size=width, group=group)
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return sent


@pytest.mark.parametrize("width", [1024, 128256])
def test_only_scalars_per_token_cross_ranks(pool: RankPool, width: int) -> None:
    for sent in pool.run(Layout(tp=2), count_traffic, width):
        assert sent["before_margin"] == 5 * TOKENS  # V: max, sum; log-prob: max, sum, label; nothing in backward
        assert sent["all_gather"] == 2 * TOKENS  # the margin: two numbers per rank and token
        assert set(sent) == {"all_reduce", "all_gather", "before_margin"}


def test_no_tokens() -> None:
    empty, labels = torch.zeros(0, 8), torch.zeros(0, dtype=torch.long)
    for kind in vocab.VALUE_KINDS:
        assert vocab.token_values(empty, labels, kind, vocab_size=8).shape == (0,)


def test_bad_arguments() -> None:
    logits, labels = torch.zeros(1, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="none of soft_value"):
        vocab.token_values(logits, labels, "entropy", vocab_size=8)
    with pytest.raises(ValueError, match="not positive"):
        vocab.token_values(logits, labels, "soft_value", 0.0, vocab_size=8)
