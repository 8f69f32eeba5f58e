"""The score store: exact round trips, resumption after a kill at any moment, and errors that name what is wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.store import Identity, PairScores, ScoreStore, StoreWriter, data_fingerprint

PART_SIZE = 3
REPOSITORY = Path(__file__).resolve().parents[2]


def make_ids(count: int) -> list[str]:
    return [hashlib.md5(str(index).encode()).hexdigest() for index in range(count)]


def make_identity(pair_ids: list[str], **changed: object) -> Identity:
    fields: dict = {
        "model": "/models/teacher",
        "weights": "w1",
        "tokenizer": "tok1",
        "chat_template": "tpl1",
        "what": ("value", "logprob", "reward"),
        "value_kind": "soft_value",
        "temperature": 0.1,
        "max_length": 512,
        "max_prompt_length": 128,
        "data": data_fingerprint(pair_ids),
    }
    return Identity(**{**fields, **changed})


def make_scores(pair_ids: list[str], what: tuple[str, ...] = ("value", "logprob", "reward")) -> list[PairScores]:
    rows = []
    for pair_id in pair_ids:
        rng = np.random.default_rng(int(pair_id, 16))
        row = PairScores(pair_id)
        for side in ("chosen", "rejected"):
            if "value" in what:
                setattr(row, f"{side}_value", rng.normal(10, 3, rng.integers(2, 9)).astype(np.float32))
            if "logprob" in what:
                setattr(row, f"{side}_logprob", -float(rng.exponential(100)))
            if "reward" in what:
                setattr(row, f"{side}_reward", float(rng.normal()))
        rows.append(row)
    return rows


def run_job(path: Path, pair_ids: list[str], dp: int = 1, **changed: object) -> StoreWriter:
    """The scoring job's skeleton: what a killed job would do again."""
    writers = [StoreWriter(path, make_identity(pair_ids, **changed), pair_ids, PART_SIZE) for _ in range(dp)]
    writers[0].prepare()
    for rank in reversed(range(dp)):
        writer = writers[rank]
        for part in writer.parts():
            if part % dp == rank and not writer.is_complete(part):
                writer.write_part(part, make_scores(list(writer.part_pair_ids(part)), writer.identity.what))
    writers[0].finish()
    return writers[0]


def digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.fixture
def ids() -> list[str]:
    return make_ids(8)  # three parts, the last of two


@pytest.fixture
def whole(tmp_path: Path, ids: list[str]) -> dict[str, str]:
    """The files of a job that was never killed."""
    run_job(tmp_path / "whole", ids)
    return digests(tmp_path / "whole")


# Round trip


@pytest.mark.parametrize("what", [("value",), ("logprob",), ("reward",), ("value", "logprob", "reward")])
def test_round_trip_is_exact(tmp_path: Path, ids: list[str], what: tuple[str, ...]) -> None:
    run_job(tmp_path / "s", ids, what=what)
    store = ScoreStore.open(tmp_path / "s")
    assert len(store) == len(ids)
    assert store.identity == make_identity(ids, what=what)
    for expected in make_scores(ids, what):
        got = store.get(expected.pair_id)
        for side in ("chosen", "rejected"):
            values, wanted = getattr(got, f"{side}_value"), getattr(expected, f"{side}_value")
            if wanted is None:
                assert values is None
            else:
                assert values.dtype == np.float32
                assert values.tobytes() == wanted.tobytes()
                assert values.flags.writeable
            assert getattr(got, f"{side}_logprob") == getattr(expected, f"{side}_logprob")
            assert getattr(got, f"{side}_reward") == getattr(expected, f"{side}_reward")


