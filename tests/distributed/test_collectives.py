"""What crosses tensor-parallel ranks: every collective is seen where torch dispatches it, forward and backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import pytest
import torch
from head_cases import STATISTICS, tensor_group
from rank_pool import Layout, RankPool
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_tvkd.parallel import vocab
from nemo_tvkd.parallel.lm_head import gather_sequence, head_logprobs, head_statistics
from nemo_tvkd.parallel.statistic import LOGPROB, Statistic
from nemo_tvkd.parallel.vocab import token_statistics

TP, WIDTH = 2, 16
PAIR = [Statistic("soft_value", 0.01), LOGPROB]
MARGIN = [Statistic("margin")]
Crossing = tuple[str, int]
"""An operation and its elements: of the whole result where parts are gathered, of all parts where they are reduced."""


class Traffic(TorchDispatchMode):
    """Records the collectives that run while it is entered, whichever function of torch.distributed calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Crossing] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "c10d" in func.namespace:
            self.seen.append((func._schema.name.split("::")[1].strip("_"), max(map(elements, args))))
        return func(*args, **(kwargs or {}))


def elements(argument: object) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.numel()
    return sum(map(elements, argument)) if isinstance(argument, (list, tuple)) else 0


def rank_recorder() -> list[Crossing]:
    """The recorder itself: nothing that these tests rule out may escape it."""
    import torch.distributed as dist
    from torch.distributed import nn

    group, x = tensor_group(), torch.ones(6, requires_grad=True)
    with Traffic() as traffic:
        dist.all_reduce(x.detach().clone(), group=group)
        dist.all_gather_into_tensor(x.new_empty(12), x.detach(), group=group)
        dist.all_gather([x.new_empty(6), x.new_empty(6)], x.detach(), group=group)
        dist.reduce_scatter_tensor(x.new_empty(3), x.detach(), group=group)
        dist.broadcast(x.detach(), dist.get_global_rank(group, 0), group=group)
        nn.all_reduce(x, group=group).sum().backward()
    return traffic.seen


def test_the_recorder_sees_everything(pool: RankPool) -> None:
    expected = [("allreduce", 6), ("allgather_base", 12), ("allgather", 12), ("reduce_scatter_base", 6)]
    expected += [("broadcast", 6), ("allreduce", 6), ("allreduce", 6)]
    for seen in pool.run(Layout(tp=TP), rank_recorder):
        assert seen == expected


SMALL = 12 * 300
"""A budget that splits 50 tokens of 512 columns into many parts, whichever way."""


def record(function: Callable[[], object], small: bool) -> list[Crossing]:
    """With `small`, in many chunks."""
    chunks: AbstractContextManager = mock.patch.dict(vocab.CHUNK_BYTES, cpu=1) if small else nullcontext()
    with Traffic() as traffic, chunks:
        function()
    return traffic.seen


def rank_statistics(tokens: int, vocabulary: int, small: bool) -> dict[str, list[Crossing]]:
    group = tensor_group()
    logits = torch.randn(tokens, vocabulary // TP)
    hidden, weight = torch.randn(tokens, WIDTH), torch.randn(vocabulary // TP, WIDTH)
    labels = torch.randint(0, vocabulary, (tokens,))
    options = {"vocab_size": vocabulary, "group": group}
    budget = options | {"memory": SMALL * small}
    seen = {}
    for name, asked in {"pair": PAIR, "margin": MARGIN, "all": STATISTICS}.items():
        seen[name] = record(lambda asked=asked: token_statistics(logits, labels, asked, **options), small)
        head = record(lambda asked=asked: head_statistics(hidden, weight, labels, asked, **budget), small)
        assert head == seen[name], "the output layer sends what its logits would"
    return seen


SIZES = [(5, 1024, False), (50, 1024, False), (50, 1024, True), (5, 128256, False), (0, 1024, False)]


@pytest.mark.parametrize(("tokens", "vocabulary", "small"), SIZES)
def test_only_scalars_per_token_cross_ranks(pool: RankPool, tokens: int, vocabulary: int, small: bool) -> None:
    """Two calls, whatever T, V and the chunks are: a maximum, then two sums of exponentials and the label's logit.
    The margin: two numbers per rank, and a sum."""
    for seen in pool.run(Layout(tp=TP), rank_statistics, tokens, vocabulary, small):
        assert seen["pair"] == [("allreduce", tokens), ("allreduce", 3 * tokens)]
        assert seen["margin"] == [("allgather_base", 2 * TP * tokens), ("allreduce", tokens)]
        # the sums at four temperatures (0.5 for the sum of squares), a weighted one, the label's logit
        assert seen["all"] == [("allgather_base", 2 * TP * tokens), ("allreduce", 6 * tokens)]


def rank_logprobs(tokens: int, vocabulary: int, small: bool) -> dict[str, list[Crossing]]:
    group = tensor_group()
    weight = torch.randn(vocabulary // TP, WIDTH, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    options = {"vocab_size": vocabulary, "group": group, "memory": SMALL * small}
    seen = {}
    for name, part in {"whole": tokens, "sequence": tokens // TP}.items():
        hidden = torch.randn(part, WIDTH, requires_grad=True)

        def forward(hidden: torch.Tensor = hidden, name: str = name) -> torch.Tensor:
            if name == "whole":
                return head_logprobs(hidden, weight, labels, **options)
            return head_logprobs(
                gather_sequence(hidden, group), weight, labels, reduce_hidden_gradient=False, **options
            )

        logps: list[torch.Tensor] = []
        seen[f"{name} forward"] = record(lambda logps=logps, forward=forward: logps.append(forward()), small)
        seen[f"{name} backward"] = record(lambda logps=logps: logps[0].sum().backward(), small)
        assert hidden.grad is not None
    return seen


@pytest.mark.parametrize(("tokens", "vocabulary", "small"), [(6, 1024, False), (50, 1024, True), (6, 128256, False)])
def test_backward_sends_one_sum_of_hidden_size(pool: RankPool, tokens: int, vocabulary: int, small: bool) -> None:
    """Without sequence parallelism an all-reduce; with it, the reduce-scatter of what was gathered forward."""
    scalars = [("allreduce", tokens), ("allreduce", 2 * tokens)]
    for seen in pool.run(Layout(tp=TP), rank_logprobs, tokens, vocabulary, small):
        assert seen["whole forward"] == scalars
        assert seen["whole backward"] == [("allreduce", tokens * WIDTH)]
        assert seen["sequence forward"] == [("allgather_base", tokens * WIDTH), *scalars]
        assert seen["sequence backward"] == [("reduce_scatter_base", tokens * WIDTH)]


def rank_alone() -> list[Crossing]:
    group = tensor_group()
    hidden, weight = torch.randn(4, WIDTH, requires_grad=True), torch.randn(64, WIDTH, requires_grad=True)
    labels = torch.arange(4)

    def everything() -> None:
        whole = gather_sequence(hidden, group)
        head_statistics(whole, weight, labels, STATISTICS, vocab_size=60, group=group)
        head_logprobs(whole, weight, labels, vocab_size=60, group=group).sum().backward()

    return record(everything, small=False)


def test_one_rank_sends_nothing(pool: RankPool) -> None:
    assert pool.run(Layout(), rank_alone) == [[]]
