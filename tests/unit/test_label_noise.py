"""Label noise: which pairs are flipped, what a flip exchanges, and what is written about it."""

import json
import random
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import read_rows

from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.noise import flip, is_flipped, record
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenized import Tokenized

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
IDS = [f"{number:032x}" for number in range(20_000)]
SHARES = (0.0, 0.05, 0.2, 0.4, 0.5, 0.9, 1.0)


def flipped(ids: list[str], share: float, seed: int = 0) -> set[str]:
    return {pair_id for pair_id in ids if is_flipped(pair_id, share, seed)}


@pytest.fixture(scope="module")
def real_pairs(templates: dict[str, Template]) -> list[Tokenized]:
    if not REAL.exists():
        pytest.skip(f"the real HH-RLHF pairs are not here: {REAL} does not exist")
    rows, _ = read_rows([str(REAL)], on_bad_row="skip")
    pairs, _ = tokenize_rows(rows, templates["mistral plain"], max_length=2048, max_prompt_length=None, positions=True)
    assert len(pairs) == 1196
    return pairs


def within_three_sigma(count: int, total: int, share: float) -> bool:
    return abs(count - total * share) <= 3 * (total * share * (1 - share)) ** 0.5


def test_flips_are_those_of_every_process_and_of_every_release() -> None:
    """Written down: a rerun of an old configuration must flip the same pairs."""
    found = [pair_id[-2:] for pair_id in IDS[:40] if is_flipped(pair_id, 0.2, 7)]
    program = (
        "from nemo_tvkd.data.noise import is_flipped\n"
        "print(*(f'{n:02x}' for n in range(40) if is_flipped(f'{n:032x}', 0.2, 7)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == found
    assert found == ["01", "03", "05", "07", "08", "09", "0c", "0f", "12", "17", "22"]


def test_none_are_flipped_at_0_and_all_at_1() -> None:
    for seed in range(5):
        assert flipped(IDS, 0.0, seed) == set()
        assert flipped(IDS, 1.0, seed) == set(IDS)
    assert flipped(IDS, 1e-12) == set()


def test_the_number_never_rounds_up_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, byte: bytes) -> None:
            self.byte = byte

        def digest(self) -> bytes:
            return self.byte * 32

    monkeypatch.setattr("hashlib.sha256", lambda data: Digest(b"\xff"))
    assert is_flipped("a", 1.0, 0)
    assert not is_flipped("a", 1 - 2**-53, 0)
    monkeypatch.setattr("hashlib.sha256", lambda data: Digest(b"\x00"))
    assert not is_flipped("a", 0.0, 0)
    assert is_flipped("a", 5e-324, 0)


def test_flips_depend_on_neither_order_nor_the_other_pairs() -> None:
    shuffled = random.Random(1).sample(IDS, len(IDS))
    assert flipped(shuffled, 0.3) == flipped(IDS, 0.3)
    some = IDS[5_000:9_000]
    assert flipped(some, 0.3) == flipped(IDS, 0.3) & set(some)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_what_is_flipped_at_one_share_is_flipped_at_every_larger_one(seed: int) -> None:
    sets = [flipped(IDS, share, seed) for share in SHARES]
    for share, smaller, larger in zip(SHARES, sets, sets[1:], strict=False):
        assert smaller < larger
        assert within_three_sigma(len(smaller), len(IDS), share)


def test_another_seed_flips_other_pairs() -> None:
    """Independent ones: of the pairs that one seed flips, another flips the share that it flips of all."""
    sets = [flipped(IDS, 0.3, seed) for seed in range(6)]
    for number, one in enumerate(sets):
        for other in sets[:number]:
            assert one != other
            assert within_three_sigma(len(one & other), len(one), 0.3)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_share_of_real_pairs(real_pairs: list[Tokenized], share: float, seed: int) -> None:
    ids = [pair.pair_id for pair in real_pairs]
    assert within_three_sigma(len(flipped(ids, share, seed)), len(ids), share)
    assert flipped(ids, share, seed) < flipped(ids, share + 0.1, seed)
    assert flipped(ids, share, seed) != flipped(ids, share, seed + 1)


