"""Public data sets, from small files of their shape: what becomes of their rows.

Columns are those of the hub's pages; the texts are made up.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import read_rows
from pair_records import ASK, HH, RIGHT, SYSTEM, WRONG, write

from nemo_tvkd.data.pairs import ReadReport, Row, iter_rows
from nemo_tvkd.errors import UserError

Record = dict[str, Any]


def rated(prompt: str, response: Any, helpfulness: Any, **more: Any) -> Record:
    """A row of nvidia/HelpSteer2."""
    return {
        "prompt": prompt,
        "response": response,
        "helpfulness": helpfulness,
        **{"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1},
        **more,
    }


HELPSTEER2 = [
    rated("c#", "A language.", 3),
    rated("c#", "No idea.", 1),
    rated("Two plus two?", "Five.", 0),
    rated("Two plus two?", "Four.", 4),
    rated("Tie?", "Yes.", 2),
    rated("Tie?", "No.", 2),
    rated("Alone?", "Yes.", 2),
    rated("Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nTwo plus two?", "Four.", 4),
    rated("Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nTwo plus two?", "Five.", 3),
    rated("At the end?", "Yes.", 2),
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def summary_of(row: Row) -> tuple[Any, ...]:
    number = row.source.rpartition(":")[2]
    return number, list(row.messages), row.chosen, row.rejected, row.chosen_reward, row.rejected_reward


HELPSTEER2_PAIRS = [
    ("1+2", [user("c#")], "A language.", "No idea.", 3.0, 1.0),
    ("3+4", [user("Two plus two?")], "Four.", "Five.", 4.0, 0.0),
    ("8+9", [user("Hi"), {"role": "assistant", "content": "Hello!"}, ASK], "Four.", "Five.", 4.0, 3.0),
]


def test_helpsteer2_as_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", HELPSTEER2)
    table = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(HELPSTEER2), table)
    for place in (path, str(table)):
        rows, report = read_rows([place])
        assert [summary_of(row) for row in rows] == HELPSTEER2_PAIRS
        assert rows[0].source == f"{place}:1+2"
        assert rows[0].plain_prompt == "\n\nHuman: c#\n\nAssistant:"
        assert (report.rows, report.ties, report.single, report.bad) == (3, 1, 2, [])
        assert report.left_out == "1 pairs without a preference, 2 responses without a second one"
        assert report.sets == {"nvidia/HelpSteer2": 10}


def test_helpsteer2_as_examples(tmp_path: Path) -> None:
    rows, report = read_rows([write(tmp_path / "a.jsonl", HELPSTEER2)], need_rejected=False)
    assert [row.source.rpartition(":")[2] for row in rows] == [str(number) for number in range(1, 11)]
    assert list(rows[7].messages) == HELPSTEER2_PAIRS[2][1]
    assert (rows[7].chosen, rows[7].rejected) == ("Four.", None)
    assert (report.ties, report.single) == (0, 0)


def test_a_pair_of_two_files_names_both(tmp_path: Path) -> None:
    first, second = (tmp_path / f"part-{n}.jsonl" for n in (1, 2))
    write(first, HELPSTEER2[:1])
    write(second, HELPSTEER2[1:2])
    (row,), _ = read_rows([str(tmp_path)])
    assert row.source == f"{first}:1+{second}:1"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (rated("c#", "No idea.", "3"), "2: helpfulness is text: it must be a number"),
        (rated("c#", "No idea.", None), "2: helpfulness is null: it must be a number"),
        (rated("c#", "No idea.", float("nan")), "2: helpfulness is nan: it must be a finite number"),
        (rated("c#", ["x"], 1), "2: response is a list: it must be text"),
        ({**rated("c#", "x", 1), "prompt": None}, "2: prompt is null: it must be text"),
        (rated("c#", "A language.", 1), "1+2: chosen and rejected are identical: 'A language.'"),
        (rated("c#", " ", 1), "1+2: rejected: the response is empty"),
    ],
)
def test_bad_rows_of_helpsteer2(record: Record, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [HELPSTEER2[0], record, *HELPSTEER2[2:4]])
    with pytest.raises(UserError) as caught:
        read_rows([path])
    assert str(caught.value) == f"{path}:{message}"
    rows, report = read_rows([path], on_bad_row="skip")
    assert [row.source for row in rows] == [f"{path}:3+4"]
    assert report.single == (0 if message.startswith("1+2") else 1)


def test_nothing_but_ties_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", HELPSTEER2[4:7])
    with pytest.raises(UserError) as caught:
        read_rows([path])
    assert str(caught.value) == (
        "data.train: there is no pair in its rows: 1 pairs without a preference, 1 responses without a second one"
    )


POST = {"id": "t3_1", "post": "We met.\n\nWe ate.", "title": "A date", "subreddit": "relationships"}
NEWS = {"id": "c1", "article": "It rained.\n\nA lot.", "title": "Rain"}


def compared(info: Any, choice: Any, texts: Any = (" Met, ate.", " Ate."), **more: Any) -> Record:
    """A row of openai/summarize_from_feedback's comparisons."""
    empty = dict.fromkeys(("id", "post", "title", "subreddit", "site", "article"))
    summaries = [{"text": text, "policy": "sup1", "note": None} for text in texts]
    rest = {"worker": "w", "batch": "batch3", "split": "train", "extra": {"confidence": None}}
    return {
        "info": {**empty, **info} if isinstance(info, dict) else info,
        "summaries": summaries,
        "choice": choice,
        **rest,
        **more,
    }


