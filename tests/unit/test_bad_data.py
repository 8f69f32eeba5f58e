"""Data files and rows that are wrong, and chat templates: the line names file and row."""

from pathlib import Path
from typing import Any

import pytest
from bad_input import PAIRS, STARTED, Fails, World, write_rows

from nemo_tvkd.__main__ import main

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": }', "unreadable JSON: Expecting value at column 12"),
        ("[1, 2]", "the row is a list, not an object with named columns"),
        ({"prompt": "a", "chosen": "b"}, "missing column rejected: a pair needs chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected: the response is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are identical: 'b'"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is null"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected is a number: it must be text"),
    ],
)
@pytest.mark.parametrize("command", ["online", "score", "evaluate", "validation"])
def test_bad_rows(world: World, fails: Fails, tmp_path: Path, command: str, bad: Any, message: str) -> None:
    file = write_rows(tmp_path / "bad.jsonl", [*PAIRS[:2], bad, PAIRS[2], PAIRS[3]])
    key = "data.validation" if command in ("evaluate", "validation") else "data.train"
    arguments = world.online() if command == "validation" else getattr(world, command)()
    assert fails(*arguments, f"{key}={file}").startswith(f"{file}:3: {message}")
    assert main([*arguments, f"{key}={file}", "data.on_bad_row=skip"]) == STARTED


def test_prompt_that_fills_max_length(world: World, fails: Fails, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "long.jsonl", [PAIRS[0], {**PAIRS[1], "prompt": "lamp " * 40}])
    message = fails(*world.online(), f"data.train={file}", "data.max_length=30")
    assert message.startswith(f"{file}:2: the prompt's ")
    assert message.endswith(" tokens fill data.max_length=30")
    assert main([*world.online(), f"data.train={file}", "data.max_length=30", "data.max_prompt_length=20"]) == STARTED


@pytest.mark.parametrize("command", ["online", "score", "evaluate", "validation"])
def test_files(world: World, fails: Fails, tmp_path: Path, command: str) -> None:
    key = "data.validation" if command in ("evaluate", "validation") else "data.train"
    arguments = world.online() if command == "validation" else getattr(world, command)()
    if command != "validation":  # training needs none
        for nothing in ("''", "[]", "null"):
            assert fails(*arguments, f"{key}={nothing}").startswith(f"{key} is not set: give a JSONL or Parquet file")
    for wrong in ("3", "{a:b}", "[1]", "true"):
        assert fails(*arguments, f"{key}={wrong}").endswith(" must be a path or a list of paths")
    assert fails(*arguments, f"{key}=/no/such.jsonl") == f"{key}: /no/such.jsonl does not exist"
    both = fails(*arguments, f"{key}=[{world.pairs},/no/such.jsonl]")
    assert both == f"{key}: /no/such.jsonl does not exist"
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert fails(*arguments, f"{key}={empty}") == f"{key}: {empty} is empty: it holds no rows"
    text = write_rows(tmp_path / "pairs.txt", PAIRS)
    assert fails(*arguments, f"{key}={text}").startswith(f"{key}: {text} has an unknown extension; known are .jsonl")
    parquet = write_rows(tmp_path / "pairs.parquet", ["no parquet"])
    assert fails(*arguments, f"{key}={parquet}").startswith(f"{key}: {parquet} cannot be read: ")


def test_chat_templates(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.online(), "data.chat_template=/no/such.jinja")
    assert message.startswith("data.chat_template=/no/such.jinja is not one of auto, plain, tokenizer ")
    template = tmp_path / "wrong.jinja"
    template.write_text("{% for %}")
    assert fails(*world.online(), f"data.chat_template={template}").startswith(f"data.chat_template={template}: line 1")
    bare = world.variant("without_template", without=("chat_template.jinja",))
    message = fails(*world.online(), f"student.path={bare}", "data.chat_template=tokenizer")
    assert message.startswith("data.chat_template=tokenizer: the tokenizer has no chat template")
