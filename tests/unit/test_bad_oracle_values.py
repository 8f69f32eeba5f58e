"""Odd values of the keys that belong to oracles, reward models and label noise, and keys that there are not."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from bad_input import Fails, World
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import run as run_command
from nemo_tvkd.config.compose import compose
from nemo_tvkd.runtime.exits import guarded

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

Refused = Callable[[str, str, Any], str]
RANGES = {  # algorithm and key: what is said of a number out of range
    "drdo algorithm.alpha": "must be 0 or positive",
    "drdo algorithm.gamma": "must be 0 or positive",
    "drdo algorithm.beta": "must be positive",
    "edpo algorithm.beta": "must be positive",
    "reward algorithm.alpha_sft": "must be 0 or positive",
    "reward algorithm.center_rewards_coefficient": "must be 0 or positive",
    "drdo data.label_noise": "must lie between 0 and 1",
}
CHOICES = {
    "drdo algorithm.logprob": ("sum", "mean"),
    "drdo algorithm.contrast": ("ratio", "product"),
    "drdo algorithm.student_reward": ("head", "implicit"),
    "edpo algorithm.ensemble": ("mean", "min"),
    "drdo oracle.mode": ("online", "cached", "columns"),
    "drdo oracle.normalize": ("none", "zscore"),
}


@pytest.fixture(scope="module")
def defaults(world: World) -> dict[str, Any]:
    """A configuration without mistakes of each method: composing one takes longer than finding its mistake."""
    return {name: compose("train", [*world.drdo()[1:], f"algorithm={name}"]) for name in ("drdo", "edpo", "reward")}


@pytest.fixture
def refused(defaults: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> Refused:
    """The line with which a method refuses a value of a key."""

    def run(algorithm: str, key: str, value: Any) -> str:
        config = deepcopy(defaults[algorithm])
        OmegaConf.update(config, key, value, force_add=False)
        capfd.readouterr()
        assert guarded(run_command, "train", config) == 2
        error = capfd.readouterr().err
        assert error.startswith("nemo-tvkd: ")
        assert error.count("\n") == 1
        return error.removeprefix("nemo-tvkd: ").rstrip()

    return run


@pytest.mark.parametrize("value", [True, 3, 0.5, [["a"]], ["a", 1], ["a", ["b"]], {"a": "b"}, [False]], ids=str)
def test_what_is_no_path(refused: Refused, defaults: dict[str, Any], value: Any) -> None:
    for algorithm in ("drdo", "edpo"):
        for mode in ("online", "cached", "columns"):
            defaults[algorithm].oracle.mode = mode
            for name in ("path", "scores"):
                said = f"oracle.{name}={value} must be a path or a list of paths"
                assert refused(algorithm, f"oracle.{name}", value) == said
        defaults[algorithm].oracle.mode = "online"


def test_what_is_no_path_as_it_is_typed(world: World, fails: Fails) -> None:
    for value, shown in (("true", "True"), ("[[a]]", "[['a']]"), ("{a:b}", "{'a': 'b'}")):
        message = fails(*world.drdo(), f"oracle.path={value}")
        assert message == f"oracle.path={shown} must be a path or a list of paths"
    assert fails(*world.drdo(), "oracle.path=a,b").startswith("oracle.path: 'a,b' is several values: a list is ")


@pytest.mark.parametrize("key", RANGES)
def test_numbers_out_of_range(refused: Refused, key: str) -> None:
    for value in (-1.0, -1e-9, math.nan, math.inf, *[0.0] * (RANGES[key] == "must be positive")):
        assert refused(*key.split(), value) == f"{key.split()[1]}={value} {RANGES[key]}"


@pytest.mark.parametrize("key", RANGES)
def test_what_is_no_number(world: World, fails: Fails, key: str) -> None:
    algorithm, name = key.split()
    for value, shown in (
        ("much", "'much' of type 'str'"),
        ("true", "'True' of type 'bool'"),
        ("[1]", "'[1]' of type "),
    ):
        message = fails(*world.drdo(), f"algorithm={algorithm}", f"{name}={value}")
        assert message.startswith(f"{name}: Value {shown}")
    assert fails(*world.drdo(), f"algorithm={algorithm}", f"{name}=null") == f"field '{name}' is not Optional"


@pytest.mark.parametrize("key", CHOICES)
def test_choices(refused: Refused, world: World, fails: Fails, key: str) -> None:
    algorithm, name = key.split()
    for value in ("wrong", "", CHOICES[key][0].upper()):
        assert refused(algorithm, name, value) == f"{name}={value} is none of {', '.join(CHOICES[key])}"
    assert fails(*world.drdo(), f"algorithm={algorithm}", f"{name}=null") == f"field '{name}' is not Optional"
    assert fails(*world.drdo(), f"algorithm={algorithm}", f"{name}=[a]").startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data.label_noise_seed=-1", "data.label_noise_seed=-1 must be 0 or positive"),
        ("data.label_noise_seed=1.5", "data.label_noise_seed: Value '1.5' of type 'float' could not be converted"),
        ("algorithm=reward algorithm.use_margin=maybe", "algorithm.use_margin: Value 'maybe' is not a valid bool"),
        ("algorithm=reward algorithm.use_margin=[true]", "algorithm.use_margin: Value '[True]' "),
        ("oracle.tokenizer=/no/such", "oracle.tokenizer: /no/such does not exist"),
        ("oracle.tokenizer=[a]", "oracle.tokenizer: Cannot convert "),
        ("oracle.chat_template=/no.jinja", "oracle.chat_template=/no.jinja is not one of auto, plain, tokenizer "),
        ("oracle=3", "oracle: Invalid type assigned"),
        ("oracle={a:b}", "oracle.a: Key 'a' not in 'OracleConfig'"),
    ],
)
def test_other_odd_values(world: World, fails: Fails, arguments: str, message: str) -> None:
    assert fails(*world.drdo(), *arguments.split()).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("oracle.modes=online", "unknown key oracle.modes; did you mean oracle.mode?"),
        ("oracle.score=a", "unknown key oracle.score; did you mean oracle.scores?"),
        ("oracle.normalise=zscore", "unknown key oracle.normalise; did you mean oracle.normalize?"),
        ("oracle.zzz=1", "unknown key oracle.zzz; "),
        ("orcale.path=a", "unknown key orcale.path; did you mean oracle.path?"),
        ("data.label_nose=0.1", "unknown key data.label_nose; did you mean data.label_noise?"),
        ("algorithm.ensemble=min", "unknown key algorithm.ensemble; "),
        ("algorithm=edpo algorithm.alpha=1", "unknown key algorithm.alpha; "),
        ("algorithm=reward algorithm.beta=1", "unknown key algorithm.beta; "),
        ("algorithm=dpo algorithm.gamma=1", "unknown key algorithm.gamma; "),
    ],
)
def test_unknown_keys(fails: Fails, arguments: str, message: str) -> None:
    assert fails("train", "algorithm=drdo", *arguments.split()).startswith(message)


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_label_noise_is_of_training_alone(world: World, fails: Fails, command: str) -> None:
    for name in ("label_noise=0.1", "label_noise_seed=1", "label_noise=0"):
        message = fails(*getattr(world, command)(), f"data.{name}")
        assert message.startswith(f"unknown key data.{name.split('=')[0]}; ")


def test_label_noise_without_pairs(world: World, fails: Fails) -> None:
    message = fails(*world.drdo(), "algorithm=sft", "data.label_noise=0.1")
    assert message == "data.label_noise=0.1 exchanges chosen and rejected responses: algorithm=sft has no pairs"