def test_openai_comparisons(tmp_path: Path) -> None:
    """Prompts as those of trl-lib/tldr-preference, which is made of them."""
    records = [compared(POST, 0), compared(POST, 1), compared(NEWS, 1)]
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(records), table)
    post = "SUBREDDIT: r/relationships\n\nTITLE: A date\n\nPOST: We met.\nWe ate.\n\nTL;DR:"
    expected = [
        (post, " Met, ate.", " Ate."),
        (post, " Ate.", " Met, ate."),
        ("TITLE: Rain\n\nIt rained.\nA lot.\n\nTL;DR:", " Ate.", " Met, ate."),
    ]
    for path in (write(tmp_path / "a.jsonl", records), str(table)):
        rows, report = read_rows([path])
        assert [(row.plain_prompt, row.plain_chosen, row.plain_rejected) for row in rows] == expected
        assert report.sets == {"openai/summarize_from_feedback": 3}
        examples, _ = read_rows([path], need_rejected=False)
        assert [(row.plain_prompt, row.plain_chosen) for row in examples] == [each[:2] for each in expected]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (compared(POST, 2), "choice is 2: it must be 0 or 1"),
        (compared(POST, None), "choice is null: it must be a number"),
        (compared(POST, True), "choice is true or false: it must be a number"),
        (compared(POST, 0.5), "choice is 0.5: it must be 0 or 1"),
        (compared(POST, 0, ("x",)), "summaries must be a list of two objects with text"),
        (compared(POST, 0, (None, "x")), "summaries, text 1 is null: it must be text"),
        (compared("x", 0), "info is text: it must be an object with post or article"),
        (compared({}, 0), "info, article is null: it must be text"),
        (compared({**POST, "subreddit": None}, 0), "info, subreddit is null: it must be text"),
        (compared(POST, 0, ("x", "x")), "chosen and rejected are identical: 'x'"),
    ],
)
def test_bad_openai_comparisons(record: Record, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(UserError) as caught:
        read_rows([path])
    assert str(caught.value) == f"{path}:1: {message}"


CONVERSATION = [ASK, RIGHT]
STANDARD: dict[str, tuple[Record, bool]] = {
    # name: a row, whether it is a pair
    "argilla/dpo-mix-7k": (
        {
            "dataset": "argilla/ultrafeedback-binarized-preferences-cleaned",
            "chosen": [SYSTEM, *CONVERSATION],
            "rejected": [SYSTEM, ASK, WRONG],
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
        },
        True,
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {
            "prompt": "Two plus two?",
            "prompt_id": "ab",
            "chosen": CONVERSATION,
            "rejected": [ASK, WRONG],
            "messages": CONVERSATION,
            "score_chosen": 5.0,
            "score_rejected": 2.0,
        },
        True,
    ),
    "HuggingFaceH4/deita-10k-v0-sft (or ultrachat_200k)": (
        {"prompt": "Two plus two?", "prompt_id": "ab", "messages": CONVERSATION},
        False,
    ),
    "Anthropic/hh-rlhf": ({"chosen": HH + " Four.", "rejected": HH + " Five."}, True),
    "TL;DR (trl-lib/tldr, openai_summarize_comparisons)": (
        {"prompt": "SUBREDDIT: r/x\n\nTITLE: y\n\nPOST: z\n\nTL;DR:", "chosen": " Four.", "rejected": " Five."},
        True,
    ),
    "": ({"chosen": CONVERSATION, "rejected": [ASK, WRONG]}, True),  # gx-ai-architect/HelpSteer2_DPO
}


@pytest.mark.parametrize("name", STANDARD)
def test_sets_that_have_a_layout_already(name: str, tmp_path: Path) -> None:
    record, pair = STANDARD[name]
    path = write(tmp_path / "a.jsonl", [record])
    report = ReadReport()
    (row,) = iter_rows([path], need_rejected=pair, report=report)
    assert (row.chosen.strip(), (row.rejected or "Five.").strip()) == ("Four.", "Five.")
    assert (row.chosen_reward, row.rejected_reward) == (
        (5.0, 2.0) if "rating" in str(record) or "score" in str(record) else (None, None)
    )
    assert dict(report.sets) == ({name: 1} if name else {})
    (example,) = iter_rows([path], need_rejected=False)
    assert example.chosen.strip() == "Four."


def test_tldr_for_sft(tmp_path: Path) -> None:
    record = {"prompt": "SUBREDDIT: r/x\n\nTITLE: y\n\nPOST: z\n\nTL;DR:", "completion": " Four."}
    (row,), _ = read_rows([write(tmp_path / "a.jsonl", [record])], need_rejected=False)
    assert (row.plain_prompt, row.plain_chosen) == (record["prompt"], " Four.")
