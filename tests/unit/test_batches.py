"""The order of the items, how they are shared out into micro-batches, and that scores travel with them."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nemo_tvkd.data.batch import Item, collate, micro_batches
from nemo_tvkd.data.stream import EpochStream


def make_items(count: int) -> list[Item]:
    """Items whose chosen response says their number."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        prompt = rng.integers(3, 9, rng.integers(1, 6)).astype(np.int32)
        rejected = rng.integers(3, 9, rng.integers(1, 6)).astype(np.int32)
        chosen = np.array([number, 2], dtype=np.int32)
        items.append(Item(SimpleNamespace(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected)))  # type: ignore[arg-type]
    return items


def numbers(items: Any) -> list[int]:
    return [int(item.tokens.chosen_ids[0]) for item in items]


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    stream = EpochStream(make_items(11), length=50, seed=3)
    order = numbers(stream[i] for i in range(50))
    epochs = [order[start : start + 11] for start in range(0, 44, 11)]
    assert len(stream) == 50
    for epoch in epochs:
        assert sorted(epoch) == list(range(11))
        assert epoch != list(range(11))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len(set(order[44:])) == 6  # the epoch that was begun


def test_order_depends_on_seed_and_epoch_only() -> None:
    items = make_items(7)
    stream = EpochStream(items, length=35, seed=5)
    order = numbers(stream[i] for i in range(35))
    assert numbers(EpochStream(items, length=100, seed=5)[i] for i in range(35)) == order  # however long the run
    np.random.seed(1)
    torch.manual_seed(1)
    random.seed(1)
    assert numbers(stream[i] for i in reversed(range(35))) == order[::-1]  # in whatever order it is asked
    fresh = EpochStream(items, length=35, seed=5)
    assert numbers(fresh[i] for i in range(23, 35)) == order[23:]  # a resumed run
    assert numbers(EpochStream(items, length=35, seed=6)[i] for i in range(35)) != order


def test_order_is_the_same_in_every_release() -> None:
    """A run resumed after an update must not see other data."""
    stream = EpochStream(make_items(8), length=16, seed=42)
    expected = [np.random.Generator(np.random.PCG64([42, epoch])).permutation(8).tolist() for epoch in (0, 1)]
    assert numbers(stream[i] for i in range(16)) == [*expected[0], *expected[1]]


def test_without_shuffling_the_file_s_order_is_kept() -> None:
    stream = EpochStream(make_items(4), length=10, seed=3, shuffle=False)
    assert numbers(stream[i] for i in range(10)) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_micro_batches_share_out_every_item_once(ranks: int, size: int) -> None:
    items = make_items(11)
    seen = []
    for rank in range(ranks):
        batches = list(micro_batches(items, size, 4, rank, ranks))
        assert all(batch["count"] == size for batch in batches[:-1])
        assert all(sum(batch["lengths"]) % 4 == 0 for batch in batches)
        mine = []
        for batch in batches:
            starts = batch["cu_seqlens"][: batch["count"]].tolist()
            mine += [
                int(batch["tokens"][0, s + p])
                for s, p in zip(starts, batch["prompt_lengths"][: batch["count"]], strict=True)
            ]
        assert mine == list(range(11))[rank::ranks]
        seen += mine
    assert sorted(seen) == list(range(11))


def test_micro_batches_of_nothing() -> None:
    """More replicas than items: a replica may have none."""
    assert list(micro_batches(make_items(1), 2, 1, rank=1, ranks=2)) == []


def test_scores_travel_with_their_items() -> None:
    items = make_items(3)
    for number, item in enumerate(items):
        lengths = (2 + 1, len(item.tokens.rejected_ids) + 1)  # type: ignore[arg-type]
        item.numbers["teacher.value"] = tuple(
            np.full(n, number + 0.5 * side, np.float32) for side, n in enumerate(lengths)
        )  # type: ignore[assignment]
        item.numbers["reference.logprob"] = (-1.0 - number, -10.0 - number)
    batch = collate(items, 8)
    assert [len(v) for v in batch["numbers"]["teacher.value"]] == [n + 1 for n in batch["response_lengths"]]
    assert [float(v[0]) for v in batch["numbers"]["teacher.value"]] == [0, 1, 2, 0.5, 1.5, 2.5]
    assert all(v.dtype == torch.float32 for v in batch["numbers"]["teacher.value"])
    assert batch["numbers"]["reference.logprob"].tolist() == [-1, -2, -3, -10, -11, -12]
    del items[1].numbers["teacher.value"]
    assert "teacher.value" not in collate(items)["numbers"]  # scores of some are scores of none
