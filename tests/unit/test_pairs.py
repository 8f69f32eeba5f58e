"""Every layout against a row written by hand; every kind of bad row against its message and line."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tvkd.data.pairs import Row, read_rows, row_from_record
from nemo_tvkd.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"

ASK = {"role": "user", "content": "Two plus two?"}
RIGHT = {"role": "assistant", "content": "Four."}
WRONG = {"role": "assistant", "content": "Five."}
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Two plus two?\n\nAssistant:"
HH_TURNS = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, ASK)
PLAIN = "\n\nHuman: Two plus two?\n\nAssistant:"


def from_value(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def row(
    messages: Any = (ASK,), texts: Any = ("Four.", "Five."), plain: Any = (PLAIN, " Four.", " Five."), **more: Any
) -> Row:
    return Row(tuple(messages), *texts, *plain, source="f.jsonl:1", **more)  # type: ignore[misc]


STRINGS = row(plain=("Two plus two?", "Four.", "Five."))
SYSTEM = {"role": "system", "content": "Be brief."}
SHARED = [SYSTEM, *HH_TURNS]
SHARED_ROW = row(messages=SHARED, plain=("Be brief." + HH, " Four.", " Five."))

PAIRS: dict[str, tuple[dict[str, Any], Row, str]] = {
    "strings": (
        {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five.", "extra": [1, None]},
        STRINGS,
        "prompt/chosen/rejected strings",
    ),
    "strings keep their spaces": (
        {"prompt": " Q\n", "chosen": " a ", "rejected": "b"},
        row([{"role": "user", "content": " Q\n"}], (" a ", "b"), (" Q\n", " a ", "b")),
        "prompt/chosen/rejected strings",
    ),
    "string prompt that is a transcript": (
        {"prompt": HH, "chosen": " Four.", "rejected": " Five."},
        row(HH_TURNS, plain=(HH, " Four.", " Five.")),
        "prompt/chosen/rejected strings",
    ),
    "prompt repeated in whole transcripts": (
        {"prompt": HH, "chosen": HH + " Four.", "rejected": HH + " Five."},
        row(HH_TURNS, plain=(HH, " Four.", " Five.")),
        "prompt/chosen/rejected transcripts",
    ),
    "messages": (
        {"prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG]},
        row(),
        "prompt/chosen/rejected messages",
    ),
    "messages with text responses": (
        {"prompt": [ASK], "chosen": "Four.", "rejected": "Five."},
        row(),
        "prompt/chosen/rejected messages",
    ),
    "text prompt with one message each": (
        {"prompt": "Two plus two?", "chosen": [RIGHT], "rejected": [WRONG]},
        row(),
        "prompt/chosen/rejected messages",
    ),
    "message prompt repeated in the responses": (
        {"prompt": SHARED, "chosen": [*SHARED, RIGHT], "rejected": [*SHARED, WRONG]},
        SHARED_ROW,
        "prompt/chosen/rejected conversations",
    ),
    "UltraFeedback-binarized": (
        {
            "prompt": "Two plus two?",
            "prompt_id": "ab",
            "chosen": [ASK, RIGHT],
            "rejected": [ASK, WRONG],
            "messages": [ASK, RIGHT],
            "score_chosen": 8.5,
            "score_rejected": 3,
        },
        row(chosen_reward=8.5, rejected_reward=3.0),
        "prompt/chosen/rejected conversations",
    ),
    "HH-RLHF": (
        {"chosen": HH + " Four.", "rejected": HH + " Five.\n"},
        row(HH_TURNS, plain=(HH, " Four.", " Five.\n")),
        "chosen/rejected transcripts",
    ),
    "transcript with a system text and no leading newlines": (
        {"chosen": "Be brief." + HH + " Four.", "rejected": "Be brief." + HH + " Five."},
        SHARED_ROW,
        "chosen/rejected transcripts",
    ),
    "transcript that starts with Human:": (
        {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"},
        row([{"role": "user", "content": "Hi"}], ("a", "b"), ("Human: Hi\n\nAssistant:", " a", " b")),
        "chosen/rejected transcripts",
    ),
    "shared prefix of messages": (
        {"chosen": [*SHARED, RIGHT], "rejected": [*SHARED, WRONG]},
        SHARED_ROW,
        "chosen/rejected conversations",
    ),
    "from/value conversations": (
        {
            "chosen": [
                from_value("system", "Be brief."),
                from_value("human", "Two plus two?"),
                from_value("gpt", "Four."),
            ],
            "rejected": [
                from_value("system", "Be brief."),
                from_value("user", "Two plus two?"),
                from_value("assistant", "Five."),
            ],
        },
        row([SYSTEM, ASK], plain=("Be brief." + PLAIN, " Four.", " Five.")),
        "chosen/rejected conversations (from/value)",
    ),
    "from/value with the turns in a column of their own": (
        {
            "conversations": [from_value("human", "Two plus two?")],
            "chosen": from_value("gpt", "Four."),
            "rejected": from_value("gpt", "Five."),
        },
        row(),
        "conversations/chosen/rejected messages (from/value)",
    ),
    "rewards and id": (
        {"id": 7, "prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG], "chosen_reward": 1, "rejected_reward": -0.5},
        row(id="7", chosen_reward=1.0, rejected_reward=-0.5),
        "prompt/chosen/rejected messages",
    ),
    "scores": (
        {"id": "x", "prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG], "chosen_score": 2, "rejected_score": 1},
        row(id="x", chosen_reward=2.0, rejected_reward=1.0),
        "prompt/chosen/rejected messages",
    ),
    "ratings, one column only": (
        {"id": None, "prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG], "chosen_rating": 5},
        row(chosen_reward=5.0),
        "prompt/chosen/rejected messages",
    ),
}

EXAMPLE = row(texts=("Four.", None), plain=(PLAIN, " Four.", None))
TEXT_EXAMPLE = row(texts=("Four.", None), plain=("Two plus two?", "Four.", None))
EXAMPLES: dict[str, tuple[dict[str, Any], Row, str]] = {
    "messages": ({"messages": [ASK, RIGHT]}, EXAMPLE, "messages conversations"),
    "conversations": (
        {"conversations": [from_value("human", "Two plus two?"), from_value("gpt", "Four.")]},
        EXAMPLE,
        "conversations conversations (from/value)",
    ),
    "completion": ({"prompt": "Two plus two?", "completion": "Four."}, TEXT_EXAMPLE, "prompt/completion strings"),
    "response": ({"prompt": "Two plus two?", "response": "Four."}, TEXT_EXAMPLE, "prompt/response strings"),
    "instruction": (
        {"instruction": "Two plus two?", "input": "", "output": "Four."},
        TEXT_EXAMPLE,
        "instruction/output strings",
    ),
    "instruction with input": (
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        row([{"role": "user", "content": "Add.\n\n2, 2"}], ("4", None), ("Add.\n\n2, 2", "4", None)),
        "instruction/output strings",
    ),
    "a pair": ({"prompt": [ASK], "chosen": [RIGHT], "rejected": None}, EXAMPLE, "prompt/chosen messages"),
    "half a pair": ({"chosen": [ASK, RIGHT], "messages": 3}, EXAMPLE, "chosen conversations"),
    "a transcript": (
        {"chosen": HH + " Four."},
        row(HH_TURNS, ("Four.", None), (HH, " Four.", None)),
        "chosen transcripts",
    ),
}


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_layout(name: str, tmp_path: Path) -> None:
    record, expected, layout = PAIRS[name]
    assert row_from_record(record, "f.jsonl:1", True) == expected
    _, report = read_rows([write(tmp_path / "a.jsonl", [record])])
    assert (report.rows, dict(report.layouts), report.bad) == (1, {layout: 1}, [])


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_layout(name: str, tmp_path: Path) -> None:
    record, expected, layout = EXAMPLES[name]
    assert row_from_record(record, "f.jsonl:1", False) == expected
    _, report = read_rows([write(tmp_path / "a.jsonl", [record])], need_rejected=False)
    assert dict(report.layouts) == {layout: 1}


PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
BAD: list[tuple[Any, str]] = [
    ([1], "the row is a list, not an object with named columns"),
    ("x", "the row is text, not an object with named columns"),
    (None, "the row is null, not an object with named columns"),
    (
        {"prompt": "Q", "chosen": "a"},
        "missing column rejected: a pair needs chosen and rejected, and prompt unless they hold whole conversations; "
        "found: prompt, chosen",
    ),
    (
        {},
        "missing column chosen and rejected: a pair needs chosen and rejected, and prompt unless they hold whole "
        "conversations; found: none",
    ),
    ({**PAIR, "prompt": None}, "prompt is null"),
    ({**PAIR, "rejected": None}, "rejected is null"),
    ({**PAIR, "prompt": 3}, "prompt is a number: it must be text or a list of messages"),
    ({**PAIR, "chosen": True}, "chosen is true or false: it must be text or a list of messages"),
    ({**PAIR, "chosen": []}, "chosen is an empty list of messages"),
    (
        {**PAIR, "chosen": ["a"]},
        "chosen, message 1 is text: it must be an object with role and content, or from and value",
    ),
    ({**PAIR, "chosen": [{"role": "assistant", "text": "a"}]}, "chosen, message 1 has no content; found: role, text"),
    ({**PAIR, "chosen": {"from": "gpt"}}, "chosen, message 1 has no value; found: from"),
    ({**PAIR, "chosen": [{}]}, "chosen, message 1 has no role and no content; found: none"),
    (
        {**PAIR, "chosen": [{"role": "assistant", "content": None}]},
        "chosen, message 1, content is null: it must be text",
    ),
    ({**PAIR, "chosen": [{"role": ["user"], "content": "a"}]}, "chosen, message 1, role is a list: it must be text"),
    (
        {**PAIR, "prompt": [{"role": "tool", "content": "x"}]},
        "prompt, message 1: unknown role 'tool'; known are system, human, user, gpt, assistant",
    ),
    ({**PAIR, "chosen": ""}, "chosen: the response is empty"),
    ({**PAIR, "rejected": " \n\t"}, "rejected: the response is empty"),
    (
        {"prompt": [ASK], "chosen": [RIGHT], "rejected": [{"role": "assistant", "content": " "}]},
        "rejected: the response is empty",
    ),
    ({**PAIR, "rejected": "a"}, "chosen and rejected are identical: 'a'"),
    (
        {"prompt": [ASK], "chosen": "x\n" * 80, "rejected": "x\n" * 80},
        "chosen and rejected are identical: '" + "x\\n" * 30 + "...'",
    ),
    ({"chosen": HH + " a", "rejected": HH + " a\n"}, "chosen and rejected are identical: 'a'"),
    ({"chosen": HH + " a", "rejected": HH + "  "}, "rejected: the response is empty"),
    (
        {"chosen": "just text", "rejected": "other"},
        r'chosen has no "\n\nAssistant:" turn: without a prompt column it must be a transcript or messages',
    ),
    (
        {"chosen": HH + " a\n\nHuman: bye", "rejected": HH + " b"},
        "chosen: the last turn is from Human, not from the assistant",
    ),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
        "chosen and rejected do not share their prompt: at character 11 one has 'i', the other 'o'",
    ),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi you\n\nAssistant: b"},
        "chosen and rejected do not share their prompt: at character 12 one has '', the other ' you'",
    ),
    (
        {"chosen": HH + " b\n\nAssistant: a", "rejected": HH + " b\n\nAssistant: c"},
        "the turn before the response is from the assistant, not from the user",
    ),
    (
        {"prompt": "Three?", "chosen": PLAIN + " a", "rejected": PLAIN + " b"},
        "chosen and rejected are whole transcripts, but not of the prompt 'Three?'",
    ),
    (
        {"prompt": [ASK], "chosen": [RIGHT, ASK], "rejected": [WRONG]},
        "chosen: the last turn is from the user, not from the assistant",
    ),
    ({"chosen": [RIGHT], "rejected": [WRONG]}, "there is no user turn before the response"),
    (
        {"prompt": [ASK, RIGHT], "chosen": [WRONG], "rejected": "b"},
        "the turn before the response is from the assistant, not from the user",
    ),
    (
        {"chosen": [ASK, RIGHT], "rejected": [SYSTEM, ASK, WRONG]},
        "chosen and rejected do not share their prompt: they differ from turn 1 on",
    ),
    (
        {"prompt": "Three?", "chosen": [ASK, RIGHT], "rejected": [ASK, WRONG]},
        "chosen is a whole conversation, but not one that starts with the turns of prompt",
    ),
    ({**PAIR, "chosen_reward": None}, "chosen_reward is null: it must be a number"),
    (
        {**PAIR, "chosen_reward": 1, "rejected_reward": float("nan")},
        "rejected_reward is nan: it must be a finite number",
    ),
    ({**PAIR, "score_chosen": "8"}, "score_chosen is text: it must be a number"),
    ({**PAIR, "chosen_score": True}, "chosen_score is true or false: it must be a number"),
    ({**PAIR, "chosen_rating": 10**400}, "chosen_rating is inf: it must be a finite number"),
    ({**PAIR, "id": [1]}, "id is a list: it must be text or an integer"),
    ({**PAIR, "chosen": "a\ud83d"}, "chosen is no valid Unicode: half a surrogate pair at character 2"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_row(record: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [PAIR, record])
    with pytest.raises(UserError) as caught:
        read_rows([path])
    assert str(caught.value) == f"{path}:2: {message}"
    rows, report = read_rows([path], on_bad_row="skip")
    assert [r.source for r in rows] == [f"{path}:1"]
    assert report.bad == [f"{path}:2: {message}"]


def test_bad_example_says_what_is_needed() -> None:
    with pytest.raises(UserError) as caught:
        row_from_record({"prompt": "Q", "answer": "a"}, "f:3", False)
    assert str(caught.value) == (
        "f:3: missing columns: an example needs messages, conversations, prompt + completion, prompt + response, "
        "instruction + output, or chosen; found: prompt, answer"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": ', "Expecting value at column 13"),
        (b'{"prompt": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 200_000, "maximum recursion depth exceeded"),
        (b"1" * 5_000, "Exceeds the limit"),
    ],
    ids=["cut", "not UTF-8", "too deep", "too long a number"],
)
def test_unreadable_json_names_the_line(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good)
    with pytest.raises(UserError) as caught:
        read_rows([str(path)])
    assert str(caught.value).startswith(f"{path}:3: unreadable JSON: {reason}")
    assert "\n" not in str(caught.value)
    rows, report = read_rows([str(path)], on_bad_row="skip")
    assert [r.source for r in rows] == [f"{path}:1", f"{path}:4"]
    assert len(report.bad) == 1


VALUES: list[Any] = [
    *(None, True, 0, -1.5, float("inf"), 10**400, "", " ", "x", "\ud800", "\x00", HH, HH + " x"),
    *([], [[]], [None], ["x"], [{}], [ASK], [ASK, RIGHT], [RIGHT], {}, {"role": {}}, ASK, from_value("gpt", "y")),
    *([{"from": 1, "value": []}], [{"role": "user"}], [{"role": None, "content": None, "from": "human", "value": "x"}]),
]


def test_any_json_value_loads_or_gives_a_user_error() -> None:
    columns = ("prompt", "chosen", "rejected")
    records = [dict(zip(columns, values, strict=True)) for values in itertools.product(VALUES, repeat=3)]
    records += [{"chosen": a, "rejected": b} for a, b in itertools.product(VALUES, repeat=2)]
    records += [
        {"conversations": a, "chosen": from_value("gpt", "x"), "rejected": b}
        for a, b in itertools.product(VALUES, repeat=2)
    ]
    names = ("id", "input", "chosen_reward", "rejected_reward", "score_chosen", "messages", "conversations", "extra")
    records += [{**PAIR, name: value} for name in names for value in VALUES]
    records += [
        {a: x, b: y} for a, b in (("instruction", "output"), ("prompt", "completion")) for x in VALUES for y in VALUES
    ]
    records += [{name: value} for name in ("messages", "conversations") for value in VALUES]
    loaded = 0
    for record, pairs in itertools.product([*VALUES, *records], (True, False)):
        try:
            row_from_record(record, "f:1", pairs)
            loaded += 1
        except UserError as error:
            text = str(error)
            assert text.startswith("f:1: ")
            assert "\n" not in text
            assert len(text) < 300
            text.encode()
    assert 200 < loaded < len(records)


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
        {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "score_chosen": None},
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    rows, report = read_rows([str(path)], on_bad_row="skip")
    assert (rows[0].messages, rows[0].chosen, rows[0].chosen_reward) == ((ASK,), "Four.", 1.0)
    assert report.bad == [
        f"{path}:2: chosen and rejected are identical: 'Four.'",
        f"{path}:3: score_chosen is null: it must be a number",
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
    assert len(read_rows([str(tmp_path / "two")], key="data.test")[0]) == 1
    assert len(read_rows([str(tmp_path / "two" / "test")])[0]) == 1
    with pytest.raises(UserError, match=r"^data\.validation: .*two cannot be read: it holds the splits train, test"):
        read_rows([str(tmp_path / "two")], key="data.validation")

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
        ("a.csv", "has an unknown extension; known are .jsonl, .jsonl.gz, .json, .parquet and saved datasets"),
        ("empty.jsonl", "is empty: it holds no rows"),
        ("empty.json", "is empty: it holds no rows"),
        ("folder", "holds none of .jsonl, .jsonl.gz, .json, .parquet and is no saved dataset"),
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
