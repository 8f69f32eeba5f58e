"""`nemo-tvkd doctor`: stages that are done, half done or replaced, and arrays, in a chain of tiny models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_input import World
from doctor_cases import Chain

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def test_done_stages_are_not_looked_at_again(chain: Chain, world: World) -> None:
    chain.recipe["models"]["big"]["path"] = "/gone"  # as it was when the stages ran, and no longer is
    for stage, model in (("first", world.teacher), ("second", world.student)):
        chain.trained(stage, model)
    chain.finish("first", "second", "judge")
    found = chain.examine()
    assert {check.level for check in found} == {"OK"}, [check for check in found if check.level != "OK"]
    assert {check.name.split(":")[0] for check in found} == {"disk space", "third", "export", "verdict"}
    assert str(chain.run_dir / "second") in next(c.detail for c in found if c.name == "third: student.path")


@pytest.mark.parametrize("done", [True, False], ids=["done", "half done"])
def test_a_stage_made_with_other_settings(chain: Chain, world: World, done: bool) -> None:
    chain.trained("second", world.student, trainer__seed=7)
    if done:
        chain.finish("second")
    line = chain.only("second: output")
    for part in ("FAIL", "trainer.seed=7", str(chain.run_dir / "second"), "--from second"):
        assert part in line
    assert chain.failing("second.trainer.seed=7") == {}


def test_a_half_done_stage_goes_on(chain: Chain, world: World) -> None:
    chain.trained("second", world.student, trainer__keep_checkpoints=9)
    assert chain.failing() == {}


def test_an_unknown_key_of_a_done_stage_is_no_matter_of_doing_it_again(chain: Chain, world: World) -> None:
    chain.trained("second", world.student)
    chain.finish("second")
    line = chain.only("second: output", "second.optim.lrr=1")
    assert "optim.lr" in line
    assert "--from" not in line


REPLACED: dict[str, tuple[str, str, list[str]]] = {
    "no checkpoint": ("first={folder}", "judge: score.model", ["is no checkpoint", "weights/"]),
    "a reward model": ("first={oracle}", "judge: settings", ["without an output layer"]),
    "a store for a model": ("first={store}", "judge: score.model", ["is no checkpoint"]),
    "no store": ("judge={student}", "judge: output", ["manifest.json", "nemo-tvkd score"]),
    "no export": ("export={store}", "export: output", ["config.json", "nemo-tvkd export-hf"]),
}


@pytest.mark.parametrize(("word", "name", "said"), REPLACED.values(), ids=REPLACED.keys())
def test_a_path_that_is_none_of_what_the_stage_writes(
    chain: Chain, world: World, tmp_path: Path, word: str, name: str, said: list[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    places: dict[str, Any] = {"folder": tmp_path / "nothing", "oracle": world.oracle, "store": world.store}
    found = chain.failing(word.format(**places, student=world.student))
    assert found[name].startswith("FAIL")
    for part in said:
        assert part in found[name]


def test_paths_in_the_place_of_stages(chain: Chain, world: World) -> None:
    found = chain.examine(f"first={world.teacher}", f"export={world.student}")
    assert {check.level for check in found} == {"OK"}
    assert not any(check.name.startswith(("first:", "third:", "second:")) for check in found)


SWEEPS = {
    "a batch": ("third.trainer.global_batch_size=4,6", "third/1: batch", "=6"),
    "a layout": ("third.parallel.tensor_model_parallel_size=1,2,4", "third/2: layout", "= 4"),
    "data": ("third.data.train={pairs},/no/rows.jsonl", "third/1: data", "/no/rows.jsonl"),
    "a value": ("third.optim.lr=1e-6,-1", "third: configuration", "optim.lr=-1"),
    "a tokenizer": ("second.student.tokenizer={student},/no/t", "second/1: tokenizer", "/no/t"),
}


@pytest.mark.parametrize(("word", "name", "said"), SWEEPS.values(), ids=SWEEPS.keys())
def test_every_task_of_a_sweep_is_looked_at(plain: Chain, world: World, word: str, name: str, said: str) -> None:
    line = plain.only(name, word.format(pairs=plain.pairs, student=world.student))
    assert line.startswith("FAIL")
    assert said in line


def test_a_task_made_with_other_settings(chain: Chain, world: World) -> None:
    chain.trained("third", world.student)
    shutil.move(chain.run_dir / "third", chain.run_dir / "x")
    (chain.run_dir / "third").mkdir()
    shutil.move(chain.run_dir / "x", chain.run_dir / "third" / "1")
    line = chain.only("third: output", "third.trainer.seed=1,2")
    assert "trainer.seed" in line
    assert "/third/1 " in line