def test_extreme_numbers_and_single_values_survive(tmp_path: Path) -> None:
    ids = make_ids(1)
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    row = PairScores(ids[0], np.array([-0.0, tiny, huge], np.float32), np.array([1], np.float32), -1e-300, -1e300)
    writer = StoreWriter(tmp_path / "s", make_identity(ids, what=("value", "logprob")), ids)
    writer.prepare()
    writer.write_part(0, [row])
    writer.finish()
    got = ScoreStore.open(tmp_path / "s").get(ids[0])
    assert got.chosen_value is not None
    assert got.rejected_value is not None
    assert got.chosen_value.tobytes() == row.chosen_value.tobytes()  # type: ignore[union-attr]
    assert got.rejected_value.tolist() == [1.0]
    assert (got.chosen_logprob, got.rejected_logprob) == (-1e-300, -1e300)


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
    assert store.get(ids[0]).chosen_logprob == make_scores(ids[:1])[0].chosen_logprob


def test_order_of_what_makes_no_difference(ids: list[str]) -> None:
    assert make_identity(ids, what=("reward", "value")) == make_identity(ids, what=("value", "reward"))
    with pytest.raises(ValueError, match="valu"):
        make_identity(ids, what=("valu",))


def test_importing_the_store_does_not_import_pyarrow() -> None:
    code = "import sys, nemo_tvkd.scores.store; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# Killed and run again


@pytest.mark.parametrize("dp", [2, 3, 5])
def test_layout_leaves_no_trace(tmp_path: Path, ids: list[str], whole: dict[str, str], dp: int) -> None:
    run_job(tmp_path / "s", ids, dp=dp)
    assert digests(tmp_path / "s") == whole


class Killed(BaseException):
    """Stands for kill -9: the store must not catch it."""


def die_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Die just before the call-th fsync or rename, the moments between which the directory changes."""
    left = [call]

    def counted(original):  # type: ignore[no-untyped-def]
        def function(*args):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*args)

        return function

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "replace", counted(os.replace))


def test_resume_after_a_kill_at_every_step(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    call = 0
    while True:
        call += 1
        path = tmp_path / f"killed-{call}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_at(monkeypatch, call)
            try:
                run_job(path, ids)
            except Killed:
                pass
            else:
                break  # the job has no further step to die at
        if not (path / "manifest.json").exists():
            with pytest.raises(UserError):
                ScoreStore.open(path)
        run_job(path, ids)
        assert digests(path) == whole, f"killed at step {call}"
    assert call == 3 * len(whole) + 1  # file and directory synced, file renamed, for each file


def partial_temporary(path: Path, part: Path) -> None:
    (path / f".{part.name}.4711.tmp").write_bytes(part.read_bytes()[:100])
    part.unlink()


def missing(path: Path, part: Path) -> None:
    part.unlink()


def truncated(path: Path, part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-20])


def empty(path: Path, part: Path) -> None:
    part.write_bytes(b"")


def byte_flipped(path: Path, part: Path) -> None:
    flip(part, part.stat().st_size // 3)


def of_another_identity(path: Path, part: Path) -> None:
    other = path.parent / "other"
    run_job(other, make_ids(8), weights="w2")
    part.write_bytes((other / part.name).read_bytes())


def of_another_position(path: Path, part: Path) -> None:
    part.write_bytes((path / "part-000000.parquet").read_bytes())


def intact(path: Path, part: Path) -> None:
    pass


@pytest.mark.parametrize(
    "damage",
    [partial_temporary, missing, truncated, empty, byte_flipped, of_another_identity, of_another_position, intact],
)
@pytest.mark.parametrize("finished", [False, True])
def test_resume_rewrites_what_is_bad_and_only_that(
    tmp_path: Path,
    ids: list[str],
    whole: dict[str, str],
    damage: Callable[[Path, Path], None],
    finished: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "s"
    run_job(path, ids)
    if not finished:
        (path / "manifest.json").unlink()
    damage(path, path / "part-000001.parquet")
    written = []
    write_part = StoreWriter.write_part

    def noted(writer: StoreWriter, part: int, scores: Sequence[PairScores]) -> None:
        written.append(part)
        write_part(writer, part, scores)

    monkeypatch.setattr(StoreWriter, "write_part", noted)
    run_job(path, ids)
    assert written == ([] if damage is intact else [1])
    assert digests(path) == whole


def test_a_finished_store_run_again_is_left_alone(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()}
    writer = run_job(tmp_path / "s", ids)
    writer.finish()
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()} == before


def test_a_damaged_part_may_come_back_with_other_values(tmp_path: Path, ids: list[str]) -> None:
    """A GPU does not round twice alike: the manifest must follow the part that is there."""
    writer = run_job(tmp_path / "s", ids)
    flip(tmp_path / "s" / "part-000001.parquet", 50)
    writer.prepare()
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert [part for part in writer.parts() if not writer.is_complete(part)] == [1]
    rows = make_scores(list(writer.part_pair_ids(1)))
    rows[0].chosen_reward = 0.125
    writer.write_part(1, rows)
    writer.finish()
    assert ScoreStore.open(tmp_path / "s").get(rows[0].pair_id).chosen_reward == 0.125


def test_a_damaged_manifest_is_written_again(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    run_job(tmp_path / "s", ids)
    (tmp_path / "s" / "manifest.json").write_text('{"format": 1')
    with pytest.raises(UserError, match=r"manifest\.json is not readable JSON"):
        ScoreStore.open(tmp_path / "s")
    run_job(tmp_path / "s", ids)
    assert digests(tmp_path / "s") == whole


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_store

left, fsync = [int(sys.argv[2])], os.fsync
def die(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)  # half of the bytes have reached the disk
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = die
test_store.run_job(Path(sys.argv[1]), test_store.make_ids(8))
"""


