"""Statistics and log-probabilities from hidden states against float64: values, gradients, budgets, parallel layouts."""

import pytest
import torch
from head_cases import (
    HIDDEN,
    PADDED,
    REAL,
    STATISTICS,
    TOKENS,
    HeadCase,
    equation,
    fp32_error,
    in_fresh_process,
    make_head_case,
    peak_extra_bytes,
    propagated,
    same,
    tensor_group,
    within,
)
from rank_pool import Layout, RankPool
from torch import Tensor

from nemo_tvkd.parallel.lm_head import gather_sequence, head_logprobs, head_statistics
from nemo_tvkd.parallel.statistic import LOGPROB

WORLDS = (1, 2, 4)
CASES = ("normal", "bf16", "large", "wide", "one token", "no tokens", "padding only on the last ranks", "strided")


def budgets(name: str) -> list[int]:
    """Bytes: the default, and some that split the tokens, the columns or both, into parts with a remainder."""
    if name == "wide":
        return [0, 12 * 12 * 2500, 12 * 5000]
    if name in ("normal", "bf16", "large", "strided"):
        return [0, 12 * 7 * TOKENS, 12 * 5 * PADDED + 1]
    return [0, 1, 12 * 7]


def groups() -> tuple[torch.distributed.ProcessGroup, int, int]:
    group = tensor_group()
    return group, group.rank(), group.size()


def rank_gradients(case: HeadCase, memory: int, frozen: str = "") -> dict[str, Tensor]:
    group, rank, world = groups()
    hidden = case.hidden.clone().requires_grad_(frozen != "hidden")
    weight = case.shard(rank, world).clone().requires_grad_(frozen != "weight")
    logps = head_logprobs(hidden, weight, case.labels, vocab_size=case.real, group=group, memory=memory)
    (logps * case.upstream).sum().backward()
    return {"logps": logps.detach(), "hidden": hidden.grad, "weight": weight.grad}


def rank_cases() -> dict[str, dict[int, dict]]:
    """By case and budget."""
    group, rank, world = groups()
    answers: dict[str, dict[int, dict]] = {}
    for name in CASES:
        case, answers[name] = make_head_case(name), {}
        inputs = case.hidden.clone().requires_grad_(), case.shard(rank, world), case.labels, STATISTICS
        for memory in budgets(name):
            statistics = head_statistics(*inputs, vocab_size=case.real, group=group, memory=memory)
            assert list(statistics) == STATISTICS
            assert not any(value.requires_grad for value in statistics.values())
            answers[name][memory] = {"statistics": statistics} | rank_gradients(case, memory)
    return answers


@pytest.fixture(scope="module", params=WORLDS)
def answers(pool: RankPool, request: pytest.FixtureRequest) -> list[dict[str, dict[int, dict]]]:
    return pool.run(Layout(tp=request.param), rank_cases)


@pytest.mark.parametrize("name", CASES)
def test_statistics_match_float64(answers: list[dict[str, dict[int, dict]]], name: str) -> None:
    case = make_head_case(name)
    for statistic in STATISTICS:
        expected = equation(case.z, case.labels, statistic)
        allowed = fp32_error(statistic, expected) + propagated(case.z, case.labels, statistic, case.error)
        for memory in budgets(name):
            got = [rank[name][memory]["statistics"][statistic] for rank in answers]
            same(got, statistic.name)
            assert got[0].dtype == torch.float32
            within(got[0], expected, allowed, f"{statistic.name}, budget {memory}")


def check_gradients(case: HeadCase, ranks: list[dict[str, Tensor]], what: object = "") -> None:
    expected = equation(case.z, case.labels, LOGPROB)
    allowed = fp32_error(LOGPROB, expected) + propagated(case.z, case.labels, LOGPROB, case.error)
    same([rank["logps"] for rank in ranks], what)
    within(ranks[0]["logps"], expected, allowed, what)
    weight = torch.cat([rank["weight"] for rank in ranks])
    assert weight.dtype == ranks[0]["hidden"].dtype == case.weight.dtype
    assert (weight[case.real :] == 0).all(), "padding must receive no gradient"
    same([rank["hidden"] for rank in ranks], what)
    check_errors(case, ranks[0]["hidden"], weight[: case.real], what)


