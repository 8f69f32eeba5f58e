"""The score store with several values of each state, and with the ends of values alone."""

import dataclasses
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_jobs import PART_SIZE, digests, make_identity, make_ids, make_scores, run_job

from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import ACTION_KINDS, VALUE_KINDS, Statistic
from nemo_tvkd.scores.identity import Identity
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.store import ScoreStore
from nemo_tvkd.scores.writer import StoreWriter

SHARP, SOFT, MAX = Statistic("soft_value", 0.01), Statistic("soft_value", 0.1), Statistic("max")
STEMS = ["value/max", "value/soft_value@0.01", "value/soft_value@0.1"]


@pytest.fixture
def ids() -> list[str]:
    return make_ids(8)  # three parts, the last of two


# Several values


def test_columns_of_one_value_and_of_several(tmp_path: Path, ids: list[str]) -> None:
    sides = lambda stems: [f"{side}_{stem}" for stem in stems for side in ("chosen", "rejected")]  # noqa: E731
    for values, what, stems in (
        ((MAX,), ("value",), ["value"]),
        ((SOFT,), ("reward", "value"), ["value", "reward"]),
        ((SOFT, MAX, SHARP), ("reward", "logprob", "value"), [*STEMS, "logprob", "reward"]),
        ((), ("logprob",), ["logprob"]),
    ):
        path = tmp_path / "-".join(what)
        run_job(path, ids, values=values, what=what)
        assert ScoreStore.open(path).identity.stems == stems
        assert pq.read_schema(path / "part-000000.parquet").names == ["pair_id", *sides(stems)]


def test_several_values_survive_exactly(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids, values=(SOFT, MAX, SHARP), what=("value", "logprob"))
    store = ScoreStore.open(tmp_path / "s")
    for expected in make_scores(ids, [*STEMS, "logprob"]):
        got = store.get(expected.pair_id).scores
        assert list(got) == [*STEMS, "logprob"]
        assert got["logprob"] == expected.scores["logprob"]
        for stem in STEMS:
            for number, wanted in zip(got[stem], expected.scores[stem], strict=True):
                assert number.dtype == np.float32
                assert number.tobytes() == wanted.tobytes()


def test_every_value_column_is_split_into_bytes(tmp_path: Path, ids: list[str]) -> None:
    """Parquet's name of a column's path has dots where `soft_value@0.01` has one of its own."""
    run_job(tmp_path / "s", ids, values=(SOFT, MAX, SHARP))
    group = pq.ParquetFile(tmp_path / "s" / "part-000000.parquet").metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    values = [column for column in columns if "value" in column.path_in_schema]
    assert len(values) == 6
    assert all("BYTE_STREAM_SPLIT" in column.encodings for column in values)


def test_order_and_repetition_of_values_make_no_difference(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids, values=(SOFT, MAX, SHARP))
    before = digests(tmp_path / "s")
    for number, values in enumerate([*permutations((SOFT, MAX, SHARP)), (MAX, MAX, SHARP, SOFT, SHARP)]):
        run_job(tmp_path / str(number), ids, values=values)
        assert digests(tmp_path / str(number)) == before
        run_job(tmp_path / "s", ids, values=values)
    assert digests(tmp_path / "s") == before
    assert make_identity(ids, values=(MAX, MAX)).stems[0] == "value"


def test_what_is_not_asked_for_leaves_no_trace(ids: list[str]) -> None:
    without = make_identity(ids, what=("logprob",), values=())
    assert make_identity(ids, what=("logprob",), values=(MAX, SOFT), value_storage="ends") == without
    assert (without.values, without.value_storage) == ((), "all")


def test_a_value_is_found_by_kind_and_temperature(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "three", ids, values=(SOFT, MAX, SHARP))
    run_job(tmp_path / "one", ids, values=(SOFT,))
    three, one = ScoreStore.open(tmp_path / "three"), ScoreStore.open(tmp_path / "one")
    assert [three.value_stem(value, "k") for value in (MAX, SHARP, SOFT)] == STEMS
    near = Statistic("soft_value", 0.1 * (1 + 1e-12))
    assert (three.value_stem(near, "k"), one.value_stem(near, "k")) == (STEMS[2], "value")
    with pytest.raises(UserError, match=r"it has soft_value at temperature 0\.1 and max is needed"):
        one.value_stem(MAX, "k")


