"""Unknown keys, commands, methods and values: the line names the key, and the nearest one that is known."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails, World
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import RUNNERS
from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.config.choices import CHOICES, FORMS, TERMINALS
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.values import NOT_NEGATIVE, POSITIVE, RANGES
from nemo_tvkd.parallel.statistic import VALUE_KINDS
from nemo_tvkd.runtime.exits import guarded

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train trainer.max_step=3", "unknown key trainer.max_step; did you mean trainer.max_steps?"),
        ("train traner.seed=3", "unknown key traner.seed; did you mean trainer.seed?"),
        ("train algoritm=dpo", "unknown key algoritm; did you mean algorithm?"),
        ("train trainer.lr=1", "unknown key trainer.lr; did you mean optim.lr?"),
        ("train algorithm.gamma=1", "unknown key algorithm.gamma; did you mean algorithm.shaping.gamma?"),
        ("train beta=1", "unknown key beta; did you mean algorithm.beta?"),
        ("train algorithm=dpo algorithm.alpha=1", "unknown key algorithm.alpha; did you mean "),
        ("train zzz=1", "unknown key zzz; see --cfg job for all keys"),
        ("train trainer={seeed:1}", "trainer.seeed: Key 'seeed' not in 'TrainerConfig'"),
        ("score score.waht=[value]", "unknown key score.waht; did you mean score.what?"),
        ("score algorithm=dpo", "unknown key algorithm; "),
        ("evaluate chekpoint=a", "unknown key chekpoint; did you mean checkpoint?"),
        ("import-hf sorce=a", "unknown key sorce; did you mean source?"),
        ("export-hf chekpoint=a", "unknown key chekpoint; did you mean checkpoint?"),
    ],
)
def test_unknown_key_names_the_nearest(fails: Fails, arguments: str, message: str) -> None:
    assert fails(*arguments.split()).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("zzz", "unknown command zzz; see --help"),
        ("train algorithm=foo", "algorithm=foo is none of the known algorithms: tvkd, dpo, sft"),
        ("train algorithm=", "algorithm= is none of the known algorithms: tvkd, dpo, sft"),
        ("train algorithm.name=dpo", "algorithm.name=dpo: choose the method by algorithm=tvkd|dpo|sft"),
        ("train trainer.max_steps=abc", "trainer.max_steps: Value 'abc' of type 'str' could not be converted"),
        ("train trainer.max_steps=1.5", "trainer.max_steps: Value '1.5' of type 'float' could not be converted"),
        ("train optim.lr=fast", "optim.lr: Value 'fast' of type 'str' could not be converted"),
        ("train optim.betas=[a,b]", "optim.betas[0]: Value 'a' of type 'str' could not be converted"),
        ("train optim.betas=0.9", "optim.betas: Invalid value assigned"),
        ("train parallel.sequence_parallel=maybe", "parallel.sequence_parallel: Value 'maybe' is not a valid bool"),
        ("train trainer=3", "trainer: Invalid type assigned"),
        ("train student.path=null", "field 'student.path' is not Optional"),
        ("train data.train=a=b", "data.train: 'a=b' cannot be read: text is quoted twice, as in \"data.train='a=b'\""),
        ("train data.train=[a", "data.train: '[a' cannot be read"),
        (
            "train data.train=[~/a:0.7,b:0.3]",
            "data.train: '[~/a:0.7,b:0.3]' cannot be read: text is quoted twice, as in "
            "\"data.train=['~/a:0.7','b:0.3']\"",
        ),
        ("data check ~nobody.here/a.jsonl", "data.train: ~nobody.here/a.jsonl does not exist: there is no user nobody"),
        ("train student.path='a", 'student.path: "\'a" cannot be read'),
        ("train data.train=a,b", "data.train: 'a,b' is several values: a list is written [a,b], text as "),
        ("train data.train=${foo}", "data.train: Interpolation key 'foo' not found"),
        ("train data.train=[a,${oc.env:NO_SUCH}]", "data.train: KeyError raised while resolving interpolation"),
        ("train trainer.seed=???", "trainer.seed: Missing mandatory value"),
        ("train trainer.seed", "'trainer.seed' is no override: write key=value"),
        ("train --verbose", "'--verbose' is no override: write key=value"),
        ("train =3", "'=3' is no override: write key=value"),
        ("train ~trainer.seed=42", "'~trainer.seed=42' is no override: write key=value"),
        ("train ++zzz=1", "'++zzz=1' is no override: write key=value"),
        ("train algorithm={name:foo}", "algorithm.name=foo: choose the method by algorithm=tvkd|dpo|sft"),
        ("train --from", "--from needs a value"),
        ("train --from /no/such/run", "--from: /no/such/run/config.yaml does not exist"),
        ("train --cfg all", "--cfg all is not known: --cfg job"),
        ("score --from run", "--from repeats a training run; score has none"),
    ],
)
def test_command_line(fails: Fails, arguments: str, message: str) -> None:
    assert fails(*arguments.split()).startswith(message)


@pytest.mark.parametrize("content", ["a: [", "", "- 1\n", "trainer: {seed: 1}\n", "algorithm: 3\n"])
def test_from_a_file_that_is_no_configuration(fails: Fails, tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert fails("train", "--from", tmp_path) == f"--from: {file} is not the config.yaml of a run"


COMMAND_OF_SECTION = {"score": "score", "bench": "bench", "benchmark": "benchmark"}
COMMAND_OF_SECTION |= {"cluster": "submit", "recipe_scale": "submit"}
COMMAND_OF_SECTION |= dict.fromkeys(("precision", "micro_batch_size", "beta", "strength_bins"), "evaluate")
COMMAND_OF_SECTION |= dict.fromkeys(("calibration_bins", "resamples", "seed", "shaping"), "evaluate")
COMMAND_OF_SECTION |= dict.fromkeys(("order", "limit"), "inspect") | dict.fromkeys(("rows", "examples"), "data")
COMMAND_OF_SECTION["kind"] = "export-hf"
METHOD_OF_KEY = {"algorithm.label_smoothing": "dpo", "algorithm.ensemble": "edpo", "algorithm.gamma": "drdo"}
METHOD_OF_KEY |= dict.fromkeys(("algorithm.logprob", "algorithm.contrast", "algorithm.student_reward"), "drdo")
METHOD_OF_KEY |= dict.fromkeys(("algorithm.alpha_sft", "algorithm.center_rewards_coefficient"), "reward")


@pytest.fixture(scope="module")
def defaults() -> dict[tuple[str, ...], Any]:
    """The configurations of some commands, so that a hundred values are tried in seconds."""
    commands = [("train",), ("score",), ("evaluate",), ("bench",), ("export-hf",), ("benchmark",)]
    commands += [("inspect",), ("data",)]
    commands += [("train", f"algorithm={name}") for name in set(METHOD_OF_KEY.values())]
    return {command: compose(command[0], list(command[1:])) for command in commands}


@pytest.fixture
def refused(defaults: dict[tuple[str, ...], Any], capfd: pytest.CaptureFixture[str]) -> Callable[[str, Any], str]:
    """The line with which the command that has this key refuses the value."""

    def run(key: str, value: Any) -> str:
        command = COMMAND_OF_SECTION.get(key.split(".")[0], "train")
        if command == "submit":  # it composes by itself
            assert guarded(lambda: load_recipe(["recipe=train", "cluster=local", f"{key}={value}"])) == 2
        else:
            method = [f"algorithm={METHOD_OF_KEY[key]}"] if key in METHOD_OF_KEY else []
            config = deepcopy(defaults[(command, *method)])
            OmegaConf.update(config, key, value)
            assert guarded(RUNNERS[command], config) == 2
        error = capfd.readouterr().err
        assert error.startswith("nemo-tvkd: ")
        assert error.count("\n") == 1
        return error.removeprefix("nemo-tvkd: ").rstrip()

    return run


@pytest.mark.parametrize("key", CHOICES)
def test_choices(refused: Callable, key: str) -> None:
    assert refused(key, "wrong") == f"{key}=wrong is none of {', '.join(CHOICES[key])}"


def test_choices_are_the_documented_ones(fails: Fails) -> None:
    assert CHOICES["trainer.precision"] == ("bf16", "fp32")
    assert set(VALUE_KINDS) == {"soft_value", "max", "margin", "expectation", "logit", "logprob"}
    assert set(FORMS) == {"potential_difference", "next_value"}
    assert set(TERMINALS) == {"bootstrap", "zero"}
    assert fails("train", "optim.schedule=fast") == "optim.schedule=fast is none of constant, linear, cosine"


@pytest.mark.parametrize("key", POSITIVE)
def test_what_must_be_positive(refused: Callable, key: str) -> None:
    for value in (0, -1):
        assert refused(key, value) in (f"{key}={value} must be positive", f"{key}={float(value)} must be positive")


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_what_must_not_be_negative(refused: Callable, key: str) -> None:
    assert refused(key, -1) in (f"{key}=-1 must be 0 or positive", f"{key}=-1.0 must be 0 or positive")


@pytest.mark.parametrize("key", RANGES)
def test_what_must_lie_in_a_range(refused: Callable, key: str) -> None:
    for value in (-0.1, 1.1, math.nan):
        assert refused(key, value).startswith(f"{key}={value} must lie between 0 and ")


@pytest.mark.parametrize("key", ["optim.lr", "algorithm.beta", "algorithm.alpha", "optim.clip_grad"])
def test_numbers_are_finite(refused: Callable, key: str) -> None:
    for value in (math.nan, math.inf):
        assert refused(key, value).startswith(f"{key}={value} must be ")


@pytest.mark.parametrize("value", [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, 0.9, 0.9]])
def test_betas(refused: Callable, value: list[float]) -> None:
    assert refused("optim.betas", value) == f"optim.betas={value} must be two numbers of at least 0 and less than 1"


@pytest.mark.parametrize("command", ["online", "score", "evaluate"])
def test_parallel_combinations(world: World, fails: Fails, command: str) -> None:
    arguments = getattr(world, command)()
    assert fails(*arguments, "parallel.sequence_parallel=true").startswith("parallel.sequence_parallel=true needs ")
    assert fails(*arguments, "parallel.context_parallel_size=2").startswith("parallel.context_parallel_size > 1 is not")