def check_errors(case: HeadCase, hidden: Tensor, weight: Tensor, what: object) -> None:
    """Every element within its bound; fp32 also within 1e-5 of the largest, bf16 within two roundings on average."""
    for got, expected, allowed in zip(
        (hidden, weight), (case.grad_hidden, case.grad_weight), case.gradient_errors(), strict=True
    ):
        within(got, expected, allowed + 1e-30, what)
        if case.hidden.dtype == torch.bfloat16:
            assert (got.double() - expected).norm() <= 2 * 2.0**-8 * expected.norm(), what
        elif (case.error < 1e-4).all() and expected.numel():  # logits of 1e4 are not known to 1e-5 nats
            within(got, expected, 1e-5 * expected.abs().max(), what)


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_float64(answers: list[dict[str, dict[int, dict]]], name: str) -> None:
    case = make_head_case(name)
    for memory in budgets(name):
        check_gradients(case, [rank[name][memory] for rank in answers], f"budget {memory}")


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bf16", "large")])
def test_the_budget_changes_nothing(answers: list[dict[str, dict[int, dict]]], name: str) -> None:
    """Beyond rounding: products of a few columns and rows add up in another order (each is held to float64 above)."""
    for rank in answers:
        whole, *others = (rank[name][memory] for memory in budgets(name))
        for other in others:
            for key in ("logps", "hidden", "weight"):
                size = whole[key].abs().max() if whole[key].numel() else 0
                within(other[key], whole[key], 1e-5 * size, key)


