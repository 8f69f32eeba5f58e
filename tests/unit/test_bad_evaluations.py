"""What a user can get wrong about an evaluation, and what it says of settings that are right."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import STARTED, Fails, World, write_rows

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.evaluate import prepare_evaluation
from nemo_tvkd.commands.evaluate.forward import _check_finite
from nemo_tvkd.commands.evaluate.prepare import Evaluation
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.reads import LogProb
from nemo_tvkd.parallel.statistic import Statistic

pytestmark = pytest.mark.usefixtures("no_ranks", "without_nemo")


@pytest.mark.parametrize("value", [0, 1, -0.5, 95, math.inf, math.nan])
def test_confidence_lies_within_0_and_1(world: World, fails: Fails, value: float) -> None:
    said = fails(*world.evaluate(), f"confidence={value}")
    assert said == f"confidence={float(value)} must lie between 0 and 1, as 0.95 does"


def test_outputs(world: World, fails: Fails, tmp_path: Path) -> None:
    assert fails(*world.evaluate(), f"pairs_output={tmp_path}").endswith("give the name of a JSONL file")
    assert fails(*world.evaluate(), f"output={tmp_path}").endswith("give the name of a JSON file")
    over = f"{world.pairs} is the data, which would be written over: give a JSON file another name"
    assert fails(*world.evaluate(), f"output={world.pairs}") == f"output: {over}"
    assert fails(*world.evaluate(), f"pairs_output={world.pairs}").startswith(
        f"pairs_output: {world.pairs} is the data"
    )
    file = tmp_path / "x.json"
    both = fails(*world.evaluate(), f"output={file}", f"pairs_output={tmp_path}/./x.json")
    assert both == f"output and pairs_output are both {file}: give the pairs another file"


def test_training_data_is_read_by_nobody(world: World, fails: Fails) -> None:
    said = fails(*world.evaluate(), f"data.train={world.pairs}")
    assert said == "data.train is set, but this command reads data.validation: give the pairs there"


def test_a_list_of_checkpoints_names_the_one_that_is_wrong(world: World, fails: Fails) -> None:
    command = ["evaluate", f"data.validation={world.pairs}"]
    assert fails(*command, f"checkpoint=[{world.student},/nowhere]").startswith(
        "checkpoint[1]: /nowhere does not exist"
    )
    assert fails(*command, "checkpoint=[]").startswith("checkpoint is not set")
    assert fails(*command, "checkpoint={a:1}").startswith("checkpoint=")
    narrow = world.variant("narrow", vocab_size=20)
    said = fails(*command, f"checkpoint=[{world.student},{narrow}]")
    assert said.startswith("checkpoint[1]: the tokenizer has ")


def test_a_reference_is_every_policys(world: World, fails: Fails) -> None:
    command = ["evaluate", f"data.validation={world.pairs}", f"reference={world.teacher}"]
    assert fails(*command, f"checkpoint=[{world.student},{world.oracle}]").startswith(
        f"reference is set, but {world.oracle} is a reward model"
    )
    other = world.other_tokenizer()
    said = fails(*command, f"checkpoint=[{world.student},{other}]")
    assert said.startswith("reference: its tokenizer is not checkpoint[1]'s")


def test_a_teacher(world: World, fails: Fails) -> None:
    command = world.evaluate()
    said = fails(*command, "teacher.tokenizer=x")
    assert said == "teacher.tokenizer is set without teacher.path or teacher.scores, which it would be about"
    assert fails(*command, "teacher.path=/nowhere").startswith("teacher.path: /nowhere does not exist")
    assert "reward model without an output layer" in fails(*command, f"teacher.path={world.oracle}")
    assert '["value"] is missing' in fails(*command, f"teacher.scores={world.rewards}")
    said = fails(*command, f"teacher.scores={world.store}", "beta=0.5")
    assert said.startswith("teacher.scores: the score store")
    assert "score.temperature=0.5" in said
    ends = world.make_store("ends_of_one", "score.value_storage=ends")
    settings = [f"teacher.scores={ends}", "shaping.temperature=0.01", "shaping.gamma=0.9"]
    said = fails(*command, *settings)
    assert "value_storage=all" in said
    assert "algorithm" not in said


def prepared(world: World, *options: object) -> Evaluation:
    return prepare_evaluation(compose("evaluate", [*world.evaluate()[1:], *map(str, options)]))


def test_a_store_of_values_is_a_teacher(world: World) -> None:
    job = prepared(world, f"teacher.scores={world.store}", "shaping.temperature=0.01")
    assert "teacher.path" not in job.models
    assert job.psi is not None
    assert job.psi.statistic == Statistic("soft_value", 0.01)
    assert all(item.numbers.get("teacher.value") is not None for item in job.items)


VANISHING = {
    "terminal": ["shaping.terminal=zero"],
    "next_value": ["shaping.form=next_value", "shaping.gamma=0"],
}


@pytest.mark.parametrize("case", VANISHING)
def test_a_teacher_that_vanishes_is_told(world: World, case: str) -> None:
    job = prepared(world, f"teacher.path={world.teacher}", *VANISHING[case])
    (note,) = [line for line in job.notes if line.startswith("warning: the teacher")]
    assert "shaping." in note
    assert "algorithm" not in note
    assert job.psi is not None
    assert job.psi.rule.vanishes()
    other = prepared(world, f"teacher.path={world.teacher}").psi
    assert other is not None
    assert not other.rule.vanishes()


def test_checkpoints_that_read_alike_share_their_reading(world: World) -> None:
    other = world.other_tokenizer()
    names = [world.student, world.teacher, other, other]
    job = prepared(world, f"checkpoint=[{','.join(map(str, names))}]", f"teacher.path={world.teacher}")
    assert list(job.readings.values()) == ["", "", "checkpoint/2", "checkpoint/2", ""]
    assert list(job.models) == ["checkpoint[0]", "checkpoint[1]", "checkpoint[2]", "checkpoint[3]", "teacher.path"]
    assert any(line.startswith("checkpoint[2] reads pairs its own way") for line in job.notes)
    same, theirs = job.items_of("checkpoint[1]"), job.items_of("checkpoint[3]")
    assert len(same) == len(theirs) == len(job.rows) == 4
    assert [item.tokens.source for item in theirs] == [row.source for row in job.rows]
    ids = [[*item.tokens.prompt_ids] for item in (same[0], theirs[0])]
    words = json.loads((world.student / "tokenizer.json").read_text())["model"]["vocab"]
    theirs_words = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    back, theirs_back = ({i: w for w, i in v.items()} for v in (words, theirs_words))
    assert [back.get(i, i) for i in ids[0]] == [theirs_back.get(i, i) for i in ids[1]], "the same text"


def test_columns_are_the_oracle_where_all_have_them(world: World, tmp_path: Path) -> None:
    job = prepared(world, f"data.validation={world.judged}")
    assert job.oracle is not None
    assert job.oracle.tolist() == [[1.0 + n, -n / 2] for n in range(4)]
    rows = [json.loads(line) for line in world.judged.read_text().splitlines()]
    del rows[1]["chosen_reward"], rows[1]["rejected_reward"]
    job = prepared(world, f"data.validation={write_rows(tmp_path / 'some.jsonl', rows)}")
    assert job.oracle is None
    assert any("1 of 4 pairs have no reward columns" in note for note in job.notes)


def test_ranks_are_handed_the_job(world: World) -> None:
    """It can be pickled, with all its readings."""
    options = [f"checkpoint=[{world.student},{world.other_tokenizer()}]", f"data.validation={world.judged}"]
    whole = prepared(world, *options)
    sent = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(sent.oracle, whole.oracle)
    for key in whole.names:
        for one, other in zip(sent.items_of(key), whole.items_of(key), strict=True):
            assert one.tokens.source == other.tokens.source
            assert one.tokens.chosen_ids.tolist() == other.tokens.chosen_ids.tolist()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_of_a_broken_checkpoint_name_the_pair(number: float) -> None:
    ids = np.array([1], dtype=np.int32)
    items = [Item(Tokenized(ids, ids, ids, f"{i}", f"pairs.jsonl:{i + 1}", False)) for i in range(3)]
    numbers = np.zeros((3, 2))
    _check_finite(numbers, LogProb(), items, "checkpoint: x")
    numbers[1:, 1] = number
    with pytest.raises(UserError) as error:
        _check_finite(numbers, LogProb(), items, "checkpoint: x")
    assert str(error.value) == (
        f"checkpoint: x says {number} for the log-probability of the rejected response of pairs.jsonl:2 "
        "(2 of 3 pairs have such numbers): its weights are broken"
    )


def test_a_good_configuration_starts(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    several = [f"checkpoint=[{world.student},{world.teacher}]", f"data.validation={world.pairs}"]
    options: list[Any] = ["resamples=0", f"output={tmp_path}/new/e.json", f"pairs_output={tmp_path}/new/p.jsonl"]
    assert main(["evaluate", *several, *options, f"oracle.scores={world.rewards}"]) == STARTED
    assert "4 pairs" in capfd.readouterr().out