@pytest.mark.parametrize("call", [5, 9])  # the second part, the manifest
def test_resume_after_a_real_kill_in_the_middle_of_a_file(
    tmp_path: Path, ids: list[str], whole: dict[str, str], call: int
) -> None:
    path = tmp_path / "s"
    child = CHILD.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", child, str(path), str(call)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in path.iterdir() if file.suffix == ".tmp"]
    with pytest.raises(UserError, match="unfinished"):
        ScoreStore.open(path)
    run_job(path, ids)
    assert digests(path) == whole


def test_the_model_path_may_change_between_runs(tmp_path: Path, ids: list[str], whole: dict[str, str]) -> None:
    run_job(tmp_path / "s", ids)
    (tmp_path / "s" / "manifest.json").unlink()
    run_job(tmp_path / "s", ids, model="/mnt/elsewhere/teacher")
    assert digests(tmp_path / "s") == whole


# Writing: what is refused


@pytest.mark.parametrize(
    ("changed", "there", "here"),
    [
        ({"weights": "w2"}, '"w1"', '"w2"'),
        ({"tokenizer": "tok2"}, '"tok1"', '"tok2"'),
        ({"chat_template": "tpl2"}, '"tpl1"', '"tpl2"'),
        ({"what": ("value",)}, '["value", "logprob", "reward"]', '["value"]'),
        ({"value_kind": "max"}, '"soft_value"', '"max"'),
        ({"temperature": 1.0}, "0.1", "1.0"),
        ({"max_length": 1024}, "512", "1024"),
        ({"max_prompt_length": 64}, "128", "64"),
    ],
)
def test_output_of_another_identity_is_refused(
    tmp_path: Path, ids: list[str], changed: dict, there: str, here: str
) -> None:
    run_job(tmp_path / "s", ids)
    before = digests(tmp_path / "s")
    with pytest.raises(UserError) as error:
        run_job(tmp_path / "s", ids, **changed)
    message = one_line(error)
    assert message.startswith("score.output: ")
    assert f"{next(iter(changed))} is {there} there and {here} here" in message
    assert digests(tmp_path / "s") == before