def test_real_pairs_with_long_and_short_responses_are_flipped_alike(real_pairs: list[Tokenized]) -> None:
    """Noise that told anything about the pair would be a signal."""
    ordered = sorted(real_pairs, key=lambda pair: len(pair.chosen_ids))
    for half in (ordered[:598], ordered[598:]):
        assert within_three_sigma(len(flipped([pair.pair_id for pair in half], 0.3)), 598, 0.3)


def make(**changed: Any) -> Tokenized:
    ids = {name: np.array(value, dtype=np.int32) for name, value in SIDES.items()}
    rest = {"chosen_reward": 2.0, "rejected_reward": -1.0, "margin": 0.5}
    return Tokenized(**{**ids, "pair_id": "ab" * 16, "source": "f:3", "truncated": True, **rest, **changed})


SIDES = {
    "prompt_ids": [1, 5],
    "chosen_ids": [6, 7, 2],
    "rejected_ids": [8, 2],
    "chosen_positions": [0, 1, 4, 5],
    "rejected_positions": [0, 3, 4],
}


def same(one: Tokenized, other: Tokenized) -> bool:
    values = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Tokenized)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in values)


def test_a_flip_exchanges_the_responses_and_keeps_the_pair() -> None:
    pair = make()
    turned = flip(pair)
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        for what in ("ids", "positions", "reward"):
            assert np.array_equal(getattr(turned, f"{one}_{what}"), getattr(pair, f"{other}_{what}"))
    for name in ("pair_id", "source", "truncated", "margin"):
        assert getattr(turned, name) == getattr(pair, name)
    assert np.array_equal(turned.prompt_ids, pair.prompt_ids)
    assert same(pair, make()), "the original is left as it was"


@pytest.mark.parametrize("changed", [{}, {"chosen_reward": None, "chosen_positions": None, "margin": None}])
def test_two_flips_are_none(changed: dict[str, Any]) -> None:
    pair = make(**changed)
    assert not same(flip(pair), pair)
    assert same(flip(flip(pair)), pair)


def test_two_flips_are_none_for_real_pairs(real_pairs: list[Tokenized]) -> None:
    for pair in real_pairs:
        assert same(flip(flip(pair)), pair)
        positions = flip(pair).chosen_positions
        assert positions is not None
        assert len(positions) == len(flip(pair).chosen_ids) + 1


def test_every_field_of_a_pair_is_exchanged_or_kept_on_purpose() -> None:
    """A new field of Tokenized must be decided on here and in flip."""
    sides = {f"{side}_{what}" for side in ("chosen", "rejected") for what in ("ids", "positions", "reward")}
    kept = {"prompt_ids", "pair_id", "source", "truncated", "margin"}
    of_examples = {"chosen_mask"}
    assert {field.name for field in fields(Tokenized)} == sides | kept | of_examples


def test_an_example_cannot_be_flipped() -> None:
    with pytest.raises(AssertionError, match="f:3: an example has nothing to exchange"):
        flip(make(rejected_ids=None))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(AssertionError, match="is no share"):
        is_flipped("a", share, 0)


def test_the_record_names_every_flipped_pair(tmp_path: Path) -> None:
    path = tmp_path / "label_noise.json"
    pairs = [make(pair_id=pair_id, source=f"päirs.jsonl:{line}") for line, pair_id in enumerate(IDS[:50], 1)]
    turned = [flip(pair) for pair in pairs if is_flipped(pair.pair_id, 0.2, 3)]
    assert 0 < len(turned) < 50
    record(path, 0.2, 3, turned, len(pairs))
    assert json.loads(path.read_text()) == {
        "label_noise": 0.2,
        "seed": 3,
        "pairs": 50,
        "flipped": len(turned),
        "flipped_pairs": [{"pair_id": pair.pair_id, "source": pair.source} for pair in turned],
    }
    record(path, 0.0, 3, [], 50)
    assert json.loads(path.read_text())["flipped_pairs"] == []
    assert [file.name for file in tmp_path.iterdir()] == ["label_noise.json"]


def test_a_record_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "label_noise.json"
    record(path, 0.5, 0, [make()], 2)
    before = path.read_bytes()

    def full(self: Path, text: str) -> None:
        self.write_bytes(text[:20].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        record(path, 0.2, 0, [], 2)
    assert path.read_bytes() == before
