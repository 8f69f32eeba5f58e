"""Vocab-parallel statistics of given logits against the equations in float64: every TP size, hostile logits."""

import itertools
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from head_cases import STATISTICS, equation, fp32_error, in_fresh_process, peak_extra_bytes, same, tensor_group, within
from rank_pool import Layout, RankPool
from torch import Tensor

from nemo_tvkd.parallel import vocab
from nemo_tvkd.parallel.statistic import KINDS, LOGPROB, Statistic
from nemo_tvkd.parallel.vocab import token_statistics

REAL, PADDED, TOKENS = 1003, 1024, 37
INF, NAN = float("inf"), float("nan")
WORLDS = (1, 2, 4)
CHUNKED = ("normal", "bf16", "minus infinity")
CASES = ("normal", "bf16", "fp16", "fp64", "large", "close", "far shards", "minus infinity", "duplicates")
CASES += ("one token", "no tokens", "padding only on the last ranks", "strided", "no padding")


@dataclass
class Case:
    """[T, padded] logits, [T] labels."""

    logits: Tensor
    labels: Tensor
    real: int = REAL

    def shard(self, rank: int, world: int) -> Tensor:
        return self.logits.chunk(world, -1)[rank]

    def expected(self, statistic: Statistic) -> Tensor:
        return equation(self.logits[:, : self.real].double(), self.labels, statistic)