def test_output_of_other_data_or_part_size_is_refused(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    with pytest.raises(UserError, match=r"score\.output: .* data is .* there and .* here"):
        run_job(tmp_path / "s", ids[::-1])
    with pytest.raises(UserError, match="part_size is 3 there and 4 here"):
        StoreWriter(tmp_path / "s", make_identity(ids), ids, 4).prepare()


def test_a_directory_of_other_things_is_refused_and_left_alone(tmp_path: Path, ids: list[str]) -> None:
    (tmp_path / "notes.tmp").write_text("mine")
    with pytest.raises(UserError, match=r"score\.output: .* holds no score store") as error:
        run_job(tmp_path, ids)
    one_line(error)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.tmp"]


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, ids: list[str]) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(UserError, match=r"score\.output: cannot create"):
        run_job(tmp_path / "s", ids)


def test_a_full_disk_is_said_so(tmp_path: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"score\.output: cannot write .*plan\.json: No space left on device") as error:
        run_job(tmp_path / "s", ids)
    one_line(error)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", ["chosen_value", "rejected_value", "rejected_logprob", "chosen_reward"])
def test_a_score_that_is_not_finite_is_refused(tmp_path: Path, ids: list[str], column: str, bad: float) -> None:
    writer = StoreWriter(tmp_path / "s", make_identity(ids), ids, PART_SIZE)
    writer.prepare()
    rows = make_scores(ids[:PART_SIZE])
    if column.endswith("_value"):
        getattr(rows[1], column)[1] = bad
    else:
        setattr(rows[1], column, bad)
    with pytest.raises(UserError, match=f"pair {ids[1]}: {column} is NaN or infinite") as error:
        writer.write_part(0, rows)
    one_line(error)
    assert not writer.is_complete(0)


def test_other_pairs_and_other_columns_are_our_own_mistakes(tmp_path: Path, ids: list[str]) -> None:
    writer = StoreWriter(tmp_path / "s", make_identity(ids), ids, PART_SIZE)
    writer.prepare()
    with pytest.raises(AssertionError, match="other pairs"):
        writer.write_part(0, make_scores(ids[1:4]))
    with pytest.raises(AssertionError, match="the store has"):
        writer.write_part(0, make_scores(ids[:3], ("value",)))
    with pytest.raises(AssertionError, match="other data"):
        StoreWriter(tmp_path / "s", make_identity(ids), ids[:-1])


def test_finish_names_what_is_missing(tmp_path: Path, ids: list[str]) -> None:
    writer = StoreWriter(tmp_path / "s", make_identity(ids), ids, PART_SIZE)
    writer.prepare()
    writer.write_part(0, make_scores(ids[:3]))
    with pytest.raises(UserError, match=r"lacks 2 of 3 parts, first part-000001\.parquet") as error:
        writer.finish()
    assert one_line(error).startswith("score.output: ")
    assert not (tmp_path / "s" / "manifest.json").exists()


# Reading: what is refused


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^oracle\.scores: no score store at .*nowhere") as error:
        ScoreStore.open(tmp_path / "nowhere", key="oracle.scores")
    one_line(error)


def test_an_unfinished_store_is_refused(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"^teacher\.scores: .*unfinished.*run the same score command again") as error:
        ScoreStore.open(tmp_path / "s")
    one_line(error)