@pytest.mark.parametrize(("tokens", "real", "part"), [(1000, 16, 16), (1, 1000, 1)])
def test_parts_are_added_up_in_fp32(tokens: int, real: int, part: int) -> None:
    """A thousand equal bf16 parts of weight's or hidden's gradient: in bf16 their sum would stop growing at 256."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 8, generator=generator).expand(tokens, 8).bfloat16()
    weight = torch.randn(1, 8, generator=generator).repeat(real, 1).bfloat16()
    weight[0] *= 2
    case = HeadCase(hidden, weight, torch.zeros(tokens, dtype=torch.long), torch.ones(tokens), real)
    inputs = hidden.clone().requires_grad_(), weight.requires_grad_()
    logps = head_logprobs(*inputs, case.labels, vocab_size=real, memory=12 * part)
    gradients = torch.autograd.grad(logps.sum(), inputs)
    for got, expected in zip(gradients, (case.grad_hidden, case.grad_weight), strict=True):
        assert (got.double() - expected).norm() <= 4 * 2.0**-8 * expected.norm()


def rank_frozen() -> list[dict[str, Tensor]]:
    return [rank_gradients(make_head_case("normal"), 0, frozen) for frozen in ("hidden", "weight")]


def test_frozen_inputs(pool: RankPool) -> None:
    case = make_head_case("normal")
    ranks = pool.run(Layout(tp=2), rank_frozen)
    for frozen, trained in ((0, 1), (1, 0)):
        key, other = ("hidden", "weight")[frozen], ("hidden", "weight")[trained]
        assert all(rank[frozen][key] is None for rank in ranks)
        both = [rank[frozen] | {key: rank[trained][key]} for rank in ranks]
        assert both[0][other] is not None
        check_gradients(case, both)


def test_backward_can_run_twice() -> None:
    case = make_head_case("normal")
    inputs = case.hidden.requires_grad_(), case.weight.requires_grad_()
    upstream = case.upstream.clone()
    logps = head_logprobs(*inputs, case.labels, vocab_size=REAL, memory=5000)
    first = torch.autograd.grad(logps, inputs, upstream, retain_graph=True)
    second = torch.autograd.grad(logps, inputs, upstream)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(upstream, case.upstream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_hidden_states_show(value: float) -> None:
    """In that token's statistics, and in no other's."""
    case = make_head_case("normal")
    hidden = case.hidden.clone()
    hidden[3, 7] = value
    inputs = case.weight, case.labels
    good, bad = (head_statistics(h, *inputs, STATISTICS, vocab_size=REAL) for h in (case.hidden, hidden))
    logps = head_logprobs(hidden, *inputs, vocab_size=REAL)
    assert not logps[3].isfinite()
    others = torch.arange(TOKENS) != 3
    for statistic in STATISTICS:
        assert not bad[statistic][3].isfinite(), statistic.name
        torch.testing.assert_close(bad[statistic][others], good[statistic][others], rtol=1e-6, atol=1e-6)


def rank_replica() -> dict[str, Tensor]:
    from megatron.core import parallel_state

    return rank_gradients(make_head_case("normal", seed=parallel_state.get_data_parallel_rank()), 5000)


def test_replicas_do_not_mix(pool: RankPool) -> None:
    ranks = pool.run(Layout(tp=2, dp=2), rank_replica)
    for replica in (0, 1):
        check_gradients(make_head_case("normal", seed=replica), ranks[2 * replica : 2 * replica + 2])


def rank_sequence(name: str) -> dict[str, Tensor]:
    group, rank, world = groups()
    case = make_head_case(name)
    part = case.hidden.chunk(world)[rank].clone().requires_grad_()
    weight = case.shard(rank, world).clone().requires_grad_()
    hidden = gather_sequence(part, group)
    assert torch.equal(hidden, case.hidden)
    logps = head_logprobs(
        hidden, weight, case.labels, vocab_size=case.real, group=group, reduce_hidden_gradient=False, memory=9999
    )
    (logps * case.upstream).sum().backward()
    return {"logps": logps.detach(), "hidden": part.grad, "weight": weight.grad}


@pytest.mark.parametrize("name", ["normal", "bf16", "no tokens"])
@pytest.mark.parametrize("world", WORLDS)
def test_sequence_parallelism(pool: RankPool, world: int, name: str) -> None:
    """Each rank holds some of the tokens, and gets their gradient."""
    case = make_head_case(name)
    ranks = pool.run(Layout(tp=world, sp=world > 1), rank_sequence, name)
    whole = torch.cat([rank["hidden"] for rank in ranks])
    check_gradients(case, [rank | {"hidden": whole} for rank in ranks])


def test_no_group_gathers_nothing() -> None:
    hidden = torch.randn(3, 4)
    assert gather_sequence(hidden, None) is hidden


def tied_loss(weight: Tensor, hidden: Tensor, logps: Tensor) -> Tensor:
    return (logps * torch.linspace(-1, 2, TOKENS, dtype=logps.dtype)).sum() + hidden.square().sum()


def tied_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids, labels = torch.randint(0, REAL, (2, TOKENS), generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    return ids, labels, weight, torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5


def rank_tied() -> Tensor:
    """The weight's gradient with the embedding's rows looked up where they are, as Megatron does."""
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    group, rank, world = groups()
    ids, labels, weight, mixer = tied_inputs()
    shard = weight.chunk(world)[rank].clone().requires_grad_()
    local = ids - rank * len(shard)
    here = (local >= 0) & (local < len(shard))
    rows = torch.where(here[:, None], shard[local.clamp(0, len(shard) - 1)], 0.0)
    hidden = torch.tanh(reduce_from_tensor_model_parallel_region(rows) @ mixer)
    logps = head_logprobs(hidden, shard, labels, vocab_size=REAL, group=group, memory=7777)
    tied_loss(shard, hidden, logps).backward()
    return shard.grad


@pytest.mark.parametrize("world", WORLDS)
def test_a_tied_embedding_gets_both_gradients(pool: RankPool, world: int) -> None:
    ids, labels, weight, mixer = tied_inputs()
    w = weight[:REAL].double().requires_grad_()
    hidden = torch.tanh(w[ids] @ mixer.double())
    tied_loss(w, hidden, equation(hidden @ w.T, labels, LOGPROB)).backward()
    got = torch.cat(pool.run(Layout(tp=world), rank_tied))
    assert (got[REAL:] == 0).all()
    within(got[:REAL], w.grad, 1e-5 * w.grad.abs().max())


def measure() -> dict[str, int]:
    """Peaks by call, dtype and tokens; H 64, V 16,384, a budget of 2 MiB."""
    torch.set_num_threads(1)
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(16384, 64).to(dtype).requires_grad_()
        for tokens in (256, 1024):
            hidden, labels = torch.randn(tokens, 64).to(dtype).requires_grad_(), torch.arange(tokens)
            budget = {"vocab_size": 16000, "memory": 2 * 2**20}
            inputs = hidden, weight, labels

            def statistics(inputs: tuple = inputs, budget: dict = budget) -> object:
                return head_statistics(*inputs, STATISTICS, **budget)

            def gradients(inputs: tuple = inputs, budget: dict = budget) -> object:
                logps = head_logprobs(*inputs, **budget)
                return torch.autograd.grad(logps.sum(), inputs[:2])

            for call in (statistics, gradients):
                call()  # the first products may set something up
                peaks[f"{call.__name__} {dtype} {tokens}"] = peak_extra_bytes(call)
    return peaks


def test_memory_stays_within_the_budget() -> None:
    """Beyond the gradients: 2 MiB of logits (all of them: 16 and 64 MiB in fp32) and a few numbers per token."""
    peaks = in_fresh_process("test_lm_head", "measure")
    for dtype, size in (("torch.float32", 4), ("torch.bfloat16", 2)):
        for tokens in (256, 1024):
            numbers = 4 * tokens * 4 * len(STATISTICS)
            assert peaks[f"statistics {dtype} {tokens}"] <= 2 * 2**20 + numbers, peaks
            own = size * 64 * 16384 + 4 * 4 * 64 * tokens  # weight's gradient; hidden's, a product, a sum and a cast
            assert peaks[f"gradients {dtype} {tokens}"] <= 2 * 2**20 + own + numbers, peaks
