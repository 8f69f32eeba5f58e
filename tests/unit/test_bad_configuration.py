"""Unknown keys, commands, methods and values: the line names the key, and the nearest one that is known."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails, World
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import run as run_command
from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.keys import Values, leaves, values_of
from nemo_tvkd.losses.methods import METHODS
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
        ("train algorithm=foo", "algorithm=foo is none of the known algorithms: tvkd, dpo, simpo, sft"),
        ("train algorithm=", "algorithm= is none of the known algorithms: tvkd, dpo, simpo, sft"),
        ("train algorithm.name=dpo", "algorithm.name=dpo: choose the method by algorithm=tvkd|dpo|simpo|sft"),
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
        ("train --verbose", "--verbose is not an option of nemo-tvkd train"),
        ("train =3", "'=3' is no override: write key=value"),
        ("train ~trainer.seed=42", "'~trainer.seed=42' is no override: write key=value"),
        ("train ++zzz=1", "'++zzz=1' is no override: write key=value"),
        ("train algorithm={name:foo}", "algorithm.name=foo: choose the method by algorithm=tvkd|dpo|simpo|sft"),
        ("train --from", "--from needs a value"),
        ("train --from /no/such/run", "--from: /no/such/run/config.yaml does not exist"),
        ("train --cfg all", "--cfg all is not known: --cfg job"),
        ("score --from run", "--from is not an option of nemo-tvkd score"),
    ],
)
def test_command_line(fails: Fails, arguments: str, message: str) -> None:
    assert fails(*arguments.split()).startswith(message)


@pytest.mark.parametrize("content", ["a: [", "", "- 1\n", "trainer: {seed: 1}\n", "algorithm: 3\n"])
def test_from_a_file_that_is_no_configuration(fails: Fails, tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert fails("train", "--from", tmp_path) == f"--from: {file} is not the config.yaml of a run"


SUBMIT = ("submit", "recipe=train", "cluster=local")
OF_COMMANDS = [((name, *SUBMIT[1:]) if name == "submit" else (name,), COMMANDS[name].schema, "") for name in OWN_KEYS]
OF_METHODS = [(("train", f"algorithm={name}"), method.config, "algorithm.") for name, method in METHODS.items()]
LIMITED = {
    key: (command, values)  # one command for each key: they share their sections
    for command, kind, prefix in (*OF_COMMANDS, *OF_METHODS)
    if command != ("import-hf",)
    for key, field in leaves(kind, prefix)
    if (values := values_of(field)).in_words()
}


@pytest.fixture(scope="module")
def defaults() -> dict[tuple[str, ...], Any]:
    """The configurations of the commands, so that a hundred values are tried in seconds."""
    commands = {command for command, _ in LIMITED.values()} - {SUBMIT} | {("train",)}
    return {command: compose(command[0], list(command[1:])) for command in commands}


@pytest.fixture
def refused(defaults: dict[tuple[str, ...], Any], capfd: pytest.CaptureFixture[str]) -> Callable[[str, Any], str]:
    """The line with which a command that has this key refuses the value."""

    def run(key: str, value: Any) -> str:
        command = LIMITED[key][0] if key in LIMITED else ("train",)
        if command == SUBMIT:  # it composes by itself
            assert guarded(lambda: load_recipe([*SUBMIT[1:], f"{key}={value}"])) == 2
        else:
            config = deepcopy(defaults[command])
            OmegaConf.update(config, key, value)
            assert guarded(run_command, command[0], config) == 2
        error = capfd.readouterr().err
        assert error.startswith("nemo-tvkd: ")
        assert error.count("\n") == 1
        return error.removeprefix("nemo-tvkd: ").rstrip()

    return run


@pytest.mark.parametrize("key", LIMITED)
def test_what_a_key_does_not_take(refused: Callable, key: str) -> None:
    values = LIMITED[key][1]
    if values.choices:
        wrong: list[Any] = ["wrong"]
    else:
        low = values.above if values.above is not None else values.at_least
        assert low is not None
        wrong = [low - 1, *[low] * (values.above is not None)]
        wrong += [values.at_most + 0.1, math.nan] if values.at_most is not None else []
    for value in wrong:
        message = refused(key, [value] if key == "score.what" else value)
        assert message.startswith((f"{key}={value} ", f"{key}={float(value)} " if value != "wrong" else "\n")), message
        assert all(choice in message for choice in values.choices), message


def test_what_keys_take_is_what_the_documentation_says() -> None:
    known = {key: values for key, (_, values) in LIMITED.items()}
    assert len(known) > 85
    assert known["trainer.precision"] == Values(choices=("bf16", "fp32"))
    assert known["shaping.value"].choices == ("soft_value", "max", "margin", "expectation", "logit", "logprob")
    assert known["shaping.value"] == known["algorithm.shaping.value"]
    assert known["shaping.form"].choices == ("potential_difference", "next_value")
    assert known["shaping.terminal"].choices == ("bootstrap", "zero")
    assert known["algorithm.label_smoothing"] == Values(at_least=0, at_most=0.5)
    assert known["bench.growth"] == Values(above=0, one_or_more=True)
    assert known["optim.lr"] == Values(at_least=0)


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
