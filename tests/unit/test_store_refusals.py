"""The score store: what it refuses to write or read, with errors that name what is wrong."""

import json
import os
from pathlib import Path

import pytest
from score_jobs import PART_SIZE, digests, flip, make_identity, make_ids, make_scores, one_line, run_job

from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.store import ScoreStore
from nemo_tvkd.scores.writer import StoreWriter

MAX, SHARP = Statistic("max"), Statistic("soft_value", 0.1)
SHOWN = '{"kind": "soft_value", "temperature": 0.1}'
"""SHARP, the value of `score_jobs`' stores, in a message."""


@pytest.fixture
def ids() -> list[str]:
    return make_ids(8)  # three parts, the last of two


# Writing: what is refused


@pytest.mark.parametrize(
    ("changed", "there", "here"),
    [
        ({"weights": "w2"}, '"w1"', '"w2"'),
        ({"tokenizer": "tok2"}, '"tok1"', '"tok2"'),
        ({"chat_template": "tpl2"}, '"tpl1"', '"tpl2"'),
        ({"what": ("value",)}, '["value", "logprob", "reward"]', '["value"]'),
        ({"values": (MAX,)}, f"[{SHOWN}]", '[{"kind": "max", "temperature": 1.0}]'),
        ({"values": (Statistic("soft_value"),)}, f"[{SHOWN}]", '[{"kind": "soft_value", "temperature": 1.0}]'),
        ({"values": (SHARP, MAX)}, f"[{SHOWN}]", f'[{{"kind": "max", "temperature": 1.0}}, {SHOWN}]'),
        ({"value_storage": "ends"}, '"all"', '"ends"'),
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
    side, stem = column.split("_")
    pair = list(rows[1].scores[stem])
    if stem == "value":
        pair[side == "rejected"][1] = bad
    else:
        pair[side == "rejected"] = bad
    rows[1].scores[stem] = (pair[0], pair[1])
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
    file.write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(UserError, match=r"^teacher\.scores: .*has format 1, this version reads format 2") as error:
        ScoreStore.open(tmp_path / "s")
    one_line(error)
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
        ("value_storage", "ends", '"all" in the store and "ends" is expected'),
        ("precision", "bf16", '"fp32" in the store and "bf16" is expected'),
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
    store.check(what=["value"], key="k", weights="w1", tokenizer=None, max_length=512)
    with pytest.raises(UserError, match=r'what is \["value"\] in the store and \["logprob"\] is missing'):
        store.check(what=["value", "logprob"], key="k")
    for unknown in ("max_lenght", "values"):
        with pytest.raises(AssertionError, match="not fields of a store"):
            store.check(what=["value"], key="k", **{unknown: 1.0})


@pytest.mark.parametrize(
    ("field", "entry", "fault"),
    [
        ("value_storage", "middle", "is damaged"),
        ("value_storage", "", "is damaged"),
        ("value_storage", None, "is damaged"),
        ("value_storage", ["ends"], "is damaged"),
        ("value_storage", "ends", "does not say what part-000000.parquet holds"),
        ("values", [], "is damaged"),
        ("values", None, "is damaged"),
        ("values", "soft_value@0.1", "is damaged"),
        ("values", [{"kind": "soft_value"}], "is damaged"),
        ("values", [{"kind": "sharp_value", "temperature": 0.1}], "is damaged"),
        ("values", [{"kind": "soft_value", "temperature": 0}], "is damaged"),
        ("values", [{"kind": "soft_value", "temperature": "warm"}], "is damaged"),
        ("values", [{"kind": "soft_value", "temperature": 0.2}], "does not say what part-000000.parquet holds"),
        ("values", [{"kind": "max", "temperature": 1.0}], "does not say what part-000000.parquet holds"),
        (
            "values",
            [{"kind": "max", "temperature": 1.0}, {"kind": "margin", "temperature": 1.0}],
            "does not say what part-000000.parquet holds",
        ),
        ("what", ["logprob"], "does not say what part-000000.parquet holds"),
        ("weights", "w2", "does not say what part-000000.parquet holds"),
    ],
)
def test_a_manifest_that_was_edited_is_refused_and_written_again(
    tmp_path: Path, ids: list[str], field: str, entry: object, fault: str
) -> None:
    run_job(tmp_path / "s", ids)
    before = digests(tmp_path / "s")
    file = tmp_path / "s" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["identity"][field] = entry
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        ScoreStore.open(tmp_path / "s")
    message = one_line(error)
    assert message.startswith(f"teacher.scores: {file} {fault}: ")
    assert message.endswith("run the same score command again")
    run_job(tmp_path / "s", ids)
    assert digests(tmp_path / "s") == before


@pytest.mark.parametrize("entry", ["middle", None, ["ends"]])
def test_a_plan_that_was_edited_is_refused(tmp_path: Path, ids: list[str], entry: object) -> None:
    run_job(tmp_path / "s", ids)
    file = tmp_path / "s" / "plan.json"
    plan = json.loads(file.read_text())
    plan["identity"]["value_storage"] = entry
    file.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"^score\.output: .*plan\.json is not a plan of this version") as error:
        run_job(tmp_path / "s", ids)
    one_line(error)


def test_a_value_that_is_not_there_is_named(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids, values=(SHARP, MAX, Statistic("soft_value", 0.01)))
    store = ScoreStore.open(tmp_path / "s")
    for wanted, shown, remedy in (
        (Statistic("margin"), "margin", "score.value_kind=margin"),
        (
            Statistic("soft_value", 0.5),
            "soft_value at temperature 0.5",
            "score.value_kind=soft_value score.temperature=0.5",
        ),
        (
            Statistic("soft_value", 0.1 * (1 + 1e-8)),
            "soft_value at temperature 0.100000001",
            "score.temperature=0.100000001",
        ),
    ):
        with pytest.raises(UserError) as error:
            store.value_stem(wanted, "teacher.scores")
        message = one_line(error)
        assert message.startswith(f"teacher.scores: the score store {tmp_path / 's'} ")
        assert "has max, soft_value at temperature 0.01, soft_value at temperature 0.1 " in message
        assert f" and {shown} is needed; score the data again with " in message
        assert remedy in message


def test_a_store_without_values_says_so(tmp_path: Path, ids: list[str]) -> None:
    run_job(tmp_path / "s", ids, what=("logprob",))
    with pytest.raises(UserError, match="it has no value and max is needed") as error:
        ScoreStore.open(tmp_path / "s").value_stem(MAX, "oracle.scores")
    assert one_line(error).startswith("oracle.scores: ")


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
