"""Score stores that are missing, damaged or do not fit the run; scoring into what is there already."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_input import PAIRS, STARTED, Fails, World, write_rows

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.score import prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.parallel.statistic import Statistic

MAX, SHARP, WARM = Statistic("max"), Statistic("soft_value", 0.01), Statistic("soft_value", 0.5)

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
        ({"values": (WARM,)}, "it has soft_value at temperature 0.5 and soft_value at temperature 0.01 is needed"),
        ({"values": (MAX,)}, "it has max and soft_value at temperature 0.01 is needed"),
        (
            {"values": (WARM, MAX)},
            "it has max, soft_value at temperature 0.5 and soft_value at temperature 0.01 is needed",
        ),
        ({"max_length": 512}, "max_length is 512 in the store and 1024 is expected"),
        ({"max_prompt_length": 100}, "max_prompt_length is 100 in the store and 1023 is expected"),
        ({"what": ("logprob",)}, 'what is ["logprob"] in the store and ["value"] is missing'),
        ({"weights": "0" * 64}, f'weights is "{"0" * 64}" in the store and "'),
        ({"tokenizer": "other"}, 'tokenizer is "other" in the store and "'),
        ({"chat_template": "plain"}, 'chat_template is "plain" in the store and "'),
    ],
)
def test_stores_that_do_not_fit(world: World, fails: Fails, changed: dict[str, Any], message: str) -> None:
    name = "store-" + "-".join(f"{key}-{len(str(value))}" for key, value in changed.items())
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
    assert "it has soft_value at temperature 0.01 and soft_value at temperature 0.1 is needed" in message
    assert "score the data again with score.value_kind=soft_value score.temperature=0.1, or give " in message
    assert main([*world.cached(), "algorithm.beta=0.1", "algorithm.shaping.temperature=0.01"]) == STARTED
    message = fails(*world.cached(), "algorithm.shaping.value=margin")
    assert "it has soft_value at temperature 0.01 and margin is needed; score the data again with " in message
    assert "max_length is 1024 in the store and 256 is expected" in fails(*world.cached(), "data.max_length=256")
    assert "chat_template is " in fails(*world.cached(), "data.chat_template=plain")
    free = ["alpha=2", "shaping.gamma=0.9", "shaping.form=next_value", "shaping.terminal=zero"]
    assert main([*world.cached(), *(f"algorithm.{option}" for option in free)]) == STARTED


def test_a_store_of_several_values(world: World, fails: Fails) -> None:
    store = world.make_store("several", values=(WARM, MAX, SHARP), what=("value", "logprob"))
    cached = [*world.cached(), f"teacher.scores={store}"]
    assert main(cached) == STARTED
    assert main([*cached, "algorithm.shaping.value=max", "algorithm.shaping.gamma=0.9"]) == STARTED
    assert main([*cached, "algorithm.shaping.temperature=0.5"]) == STARTED
    message = fails(*cached, "algorithm.shaping.temperature=0.2")
    there = "max, soft_value at temperature 0.01, soft_value at temperature 0.5"
    assert f"it has {there} and soft_value at temperature 0.2 is needed" in message


def test_a_store_of_ends(world: World, fails: Fails) -> None:
    """Enough for what telescopes, whatever is after the last token; nothing else."""
    store = world.make_store("ends", values=(SHARP, MAX), value_storage="ends")
    cached = [*world.cached(), f"teacher.scores={store}"]
    for free in ([], ["shaping.value=max"], ["shaping.terminal=zero", "alpha=2"]):
        assert main([*cached, *(f"algorithm.{option}" for option in free)]) == STARTED
    for changed, shown in (
        (["shaping.gamma=0.9"], "gamma=0.9 and form=potential_difference"),
        (["shaping.form=next_value"], "gamma=1 and form=next_value"),
        (["shaping.gamma=0.5", "shaping.form=next_value", "shaping.value=max"], "gamma=0.5 and form=next_value"),
    ):
        message = fails(*cached, *(f"algorithm.{option}" for option in changed))
        assert message.startswith(f"teacher.scores: the score store {store} holds ")
        assert shown in message
        assert "score.value_storage=all" in message
    for kind in ("logit", "logprob"):
        assert f"and {kind} is needed" in fails(*cached, f"algorithm.shaping.value={kind}")


def test_store_of_other_data(world: World, fails: Fails, tmp_path: Path) -> None:
    new = {**PAIRS[0], "chosen": "The lamp is painted blue."}
    file = write_rows(tmp_path / "more.jsonl", [*PAIRS, new, {**new, "rejected": "No."}])
    message = fails(*world.cached(), f"data.train={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")
    message = fails(*world.cached(), f"data.validation={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")


def test_score(world: World, fails: Fails) -> None:
    assert fails(*world.score(), "score.what=[value,foo]") == "score.what=foo is none of value, logprob, reward"
    assert fails(*world.score(), "score.what=[]") == "score.what is empty: choose from value, logprob, reward"
    assert fails(*world.score(), "score.what=value").startswith("score.what: Invalid value assigned")
    assert fails(*world.score(), "score.output=''").startswith("score.output is not set: give the directory")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("value_kind=[max,median]", "score.value_kind=median is none of soft_value, max, margin, "),
        ("value_kind=[[max]]", "score.value_kind=['max'] is none of soft_value, max, margin, "),
        ("value_kind=[]", "score.value_kind=[] is empty: give one value"),
        ("value_kind=null", "score.value_kind=None is none of soft_value, max, margin, "),
        ("temperature=[0.1,0]", "score.temperature=0 must be positive"),
        ("temperature=[0.1,nan]", "score.temperature=nan must be positive"),
        ("temperature=[0.1,warm]", "score.temperature=warm is not a number"),
        ("temperature=warm", "score.temperature=warm is not a number"),
        ("temperature=true", "score.temperature=True is not a number"),
        ("temperature=null", "score.temperature=None is not a number"),
        ("temperature=[]", "score.temperature=[] is empty: give one value"),
        (
            "temperature=[0.1,0.1000001]",
            "score.temperature=[0.1, 0.1000001]: two of them agree in their first 6 digits",
        ),
        ("value_storage=end", "score.value_storage=end is none of all, ends"),
        (
            "value_storage=ends value_kind=logit",
            "score.value_storage=ends keeps values of states, and score.value_kind=",
        ),
        ("value_storage=ends value_kind=[max,logprob]", "score.value_storage=ends keeps values of states, and score."),
    ],
)
def test_score_values(world: World, fails: Fails, options: str, message: str) -> None:
    assert fails(*world.score(), *(f"score.{option}" for option in options.split())).startswith(message)


def test_score_several_values(world: World) -> None:
    config = compose(
        "score", [*world.score()[1:], "score.value_kind=[soft_value,max]", "score.temperature=[1,0.1,1.0]"]
    )
    config.score.value_storage = "ends"
    identity = prepare_scoring(config).identity
    assert identity.values == (MAX, Statistic("soft_value", 0.1), Statistic("soft_value", 1.0))
    assert identity.value_storage == "ends"
    config.score.what = ["logprob"]
    identity = prepare_scoring(config).identity
    assert (identity.values, identity.value_storage) == ((), "all")


def test_score_into_another_store(world: World, fails: Fails) -> None:
    message = fails(*world.score(), f"score.output={world.store}", "score.temperature=0.5", "score.part_size=3")
    assert message.startswith(f"score.output: {world.store} holds other scores: values is ")
    assert '"temperature": 0.01}] there and [{"kind": "soft_value", "temperature": 0.5}] here; give another' in message
    message = fails(*world.score(), f"score.output={world.student}")
    assert message.startswith(f"score.output: {world.student} is not empty and holds no score store")
