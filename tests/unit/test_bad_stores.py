"""Score stores that are missing, damaged or do not fit the run; scoring into what is there already."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_input import PAIRS, STARTED, Fails, World, write_rows

from nemo_tvkd.__main__ import main

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def test_cached_teacher_without_a_store(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.cached(), "teacher.scores=''")
    assert message.startswith("teacher.scores is not set: teacher.mode=cached reads a score store")
    message = fails(*world.cached(), f"teacher.scores={tmp_path}")
    assert message.startswith(f"teacher.scores: no score store at {tmp_path}")
    message = fails(*world.cached(), "algorithm=dpo", "reference.mode=cached")
    assert message.startswith("reference.scores is not set: reference.mode=cached reads a score store")


def test_damaged_stores(world: World, fails: Fails, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(world.store, unfinished)
    (unfinished / "manifest.json").unlink()
    message = fails(*world.cached(), f"teacher.scores={unfinished}")
    assert message.startswith(f"teacher.scores: the score store {unfinished} is unfinished")
    truncated = tmp_path / "truncated"
    shutil.copytree(world.store, truncated)
    shard = truncated / "part-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    message = fails(*world.cached(), f"teacher.scores={truncated}")
    assert message.startswith(f"teacher.scores: {shard} is truncated or corrupted")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.5}, "temperature is 0.5 in the store and 0.01 is expected"),
        ({"value_kind": "max", "temperature": 1.0}, 'value_kind is "max" in the store and "soft_value" is expected'),
        ({"max_length": 512}, "max_length is 512 in the store and 1024 is expected"),
        ({"max_prompt_length": 100}, "max_prompt_length is 100 in the store and 1023 is expected"),
        ({"what": ("logprob",)}, 'what is ["logprob"] in the store and ["value"] is missing'),
        ({"weights": "0" * 64}, f'weights is "{"0" * 64}" in the store and "'),
        ({"tokenizer": "other"}, 'tokenizer is "other" in the store and "'),
        ({"chat_template": "plain"}, 'chat_template is "plain" in the store and "'),
    ],
)
def test_stores_that_do_not_fit(world: World, fails: Fails, changed: dict[str, Any], message: str) -> None:
    name = "store-" + "-".join(changed)
    store = world.make_store(name, **changed)
    said = fails(*world.cached(), f"teacher.scores={store}")
    assert said.startswith(f"teacher.scores: the score store {store} (scored by {world.teacher}) does not fit: ")
    assert message in said


def test_store_of_another_teacher(world: World, fails: Fails) -> None:
    """The weights are what counts: the same ones under another name fit, and without teacher.path nobody asks."""
    message = fails(*world.cached(), f"teacher.path={world.student}")
    assert message.startswith("teacher.scores: the score store ")
    assert " weights is " in message
    assert main([*world.cached(), f"teacher.path={world.variant('renamed', 'teacher')}"]) == STARTED
    assert main([*world.cached(), "teacher.path=''"]) == STARTED


def test_settings_that_leave_the_store(world: World, fails: Fails) -> None:
    message = fails(*world.cached(), "algorithm.beta=0.1")
    assert "temperature is 0.01 in the store and 0.1 is expected" in message
    assert main([*world.cached(), "algorithm.beta=0.1", "algorithm.shaping.temperature=0.01"]) == STARTED
    message = fails(*world.cached(), "algorithm.shaping.value=margin")
    assert 'value_kind is "soft_value" in the store and "margin" is expected' in message
    assert "max_length is 1024 in the store and 256 is expected" in fails(*world.cached(), "data.max_length=256")
    assert "chat_template is " in fails(*world.cached(), "data.chat_template=plain")
    free = ["alpha=2", "shaping.gamma=0.9", "shaping.form=next_value", "shaping.terminal=zero"]
    assert main([*world.cached(), *(f"algorithm.{option}" for option in free)]) == STARTED


def test_store_of_other_data(world: World, fails: Fails, tmp_path: Path) -> None:
    new = {**PAIRS[0], "chosen": "The lamp is painted blue."}
    file = write_rows(tmp_path / "more.jsonl", [*PAIRS, new, {**new, "rejected": "No."}])
    message = fails(*world.cached(), f"data.train={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")
    message = fails(*world.cached(), f"data.validation={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")


def test_score(world: World, fails: Fails) -> None:
    assert fails(*world.score(), "score.what=[value,foo]") == "score.what=foo is none of value, logprob"
    assert fails(*world.score(), "score.what=[]") == "score.what is empty: choose from value, logprob"
    assert fails(*world.score(), "score.what=value").startswith("score.what: Invalid value assigned")
    assert fails(*world.score(), "score.output=''").startswith("score.output is not set: give the directory")


def test_score_into_another_store(world: World, fails: Fails) -> None:
    message = fails(*world.score(), f"score.output={world.store}", "score.temperature=0.5", "score.part_size=3")
    assert message.startswith(f"score.output: {world.store} holds other scores: temperature is 0.01 there and 0.5 here")
    message = fails(*world.score(), f"score.output={world.student}")
    assert message.startswith(f"score.output: {world.student} is not empty and holds no score store")