def test_every_corrupted_byte_is_noticed_and_its_shard_named(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    part = tmp_path / "s" / "part-000002.parquet"
    for position in range(0, part.stat().st_size, 97):
        flip(part, position)
        with pytest.raises(UserError, match=r"^teacher\.scores: .*part-000002\.parquet is truncated or corr") as error:
            ScoreStore.open(tmp_path / "s")
        one_line(error)
        flip(part, position)
    ScoreStore.open(tmp_path / "s")


def test_a_truncated_and_a_missing_shard_are_named(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    part = tmp_path / "s" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"part-000001\.parquet is truncated or corrupted"):
        ScoreStore.open(tmp_path / "s")
    part.unlink()
    with pytest.raises(UserError, match=r"cannot read .*part-000001\.parquet \(No such file"):
        ScoreStore.open(tmp_path / "s")


def test_a_store_of_another_format_is_refused(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    file = tmp_path / "s" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(UserError, match=r"^teacher\.scores: .*has format 2, this version reads format 1"):
        ScoreStore.open(tmp_path / "s")
    del manifest["identity"]["weights"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is damaged"):
        ScoreStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("field", "expected", "shown"),
    [
        ("weights", "w2", '"w1" in the store and "w2" is expected'),
        ("tokenizer", "tok2", '"tok1" in the store and "tok2" is expected'),
        ("chat_template", "tpl2", '"tpl1" in the store and "tpl2" is expected'),
        ("value_kind", "margin", '"soft_value" in the store and "margin" is expected'),
        ("temperature", 1.0, "0.1 in the store and 1.0 is expected"),
        ("max_length", 1024, "512 in the store and 1024 is expected"),
        ("max_prompt_length", 64, "128 in the store and 64 is expected"),
        ("data", "0", "in the store and"),
    ],
)
def test_check_names_the_field_that_differs(
    tmp_path: Path, ids: list[str], field: str, expected: object, shown: str
) -> None:
    run_job(tmp_path / "s", ids)
    store = ScoreStore.open(tmp_path / "s")
    with pytest.raises(UserError) as error:
        store.check(what=["value"], key="teacher.scores", **{field: expected})
    message = one_line(error)
    assert message.startswith("teacher.scores: ")
    assert f"{field} is " in message
    assert shown in message
    assert str(tmp_path / "s") in message


def test_check_passes_what_fits(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids, what=("value",))
    store = ScoreStore.open(tmp_path / "s")
    store.check(what=["value"], key="k", weights="w1", tokenizer=None, temperature=0.1 * (1 + 1e-12), max_length=512)
    with pytest.raises(UserError, match=r'what is \["value"\] in the store and \["logprob"\] is missing'):
        store.check(what=["value", "logprob"], key="k")
    with pytest.raises(UserError, match="temperature"):
        store.check(what=["value"], key="k", temperature=0.1 * (1 + 1e-8))
    with pytest.raises(AssertionError, match="not fields of a store"):
        store.check(what=["value"], key="k", tempertaure=1.0)


def test_pairs_that_are_not_covered_are_named_by_row(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids)
    store = ScoreStore.open(tmp_path / "s")
    store.check_covers(ids[::-2], ["unused"] * 4, key="teacher.scores")
    asked = [ids[0], *make_ids(11)[8:], ids[1]]
    sources = [f"hh.jsonl:{line}" for line in range(1, 6)]
    with pytest.raises(UserError) as error:
        store.check_covers(asked, sources, key="teacher.scores")
    assert one_line(error) == (
        f"teacher.scores: 3 of 5 pairs are not in the store {tmp_path / 's'}, first hh.jsonl:2; "
        "it was made from other data or lengths: score this data"
    )
    with pytest.raises(KeyError):
        store.get(asked[1])


# Size


@pytest.mark.parametrize(("what", "bound"), [(("value",), 4.0), (("value", "logprob", "reward"), 4.0)])
def test_bytes_per_response_token(tmp_path: Path, what: tuple[str, ...], bound: float) -> None:
    """All files of the store; 8 is what is promised. Normal values are the worst case: their mantissas are noise."""
    ids = make_ids(1000)
    rng = np.random.default_rng(0)
    lengths = rng.integers(80, 121, (1000, 2))
    rows = make_scores(ids, what)
    for row, (chosen, rejected) in zip(rows, lengths, strict=True):
        row.chosen_value = rng.normal(10, 1, chosen + 1).astype(np.float32)
        row.rejected_value = rng.normal(10, 1, rejected + 1).astype(np.float32)
    writer = StoreWriter(tmp_path / "s", make_identity(ids, what=what), ids)
    writer.prepare()
    writer.write_part(0, rows)
    writer.finish()
    size = sum(file.stat().st_size for file in (tmp_path / "s").iterdir())
    per_token = size / lengths.sum()
    print(f"{'+'.join(what)}: {per_token:.3f} bytes per response token")
    assert per_token < bound
