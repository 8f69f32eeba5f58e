"""Pairs from every kind of file: what is read from where, and what is said of a file that cannot be."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import read_rows
from pair_records import ASK, PAIR, RIGHT, WRONG, write

from nemo_tvkd.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"


def records_of(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{i}", "chosen": f"a{i}", "rejected": f"b{i}", "extra": i} for i in range(count)]


def test_jsonl_gz_and_json_and_parquet_agree(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = records_of(5)
    plain = write(tmp_path / "a.jsonl", records)
    packed, listed, table, lines = (tmp_path / n for n in ("a.jsonl.gz", "a.json", "a.parquet", "lines.json"))
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    listed.write_text(json.dumps(records, indent=1))
    lines.write_bytes(Path(plain).read_bytes())
    pq.write_table(pa.Table.from_pylist(records), table, row_group_size=2)
    for path in (plain, packed, listed, table, lines):
        rows, report = read_rows([str(path)])
        assert [(r.plain_prompt, r.chosen, r.rejected) for r in rows] == [(f"Q{i}", f"a{i}", f"b{i}") for i in range(5)]
        assert [r.source for r in rows] == [f"{path}:{i}" for i in range(1, 6)]
        assert report.rows == 5


def test_parquet_messages_and_bad_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    records = [
        {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "score_chosen": 1.0},
        {"chosen": [ASK, RIGHT], "rejected": [ASK, RIGHT], "score_chosen": 2.0},
        {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "score_chosen": float("nan")},
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    rows, report = read_rows([str(path)], on_bad_row="skip")
    assert (rows[0].messages, rows[0].chosen, rows[0].chosen_reward) == ((ASK,), "Four.", 1.0)
    assert report.bad == [
        f"{path}:2: chosen and rejected are identical: 'Four.'",
        f"{path}:3: score_chosen is nan: it must be a finite number",
    ]


def test_table_without_known_columns_says_what_it_has(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), path)
    with pytest.raises(UserError, match=r"a\.parquet:1: missing column chosen and rejected: .*; found: text, label$"):
        read_rows([str(path)])


def test_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(records_of(3)).with_format("numpy")
    saved.save_to_disk(str(tmp_path / "one"))
    rows, _ = read_rows([str(tmp_path / "one")])
    assert [(r.chosen, r.source) for r in rows] == [(f"a{i}", f"{tmp_path / 'one'}:{i + 1}") for i in range(3)]

    parts = datasets.DatasetDict(train=saved, test=saved.select([2]))
    parts.save_to_disk(str(tmp_path / "two"))
    assert len(read_rows([str(tmp_path / "two")])[0]) == 3
    assert len(read_rows([str(tmp_path / "two")], key="data.validation")[0]) == 1
    (row,) = read_rows([str(tmp_path / "two" / "test")])[0]
    assert row.source == f"{tmp_path}/two/test:1"
    datasets.DatasetDict(a=saved, b=saved).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(
        UserError, match=r"^data\.validation: .*three: its splits are a, b: name one, for example .*three:a$"
    ):
        read_rows([str(tmp_path / "three")], key="data.validation")

    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"^data\.train: .*one cannot be read: "):
        read_rows([str(tmp_path / "one")])


def test_directory_of_files_in_name_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", records_of(1))
    write(tmp_path / "a.jsonl", records_of(2))
    (tmp_path / "README.md").write_text("about")
    rows, _ = read_rows([str(tmp_path), str(tmp_path / "b.jsonl")])
    assert [r.source.removeprefix(f"{tmp_path}/") for r in rows] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:1"]


def damaged(kind: str, tmp_path: Path) -> Path:
    path = tmp_path / {"gzip": "a.jsonl.gz", "parquet": "a.parquet", "list": "a.json"}.get(kind, kind)
    if kind == "gzip":
        path.write_bytes(gzip.compress(json.dumps(PAIR).encode() * 1000)[:-20])
    elif kind == "parquet":
        path.write_bytes(b"PAR1 and nothing else")
    elif kind == "list":
        path.write_text('[{"prompt": "Q"},\n 3,\n')
    elif kind.startswith("empty"):
        path.write_text("[]" if kind.endswith(".json") else "\n")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing.jsonl":
        path.write_text("x")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing.jsonl", "does not exist"),
        (
            "a.csv",
            "has an unknown extension; known are .jsonl, .json (both also as .gz or .zst), .parquet and saved datasets",
        ),
        ("empty.jsonl", "is empty: it holds no rows"),
        ("empty.json", "is empty: it holds no rows"),
        ("folder", "holds none of .jsonl, .json (both also as .gz or .zst), .parquet and is not a saved dataset"),
        ("gzip", "cannot be read: Compressed file ended before the end-of-stream marker was reached"),
        ("parquet", "cannot be read: Parquet magic bytes not found in footer."),
        ("list", "cannot be read: Expecting value: line 3 column 1 (char 22)"),
    ],
)
def test_whole_file_problem_names_key_and_path(kind: str, reason: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        read_rows([str(path)], key="data.validation", on_bad_row="skip")
    assert str(caught.value).startswith(f"data.validation: {path} {reason}")
    assert "\n" not in str(caught.value)


def test_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [3, 4])
    with pytest.raises(
        UserError, match=r"^data\.train: each of the 2 rows is bad; the first: .*a\.jsonl:1: the row is a number"
    ):
        read_rows([path], on_bad_row="skip")
    with pytest.raises(UserError, match=r"data\.on_bad_row=warn"):
        read_rows([path], on_bad_row="warn")


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here ({REAL})")
def test_real_pairs() -> None:
    rows, report = read_rows([str(REAL)], on_bad_row="skip")
    assert report.bad == [f"{REAL}:{line}: chosen: the response is empty" for line in (87, 517, 926, 1104)]
    assert (len(rows), report.rows, dict(report.layouts)) == (1196, 1196, {"chosen/rejected transcripts": 1196})
    with gzip.open(REAL, "rt", encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    for got in rows:
        record = records[int(got.source.rpartition(":")[2]) - 1]
        assert got.plain_prompt + got.plain_chosen == record["chosen"]
        assert got.plain_rejected is not None
        assert got.plain_prompt + got.plain_rejected == record["rejected"]
        assert got.plain_prompt.endswith("\n\nAssistant:")
        assert got.messages[-1]["role"] == "user"
        assert not any("\n\nHuman:" in turn["content"] for turn in got.messages)