def test_identities_that_cannot_be(ids: list[str]) -> None:
    for changed, match in (
        ({"values": ()}, "none is named"),
        ({"value_storage": "middle"}, "middle"),
        ({"values": (SOFT, Statistic("soft_value", 0.1000001))}, "one name"),
        ({"values": (MAX, Statistic("max", 0.5))}, "one name"),
    ):
        with pytest.raises(ValueError, match=match):
            make_identity(ids, **changed)


def test_an_identity_is_its_json(ids: list[str]) -> None:
    """Also of whole numbers, which JSON and Python write differently."""
    identity = make_identity(ids, values=(Statistic("soft_value", 1), MAX), value_storage="ends")
    assert {type(value.temperature) for value in identity.values} == {float}
    assert Identity.from_json(dataclasses.asdict(identity)) == identity


# The ends of values


def test_ends_survive_exactly(tmp_path: Path, ids: list[str]) -> None:
    values = (SOFT, MAX, SHARP)
    run_job(tmp_path / "s", ids, values=values, value_storage="ends")
    store = ScoreStore.open(tmp_path / "s")
    assert store.identity.value_storage == "ends"
    for expected in make_scores(ids, [*STEMS, "logprob", "reward"], ends=True):
        got = store.get(expected.pair_id).scores
        for stem in STEMS:
            assert [number.tolist() for number in got[stem]] == [wanted.tolist() for wanted in expected.scores[stem]]
            assert [number.shape for number in got[stem]] == [(2,), (2,)]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_ends_are_two(tmp_path: Path, ids: list[str], side: int, length: int) -> None:
    writer = StoreWriter(tmp_path / "s", make_identity(ids, value_storage="ends"), ids, PART_SIZE)
    writer.prepare()
    rows = make_scores(ids[:PART_SIZE], ends=True)
    pair = list(rows[1].scores["value"])
    pair[side] = np.zeros(length, np.float32)
    rows[1].scores["value"] = (pair[0], pair[1])
    name = ("chosen", "rejected")[side]
    with pytest.raises(AssertionError, match=f"pair {ids[1]}: {name}_value has {length} ends"):
        writer.write_part(0, rows)
    assert not writer.is_complete(0)


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_actions_have_no_ends(ids: list[str], kind: str) -> None:
    values = (Statistic(kind), Statistic("expectation"))
    make_identity(ids, values=values)
    if kind not in ACTION_KINDS:
        make_identity(ids, values=values, value_storage="ends")
        return
    with pytest.raises(ValueError, match="actions"):
        make_identity(ids, values=values, value_storage="ends")


# Size


def size_of(path: Path, storage: str) -> tuple[int, int]:
    """Bytes of a store of 1,000 pairs, all files included, and the number of their response tokens.

    Values are normal: their mantissas are noise, which nothing compresses. Responses of a pair share V(s_1).
    """
    ids = make_ids(1000)
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 201, (1000, 2))
    rows = []
    for pair_id, pair in zip(ids, lengths, strict=True):
        chosen, rejected = (rng.normal(20, 3, length + 1).astype(np.float32) for length in pair)
        rejected[0] = chosen[0]
        if storage == "ends":
            chosen, rejected = chosen[[0, -1]], rejected[[0, -1]]
        rows.append(PairScores(pair_id, {"value": (chosen, rejected)}))
    writer = StoreWriter(path, make_identity(ids, what=("value",), value_storage=storage), ids)
    writer.prepare()
    writer.write_part(0, rows)
    writer.finish()
    return sum(file.stat().st_size for file in path.iterdir()), int(lengths.sum())


def test_bytes_per_response_of_ends(tmp_path: Path) -> None:
    size, _ = size_of(tmp_path / "s", "ends")
    print(f"ends: {size / 2000:.2f} bytes per response")
    assert size <= 24 * 2000


def test_bytes_per_response_token(tmp_path: Path) -> None:
    size, tokens = size_of(tmp_path / "s", "all")
    print(f"all: {size / tokens:.3f} bytes per response token")
    assert size <= 8 * tokens