def make_case(name: str, seed: int = 7) -> Case:
    generator = torch.Generator().manual_seed(seed)
    real, padded = {"padding only on the last ranks": (5, 16), "no padding": (96, 96)}.get(name, (REAL, PADDED))
    tokens = {"one token": 1, "no tokens": 0}.get(name, TOKENS)
    logits = torch.randn(tokens, padded, generator=generator) * 3
    labels = torch.randint(0, real, (tokens,), generator=generator)
    borders = [b for b in (0, padded // 4 - 1, padded // 4, padded // 2, 3 * padded // 4, real - 1) if b < real]
    labels[: len(borders)] = torch.tensor(borders)[:tokens]
    if name == "large":
        logits += torch.where(torch.rand(logits.shape, generator=generator) < 0.5, -1e4, 1e4)
        logits[7, ::3] = torch.finfo(torch.float32).min  # a usual mask
        logits[8:10, 256:] = torch.finfo(torch.float32).min
    if name == "close":  # differences of the order of the smallest temperature
        logits = 100 + logits * 0.003
    if name == "far shards":  # each row's ranks 0, 60, 100 or 5,000 nats apart, in some order
        distance = torch.tensor([0.0, -60.0, -100.0, -5000.0])
        order = torch.rand(tokens, 4, generator=generator).argsort(-1)
        logits += distance[order].repeat_interleave(padded // 4, -1)
        logits[7:10] = torch.tensor([-400.0, -1000.0, -1e5])[:, None]  # all alike, but for one
        logits[7:10, 600] = 0.0
    if name == "minus infinity":
        logits[torch.rand(logits.shape, generator=generator) < 0.3] = -INF
        logits[torch.arange(tokens)[::2], labels[::2]] = 1.0  # the other labels may be impossible
        logits[3, 256:] = -INF  # whole shards, at TP2 and TP4
        logits[4, :768] = -INF
        logits[5, :512], logits[5, 600:] = -INF, -INF
        logits[6] = -INF
        logits[6, labels[6]] = -2.5
    if name == "duplicates":  # of the maximum: in one shard, in two, in every shard, everywhere
        logits[0, [5, 6]] = logits[1, [5, 1000]] = logits[2, [0, 300, 600, 1002]] = 20.0
        logits[3] = 1.5
        logits[4:] = logits[4:].round()
    if name in ("bf16", "fp16", "fp64"):
        logits = logits.to({"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[name])
    logits[:, real:] = 6e4 if name == "fp16" else 1e30  # padded columns must enter nothing
    if name == "strided":
        logits = torch.stack([logits, logits + 1], -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]
        assert not logits.is_contiguous()
    return Case(logits, labels, real)


def rank_statistics(case: Case, chunk_bytes: int | None = None, alone: bool = False) -> dict[Statistic, Tensor]:
    """On a rank: every statistic, in one call or each in its own."""
    group = tensor_group()
    shard = case.shard(group.rank(), group.size()).detach().requires_grad_()
    before, labels_before = shard.detach().clone(), case.labels.clone()
    with mock.patch.dict(vocab.CHUNK_BYTES, {} if chunk_bytes is None else {"cpu": chunk_bytes}):
        got: dict[Statistic, Tensor] = {}
        for asked in [[s] for s in STATISTICS] if alone else [STATISTICS]:
            got |= token_statistics(shard, case.labels, asked, vocab_size=case.real, group=group)
    torch.testing.assert_close(shard.detach(), before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(case.labels, labels_before)
    assert list(got) == STATISTICS
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in got.values())
    return got


def rank_cases() -> dict[str, list[dict[Statistic, Tensor]]]:
    """By case: asked together, and one by one."""
    cases = {name: make_case(name) for name in CASES}
    return {name: [rank_statistics(case), rank_statistics(case, alone=True)] for name, case in cases.items()}


@pytest.fixture(scope="module", params=WORLDS)
def answers(pool: RankPool, request: pytest.FixtureRequest) -> list[dict[str, list[dict[Statistic, Tensor]]]]:
    return pool.run(Layout(tp=request.param), rank_cases)


def check(case: Case, ranks: list[dict[Statistic, Tensor]]) -> None:
    for statistic in STATISTICS:
        expected = case.expected(statistic)
        same([rank[statistic] for rank in ranks], statistic.name)
        within(ranks[0][statistic], expected, fp32_error(statistic, expected), statistic.name)


@pytest.mark.parametrize("name", CASES)
def test_statistics_match_float64(answers: list[dict[str, list[dict[Statistic, Tensor]]]], name: str) -> None:
    case = make_case(name)
    for ranks in zip(*(rank[name] for rank in answers), strict=True):
        check(case, list(ranks))
    if name == "duplicates":
        assert (case.expected(Statistic("margin"))[:4] == 0).all(), "the case has lost its point"


def rank_replica() -> dict[Statistic, Tensor]:
    from megatron.core import parallel_state

    return rank_statistics(make_case("normal", seed=parallel_state.get_data_parallel_rank()))


def test_replicas_do_not_mix(pool: RankPool) -> None:
    ranks = pool.run(Layout(tp=2, dp=2), rank_replica)
    for replica in (0, 1):
        check(make_case("normal", seed=replica), ranks[2 * replica : 2 * replica + 2])


def rank_chunks() -> dict[str, list[dict[Statistic, Tensor]]]:
    sizes = 1, 5 * 4 * 2 * PADDED, 10**9  # one row at a time; a few, with a remainder; all at once
    return {name: [rank_statistics(make_case(name), size) for size in sizes] for name in CHUNKED}


@pytest.mark.parametrize("world", [1, 2])
def test_chunks_change_nothing(pool: RankPool, world: int) -> None:
    ranks = pool.run(Layout(tp=world), rank_chunks)
    for name in CHUNKED:
        for chunked in zip(*(rank[name] for rank in ranks), strict=True):
            check(make_case(name), list(chunked))
        *parts, whole = ranks[0][name]
        for statistic, part in itertools.product(STATISTICS, parts):
            torch.testing.assert_close(part[statistic], whole[statistic], rtol=1e-6, atol=1e-6)


def make_bad(value: float, dtype: torch.dtype) -> Case:
    """Rows 0 to 5 hold the value in one column, in a few, everywhere, at the label; row 6 is clean."""
    case = make_case("normal")
    case.logits, case.labels = case.logits[:7].to(dtype), case.labels[:7]
    case.labels[:] = 700
    for row, columns in enumerate(([0], [REAL - 1], [500], [3, 300, 600, 900], list(range(REAL)), [700])):
        case.logits[row, columns] = value
    return case


BAD = [(value, dtype) for value in (NAN, INF, -INF) for dtype in (torch.float32, torch.bfloat16)]


BAD = [(value, dtype) for value in (NAN, INF, -INF) for dtype in (torch.float32, torch.bfloat16)]


def rank_bad() -> list[list[dict[Statistic, Tensor]]]:
    cases = [make_bad(*bad) for bad in BAD]
    return [[rank_statistics(case), rank_statistics(case, alone=True)] for case in cases]


@pytest.mark.parametrize("world", WORLDS)
def test_bad_logits_show(pool: RankPool, world: int) -> None:
    """A NaN or +inf logit, or -inf alone, leaves no finite statistic but other tokens' logits; only that row's."""
    quiet = []
    ranks = pool.run(Layout(tp=world), rank_bad)
    for number, bad in enumerate(BAD):
        case = make_bad(*bad)
        rows = [4] if bad[0] == -INF else [0, 1, 2, 3, 4, 5]
        others = [row for row in range(7) if row not in rows]
        for way, statistic in itertools.product((0, 1), STATISTICS):
            same([rank[number][way][statistic] for rank in ranks], statistic.name)
            got, expected = ranks[0][number][way][statistic], case.expected(statistic)
            within(got[others], expected[others], fp32_error(statistic, expected[others]), statistic.name)
            if statistic.kind == "logit":
                torch.testing.assert_close(got.double(), expected, rtol=0, atol=0, equal_nan=True)
            elif got[rows].isfinite().any():
                quiet.append(f"{statistic.name} of {bad}: {got[rows].tolist()}")
    assert not quiet, "\n".join(quiet)


def test_one_process_needs_no_group() -> None:
    case = make_case("normal")
    check(case, [token_statistics(case.logits, case.labels, STATISTICS, vocab_size=REAL)])


def test_what_can_be_asked() -> None:
    assert {s.kind for s in STATISTICS} == set(KINDS)
    assert Statistic("logprob") == LOGPROB
    assert len({s.name for s in STATISTICS}) == len(STATISTICS)
    case = make_case("normal")
    repeated = token_statistics(case.logits, case.labels, [LOGPROB, Statistic("logprob")], vocab_size=REAL)
    assert list(repeated) == [LOGPROB]


@pytest.mark.parametrize("kind", ["", "softmax", "Max"])
def test_unknown_kinds(kind: str) -> None:
    with pytest.raises(ValueError, match="none of soft_value"):
        Statistic(kind)


@pytest.mark.parametrize("temperature", [0.0, -1.0, -0.0, NAN, -INF])
def test_temperatures_that_are_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="not positive"):
        Statistic("soft_value", temperature)


def measure() -> dict[str, int]:
    torch.set_num_threads(1)
    vocabulary = 128256
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(512, vocabulary, dtype=dtype).random_(-8, 8)
        labels = torch.arange(512)
        for tokens in (64, 512):
            for name, asked in {"two": [Statistic("soft_value", 0.01), LOGPROB], "all": STATISTICS}.items():
                inputs = logits[:tokens], labels[:tokens], asked
                peak = peak_extra_bytes(lambda inputs=inputs: token_statistics(*inputs, vocab_size=vocabulary))
                peaks[f"{name} {dtype} {tokens}"] = peak
    return peaks


def test_memory_does_not_grow_with_tokens() -> None:
    """Work buffers of some MiB whatever T is (the logits have 250 MiB), and a few numbers per token."""
    peaks = in_fresh_process("test_vocab", "measure")
    for case in ("two torch.float32", "two torch.bfloat16", "all torch.float32", "all torch.bfloat16"):
        few, many = peaks[f"{case} 64"], peaks[f"{case} 512"]
        assert few <= many <= 16 * 2**20, peaks
        assert many - few <= (512 - 64) * 4 * 4 * len(STATISTICS), peaks
