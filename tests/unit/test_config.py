"""Configuration: defaults live in the dataclasses alone, and a saved one is read back as it was."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import main
from nemo_tvkd.config import benchmark, cluster, commands, sections
from nemo_tvkd.config.compose import TRAINING, compose
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder
from nemo_tvkd.losses import methods
from nemo_tvkd.losses.methods import METHODS

MODULES = (commands, sections, methods, benchmark, cluster)
BY_DEFAULT = [command for command in OWN_KEYS if command != "submit"]
"""Commands that have a configuration before anything is chosen; a chain of jobs has a recipe and a cluster."""


def as_dict(config: Any) -> Any:
    return OmegaConf.to_container(config)


@pytest.mark.parametrize("command", BY_DEFAULT)
def test_defaults_are_those_of_the_dataclasses(command: str) -> None:
    composed, plain = as_dict(compose(command, [])), dataclasses.asdict(COMMANDS[command].schema())
    if command in TRAINING:
        plain["algorithm"] = dataclasses.asdict(METHODS["tvkd"].config())
        plain["trainer"]["output_dir"] = "runs/tvkd"
    assert composed == plain


@pytest.mark.parametrize("name", METHODS)
def test_algorithms_are_a_group(name: str) -> None:
    config = compose("train", [f"algorithm={name}"])
    assert as_dict(config.algorithm) == dataclasses.asdict(METHODS[name].config())
    assert config.algorithm.name == name
    assert config.trainer.output_dir == f"runs/{name}"


def test_every_algorithm_has_its_loss_and_its_file() -> None:
    assert {file.stem for file in (package_folder("conf") / "algorithm").iterdir()} == set(METHODS)
    assert {file.stem for file in package_folder("conf").glob("*.yaml")} == set(OWN_KEYS)


def test_yaml_holds_no_defaults() -> None:
    """A default lives once, in a dataclass."""
    conf = package_folder("conf")
    for file in (*conf.glob("*.yaml"), *(conf / "algorithm").glob("*.yaml")):
        assert set(OmegaConf.to_container(OmegaConf.load(file))) == {"defaults"}, file


def test_every_dataclass_is_used() -> None:
    everything = [entry for module in MODULES for entry in vars(module).items()]
    # losses.methods has rows beside their settings.
    defined = {
        n for n, v in everything if dataclasses.is_dataclass(v) and n.endswith(("Config", "Source", "Tokenizer"))
    }
    used: set[str] = set()

    def visit(kind: type) -> None:
        used.update(part.__name__ for part in kind.__mro__ if dataclasses.is_dataclass(part))
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.type):
                visit(field.type)  # type: ignore[arg-type]

    for kind in (*(COMMANDS[name].schema for name in OWN_KEYS), *(method.config for method in METHODS.values())):
        visit(kind)
    # The values of a recipe's mappings.
    assert defined == used | {"ModelConfig", "DatasetConfig", "StageConfig", "LayoutConfig"}


def test_a_recipe_and_a_cluster_are_what_submit_has_no_default_for() -> None:
    composed = as_dict(compose("submit", ["recipe=train", "cluster=local"]))
    plain = dataclasses.asdict(cluster.SubmitConfig())
    assert composed["cluster"] == plain["cluster"] | {"name": "local"}
    assert composed["recipe_scale"] == plain["recipe_scale"] == "full"
    assert composed["run_dir"] == "runs/train"
    assert main(["submit", "--help"]) == 0


def test_overrides() -> None:
    config = compose(
        "train",
        [
            "algorithm=tvkd",
            "algorithm.shaping.form=next_value",
            "data.train=[a.jsonl,b c.jsonl]",
            "optim.betas=[0.8,0.95]",
            "trainer.max_steps=7",
            "student.path=123",
            "teacher.path='a=b, c'",
            "parallel.sequence_parallel=true",
            "optim.lr=1e-3",
            "trainer.seed=1",
            "trainer.seed=2",
        ],
    )
    assert config.algorithm.shaping.form == "next_value"
    assert list(config.data.train) == ["a.jsonl", "b c.jsonl"]
    assert list(config.optim.betas) == [0.8, 0.95]
    assert config.trainer.max_steps == 7
    assert config.student.path == "123"
    assert config.teacher.path == "a=b, c"
    assert config.parallel.sequence_parallel is True
    assert config.optim.lr == 1e-3
    assert config.trainer.seed == 2
    assert as_dict(compose("score", ["score.what=[value,logprob]"]).score.what) == ["value", "logprob"]
    # a number may be null where the dataclass says so, and only there
    assert compose("train", ["trainer.max_steps=null"]).trainer.max_steps is None
    with pytest.raises(UserError, match=r"^field 'trainer.seed' is not Optional$"):
        compose("train", ["trainer.seed=null"])


def test_interpolation_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/models")
    config = compose("train", ["student.path=${oc.env:MODELS}/small", "teacher.path=${student.path}-teacher"])
    assert as_dict(config)["teacher"]["path"] == "/models/small-teacher"


def test_composing_again_starts_afresh() -> None:
    compose("train", ["trainer.seed=1"])
    compose("score", ["score.output=x"])
    assert compose("train", []).trainer.seed == 42


AWKWARD = [
    "plain",
    "",
    "null",
    "true",
    "1e-3",
    "017",
    "0x10",
    "[a]",
    "{a: b}",
    "a,b",
    "a=b, c",
    "it's",
    'say "hi"',
    """both ' and \"""",
    "back\\slash",
    "two\\\\",
    "\\'",
    "\\\\'",
    "C:\\dir\\",
    " spaces ",
    "tab\there",
    "line\nbreak",
    "#no comment",
    "é 日本 🤖",
    "$HOME",
    "a: b",
    "~x",
    "*",
    "@y",
    "%z",
]


