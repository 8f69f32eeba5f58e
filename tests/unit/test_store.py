"""The score store: exact round trips, whatever the part size and order, in few bytes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from score_jobs import REPOSITORY, make_identity, make_ids, make_scores, run_job

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.store import ScoreStore
from nemo_tvkd.scores.writer import StoreWriter


@pytest.fixture
def ids() -> list[str]:
    return make_ids(8)  # three parts, the last of two


def assert_equal(got: PairScores, expected: PairScores) -> None:
    """Bit for bit."""
    assert set(got.scores) == set(expected.scores)
    for stem, pair in expected.scores.items():
        for number, wanted in zip(got.scores[stem], pair, strict=True):
            if stem.startswith("value"):
                assert number.dtype == np.float32
                assert number.tobytes() == wanted.tobytes()
                assert number.flags.writeable
            else:
                assert number == wanted


# Round trip


@pytest.mark.parametrize("what", [("value",), ("logprob",), ("reward",), ("value", "logprob", "reward")])
def test_round_trip_is_exact(tmp_path: Path, ids: list[str], what: tuple[str, ...]) -> None:
    run_job(tmp_path / "s", ids, what=what)
    store = ScoreStore.open(tmp_path / "s")
    assert len(store) == len(ids)
    assert store.identity == make_identity(ids, what=what)
    for expected in make_scores(ids, what):
        got = store.get(expected.pair_id)
        assert_equal(got, expected)
        assert tuple(got.scores) == what


def test_extreme_numbers_and_single_values_survive(tmp_path: Path) -> None:
    ids = make_ids(1)
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    values = np.array([-0.0, tiny, huge], np.float32), np.array([1], np.float32)
    row = PairScores(ids[0], {"value": values, "logprob": (-1e-300, -1e300)})
    writer = StoreWriter(tmp_path / "s", make_identity(ids, what=("value", "logprob")), ids)
    writer.prepare()
    writer.write_part(0, [row])
    writer.finish()
    got = ScoreStore.open(tmp_path / "s").get(ids[0]).scores
    assert got["value"][0].tobytes() == values[0].tobytes()
    assert got["value"][1].tolist() == [1.0]
    assert got["logprob"] == (-1e-300, -1e300)


@pytest.mark.parametrize(("count", "parts"), [(0, 0), (1, 1), (3, 1), (4, 2), (8, 3), (9, 3)])
def test_part_size_need_not_divide(tmp_path: Path, count: int, parts: int) -> None:
    ids = make_ids(count)
    writer = run_job(tmp_path / "s", ids)
    assert len(writer.parts()) == parts
    assert [pair_id for part in writer.parts() for pair_id in writer.part_pair_ids(part)] == ids
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert [entry["rows"] for entry in manifest["parts"]] == [len(writer.part_pair_ids(p)) for p in writer.parts()]
    assert manifest["totals"]["rows"] == count == len(ScoreStore.open(tmp_path / "s"))


def test_the_same_pair_twice_is_two_rows(tmp_path: Path) -> None:
    ids = make_ids(4)
    ids += ids[:2]
    run_job(tmp_path / "s", ids)
    store = ScoreStore.open(tmp_path / "s")
    assert len(store) == 6
    assert_equal(store.get(ids[0]), make_scores(ids[:1])[0])


def test_a_store_larger_than_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the parts used last stay in memory; another process reads them again, but verifies none twice."""
    ids = make_ids(20)
    run_job(tmp_path / "s", ids)
    whole = ScoreStore.open(tmp_path / "s")
    sizes = [table.nbytes for table in whole._held.values()]
    assert len(sizes) == 7
    budget = 2 * max(sizes) + 1
    monkeypatch.setattr("nemo_tvkd.scores.store.HELD_BYTES", budget)
    store = ScoreStore.open(tmp_path / "s")
    monkeypatch.setattr("nemo_tvkd.scores.store.read_part", None)
    travelled = pickle.dumps(store)
    assert len(travelled) < 1000
    for one in (store, pickle.loads(travelled)):
        for row in np.random.default_rng(0).permutation(20):
            assert_equal(one.get(ids[row]), make_scores(ids[row : row + 1])[0])
            assert sum(table.nbytes for table in one._held.values()) == one._bytes <= budget
        assert one.numbers("logprob").tolist() == whole.numbers("logprob").tolist()
        one.check_covers(ids, ids, "teacher.scores")
        with pytest.raises(UserError, match=r"^teacher\.scores: 1 of 2 pairs .* b;"):
            one.check_covers([ids[0], ids[0] + "0"], ["a", "b"], "teacher.scores")
        with pytest.raises(KeyError):
            one.get("0")


def test_order_of_what_makes_no_difference(ids: list[str]) -> None:
    assert make_identity(ids, what=("reward", "value")) == make_identity(ids, what=("value", "reward"))
    with pytest.raises(ValueError, match="valu"):
        make_identity(ids, what=("valu",))


def test_importing_the_store_does_not_import_pyarrow() -> None:
    code = "import sys, nemo_tvkd.scores.store; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# Size


@pytest.mark.parametrize(("what", "bound"), [(("value",), 4.0), (("value", "logprob", "reward"), 4.0)])
def test_bytes_per_response_token(tmp_path: Path, what: tuple[str, ...], bound: float) -> None:
    """All files of the store; 8 is what is promised. Normal values are the worst case: their mantissas are noise."""
    ids = make_ids(1000)
    rng = np.random.default_rng(0)
    lengths = rng.integers(80, 121, (1000, 2))
    rows = make_scores(ids, what)
    for row, (chosen, rejected) in zip(rows, lengths, strict=True):
        row.scores["value"] = tuple(rng.normal(10, 1, n + 1).astype(np.float32) for n in (chosen, rejected))
    writer = StoreWriter(tmp_path / "s", make_identity(ids, what=what), ids)
    writer.prepare()
    writer.write_part(0, rows)
    writer.finish()
    size = sum(file.stat().st_size for file in (tmp_path / "s").iterdir())
    per_token = size / lengths.sum()
    print(f"{'+'.join(what)}: {per_token:.3f} bytes per response token")
    assert per_token < bound
