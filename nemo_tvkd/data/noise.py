"""Label noise: a share of the pairs with chosen and rejected exchanged, to see what a method makes of wrong labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_tvkd.data.tokenized import Tokenized


def is_flipped(pair_id: str, share: float, seed: int) -> bool:
    """Whether this pair is one of the `share` (0 to 1) of all pairs that are flipped.

    It depends on the pair's id and the seed alone, on neither the order nor the other pairs; what is flipped at one
    share is flipped at every larger one.
    """
    assert 0 <= share <= 1, f"{share} is no share"
    digest = hashlib.sha256(f"label_noise {seed} {pair_id}".encode()).digest()
    # 53 bits are what a double holds: more of them would round up to 1, which a share of 1 would not flip
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53 < share


def flip(tokens: Tokenized) -> Tokenized:
    """The pair with its responses exchanged, and with them their positions and rewards.

    It keeps its pair_id, by which stores know it: what they say about its responses must be exchanged as well. The
    margin, which is the label's, stays.
    """
    assert tokens.rejected_ids is not None, f"{tokens.source}: an example has nothing to exchange"
    return replace(
        tokens,
        chosen_ids=tokens.rejected_ids,
        rejected_ids=tokens.chosen_ids,
        chosen_reward=tokens.rejected_reward,
        rejected_reward=tokens.chosen_reward,
        chosen_positions=tokens.rejected_positions,
        rejected_positions=tokens.chosen_positions,
    )


def record(path: Path, share: float, seed: int, flipped: Sequence[Tokenized], total: int) -> None:
    """Write which of the `total` pairs were flipped to `path` (label_noise.json); a reader never sees a part of it."""
    content = {
        "label_noise": share,
        "seed": seed,
        "pairs": total,
        "flipped": len(flipped),
        "flipped_pairs": [{"pair_id": tokens.pair_id, "source": tokens.source} for tokens in flipped],
    }
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
