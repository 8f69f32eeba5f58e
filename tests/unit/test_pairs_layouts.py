"""Every layout of a pair or an example against a row written by hand."""

from pathlib import Path
from typing import Any

import pytest
from data_files import read_rows
from pair_records import ASK, HH, PLAIN, RIGHT, SYSTEM, WRONG, from_value, write

from nemo_tvkd.data.pairs import Row, row_from_record

HH_TURNS = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, ASK)


def row(
    messages: Any = (ASK,), texts: Any = ("Four.", "Five."), plain: Any = (PLAIN, " Four.", " Five."), **more: Any
) -> Row:
    return Row(tuple(messages), *texts, *plain, source="f.jsonl:1", **more)  # type: ignore[misc]


STRINGS = row(plain=("Two plus two?", "Four.", "Five."))
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
