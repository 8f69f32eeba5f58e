"""Every kind of bad row against its message and line."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import read_rows
from pair_records import ASK, HH, PAIR, PLAIN, RIGHT, SYSTEM, WRONG, from_value, write

from nemo_tvkd.data.pairs import row_from_record
from nemo_tvkd.errors import UserError

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
    ({**PAIR, "chosen_reward": [1]}, "chosen_reward is a list: it must be a number"),
    (
        {**PAIR, "chosen_reward": 1, "rejected_reward": float("nan")},
        "rejected_reward is nan: it must be a finite number",
    ),
    ({**PAIR, "score_chosen": "8"}, "score_chosen is text: it must be a number"),
    ({**PAIR, "chosen_score": True}, "chosen_score is true or false: it must be a number"),
    ({**PAIR, "chosen_rating": 10**400}, "chosen_rating is inf: it must be a finite number"),
    ({**PAIR, "id": [1]}, "id is a list: it must be text or an integer"),
    ({**PAIR, "chosen": "a\ud83d"}, "chosen is not valid Unicode: half a surrogate pair at character 2"),
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