def saved(config: Any, folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(OmegaConf.to_yaml(config))  # as a run does
    return file


@pytest.mark.parametrize("name", METHODS)
def test_from_repeats_every_kind_of_value(tmp_path: Path, name: str) -> None:
    config = compose(
        "train",
        [
            f"algorithm={name}",
            "data.validation=[a,b]",
            "trainer.max_steps=3",
            "optim.betas=[0.5,0.25]",
            "optim.lr=1e-7",
            "data.max_prompt_length=9",
            "logger.tensorboard=false",
        ],
    )
    config.data.train = list(AWKWARD)
    assert as_dict(compose("train", [], saved(config, tmp_path))) == as_dict(config)


@pytest.mark.parametrize("text", AWKWARD)
def test_from_repeats_text(tmp_path: Path, text: str) -> None:
    config = compose("train", [])
    config.student.path = text
    config.data.train = text
    again = compose("train", [], saved(config, tmp_path))
    assert (again.student.path, again.data.train) == (text, text)


def test_from_with_overrides(tmp_path: Path) -> None:
    config = compose("train", ["algorithm=dpo", "algorithm.beta=0.3", "trainer.seed=1", "optim.lr=1e-3"])
    file = saved(config, tmp_path)
    again = compose("train", ["trainer.seed=9"], file)
    assert (again.algorithm.name, again.algorithm.beta, again.trainer.seed, again.optim.lr) == ("dpo", 0.3, 9, 1e-3)
    # another method takes its own defaults and keeps the rest
    other = compose("train", ["algorithm=sft"], file)
    assert as_dict(other.algorithm) == {"name": "sft"}
    assert (other.trainer.seed, other.optim.lr) == (1, 1e-3)
    assert as_dict(compose("train", ["algorithm=dpo"], file)) == as_dict(config)
    with pytest.raises(UserError, match=r"^unknown key trainer\.sed; did you mean trainer\.seed\?$"):
        compose("train", ["trainer.sed=1"], file)


def test_a_saved_key_that_is_unknown_is_named(tmp_path: Path) -> None:
    file = saved(compose("train", []), tmp_path)
    file.write_text(file.read_text().replace(" seed:", " sed:"))
    with pytest.raises(UserError, match=r"^unknown key trainer\.sed; did you mean trainer\.seed\?$"):
        compose("train", [], file)


def test_cfg_job_is_what_from_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["algorithm=dpo", "student.path=a b", "data.train=[x,'y,z']", "trainer.max_steps=5"]
    assert main(["train", *overrides, "--cfg", "job"]) == 0
    text = capsys.readouterr().out
    assert "${" not in text
    (tmp_path / "config.yaml").write_text(text)
    assert main(["train", "--from", str(tmp_path), "--cfg", "job"]) == 0
    assert capsys.readouterr().out == text
    assert as_dict(OmegaConf.create(text)) == as_dict(compose("train", overrides))


@pytest.mark.parametrize("command", BY_DEFAULT)
def test_cfg_job_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *(["check"] if command == "data" else []), "--cfg", "job"]) == 0
    assert as_dict(OmegaConf.create(capsys.readouterr().out)) == as_dict(compose(command, []))


@pytest.mark.parametrize("command", BY_DEFAULT)
def test_help_lists_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    shown = as_dict(OmegaConf.create(text.split("keys and defaults:\n")[1]))
    assert shown == as_dict(compose(command, []))
