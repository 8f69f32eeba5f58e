"""Which states of a packed row count where examples have masks: positions and counts written by hand."""

from typing import Any

import numpy as np
import pytest

from nemo_tvkd.data.batch import Item, collate, trained_lengths
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.parallel.sequence import response_states


def item(prompt: list[int], chosen: list[int], mask: list[int] | None, rejected: list[int] | None = None) -> Item:
    ids = [None if part is None else np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected)]
    marks = None if mask is None else np.array(mask, dtype=bool)
    assert ids[0] is not None
    assert ids[1] is not None
    return Item(Tokenized(ids[0], ids[1], ids[2], "0" * 32, "f:1", truncated=False, chosen_mask=marks))


def states(batch: dict[str, Any], kind: str = "actions", masked: bool = True) -> tuple[list[int], list[int]]:
    spans = (batch[f"{part}lengths"] for part in ("", "prompt_", "response_"))
    at, counts = response_states(*spans, kind, batch.get("loss_masks") if masked else None)
    return at.tolist(), counts


def test_states_before_masked_tokens() -> None:
    """Two conversations and one whose response counts in full, filled up to eight: 5 + 3 + 6 tokens."""
    batch = collate(
        [item([9, 9], [5, 6, 7], [1, 0, 1]), item([9], [5, 6], None), item([9], [1, 2, 3, 4, 5], [0, 1, 1, 0, 0])], 8
    )
    assert batch["lengths"] == [5, 3, 6, 2]
    # row:    9 9 5 6 7 | 9 5 6 | 9 1 2 3 4 5
    # states:   ^   ^     ^ ^       ^ ^
    assert states(batch) == ([1, 3, 5, 6, 9, 10], [2, 2, 2])
    assert [batch["labels"][at].item() for at in states(batch)[0]] == [5, 7, 5, 6, 2, 3]
    assert trained_lengths(batch) == [2, 2, 2]
    assert batch["response_lengths"] == [3, 2, 5]
    assert states(batch, "ends", masked=False) == ([1, 4, 5, 7, 8, 13], [2, 2, 2])


def test_without_masks_every_token_counts() -> None:
    plain, marked = (collate([item([9, 9], [5, 6, 7], mask)]) for mask in (None, [1, 1, 1]))
    assert "loss_masks" not in plain
    assert states(plain) == states(marked) == ([1, 2, 3], [3])
    assert trained_lengths(plain) == trained_lengths(marked) == [3]
    assert "loss_masks" not in collate([item([9], [5], None, [6, 7])])


def test_pairs_have_no_masks() -> None:
    with pytest.raises(AssertionError, match="f:1: pairs have no turns"):
        collate([item([9], [5], [1], [6])])
