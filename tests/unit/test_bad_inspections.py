"""What `inspect` refuses, in one line, before anything starts; and what it says of a teacher that vanishes."""

from pathlib import Path

import numpy as np
import pytest
from bad_input import Fails, World
from inspect_figures import RULE

from nemo_tvkd.commands.inspect.job import check_finite, prepare_inspection
from nemo_tvkd.commands.inspect.numbers import ranked, verdict
from nemo_tvkd.config.compose import compose
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.shaping import Shaping

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def given(world: World, *more: str) -> list[str]:
    data = f"data.validation={world.pairs}"
    return ["inspect", f"checkpoint={world.student}", data, f"output={world.folder}/page.html", *more]


def test_a_command_without_mistakes_is_let_through(world: World) -> None:
    job = prepare_inspection(compose("inspect", given(world, f"reference={world.student}")[1:]))
    assert list(job.models) == ["checkpoint", "reference"]
    assert job.chosen == [0, 1, 2, 3]
    assert prepare_inspection(compose("inspect", given(world, "order=margin")[1:])).chosen is None
    assert prepare_inspection(compose("inspect", given(world, "limit=2")[1:])).chosen == [0, 1]
    assert prepare_inspection(compose("inspect", given(world, "pairs=[3,1,3]", "limit=1")[1:])).chosen == [2, 0]
    assert job.rule.statistic.temperature == 0.01
    tau = prepare_inspection(compose("inspect", given(world, "shaping.temperature=2", "beta=0.3")[1:])).rule.statistic
    assert tau.temperature == 2


def test_models(world: World, fails: Fails) -> None:
    assert fails(*given(world, "checkpoint=")).startswith("checkpoint is not set")
    assert fails(*given(world, "checkpoint=/nowhere")) == "checkpoint: /nowhere does not exist"
    assert "without an output layer" in fails(*given(world, f"checkpoint={world.oracle}"))
    assert "reward_model: " in (said := fails(*given(world, f"reward_model={world.student}")))
    assert "has no reward head" in said
    other = fails(*given(world, f"reference={world.other_tokenizer()}"))
    assert other == "reference: its tokenizer is not checkpoint's, whose token ids it would read"
    layout = fails(*given(world, "parallel.tensor_model_parallel_size=3"))
    assert layout.startswith("parallel.tensor_model_parallel_size=3 does not divide")


def test_pairs_and_output(world: World, fails: Fails, tmp_path: Path) -> None:
    assert fails(*given(world, "pairs=[0]")) == "pairs=0: pairs are counted from 1"
    assert fails(*given(world, "pairs=[2,9]")) == "pairs=9: data.validation has 4 usable pairs"
    assert fails(*given(world, "limit=0")) == "limit=0 must be positive"
    assert fails(*given(world, "order=size")) == "order=size is none of file, margin, disagreement"
    assert fails(*given(world, "shaping.value=q")).startswith("shaping.value=q is none of soft_value")
    assert fails(*given(world, "output=")) == "output is not set: give the name of the HTML file to write"
    assert "is a directory: give the name of an HTML file" in fails(*given(world, f"output={tmp_path}"))
    assert "is the data, which would be written over" in fails(*given(world, f"output={world.pairs}"))
    assert fails(*given(world, "data.validation=")).startswith("data.validation is not set")


def test_what_vanishes_is_a_tie_whatever_the_rounding() -> None:
    vanishing = Shaping(RULE.statistic, "potential_difference", "zero", 1.0)
    assert vanishing.vanishes()
    assert verdict(vanishing.margin(-10.9290, -10.9291)) == "tie"
    assert verdict(RULE.margin(-10.9290, -10.9291)) == "agrees"


def test_the_order_of_pairs() -> None:
    margins = [1.0, -3.0, float("nan"), 2.0, -0.5, 1.0]
    assert ranked(margins, "disagreement") == [1, 4, 0, 5, 3, 2]
    assert ranked(margins, "margin") == [1, 3, 0, 5, 4, 2]
    assert [verdict(m) for m in (2.0, -1.0, 0.0)] == ["agrees", "disagrees", "tie"]


def test_a_broken_model_is_named_with_the_pair(world: World) -> None:
    rows = prepare_inspection(compose("inspect", given(world)[1:])).rows[:2]
    good, broken = {"value": np.ones(3)}, {"value": np.ones(3), "logp": np.array([-1.0, np.nan])}
    check_finite("checkpoint: m", rows, [(good, good)] * 2)
    with pytest.raises(UserError) as caught:
        check_finite("checkpoint: m", rows, [(good, good), (good, broken)])
    where = f"the rejected response of {rows[1].source}"
    assert str(caught.value) == f"checkpoint: m: logp of {where} is not finite: the model's weights are broken"


def test_a_teacher_that_vanishes_is_told(world: World) -> None:
    from nemo_tvkd.commands.inspect.job import _notes

    zero = prepare_inspection(compose("inspect", given(world, "shaping.terminal=zero")[1:]))
    assert any("vanishes" in note and "shaping.terminal=zero" in note for note in _notes(zero))
    assert not any("vanishes" in note for note in _notes(prepare_inspection(compose("inspect", given(world)[1:]))))
    assert not RULE.of_actions
