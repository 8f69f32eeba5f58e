"""Keys and their meanings: every key has one; `--help` shows submit's as YAML that reads back."""

from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import main
from nemo_tvkd.config.cluster import ClusterConfig, ContainerConfig, SubmitConfig
from nemo_tvkd.config.compose import choices
from nemo_tvkd.config.documented import Key, documented, keys, meanings
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.losses.methods import METHODS

CHOSEN = ("algorithm", "name")
"""The section that a file of conf/ fills, and the name it gives."""


@dataclass
class Inner:
    deep: int = 3
    """How deep."""


@dataclass
class Base:
    first: str = "a: b # no comment"
    """From the base."""
    silent: int = 1


@dataclass
class Outer(Base):
    second: list[str] = field(default_factory=lambda: ["x", "y"])
    """Two
    lines."""
    inner: Inner = field(default_factory=Inner)
    last: Any = None
    """Of its own. """


def test_meanings_are_the_docstrings_of_the_class_and_its_bases() -> None:
    assert meanings(Outer) == {"first": "From the base.", "second": "Two lines.", "last": "Of its own."}


def test_the_text_is_yaml_of_the_same_configuration() -> None:
    text = documented(OmegaConf.structured(Outer), Outer)
    assert OmegaConf.to_container(OmegaConf.create(text)) == OmegaConf.to_container(OmegaConf.structured(Outer))
    lines = text.splitlines()
    assert "second:  # Two lines." in lines
    assert "  deep: 3  # How deep." in lines
    assert "silent: 1" in lines


@pytest.fixture(scope="module")
def page() -> str:
    import contextlib
    import io

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        assert main(["submit", "--help"]) == 0
    return stream.getvalue()


def test_help_names_all_recipes_and_clusters(page: str) -> None:
    for group in ("recipe", "cluster"):
        assert f"{group}={'|'.join(choices(group))}" in page


@pytest.mark.parametrize("option", ["--dry-run", "--from STAGE", "--here STAGE", "--config-dir", "STAGE=PATH"])
def test_help_explains_the_options(page: str, option: str) -> None:
    assert option in page


KEYS = ["account", "partition", "qos", "nodes", "gpus_per_node", "time", "environment", "modules", "sbatch_lines"]


@pytest.mark.parametrize("kind", [ClusterConfig, ContainerConfig])
def test_help_shows_every_key_of_a_cluster_with_its_default_and_meaning(page: str, kind: type) -> None:
    lines = [line.strip() for line in page.splitlines()]
    flat = " ".join(line.lstrip("# ") for line in lines)
    for key in fields(kind):
        assert any(line.startswith(f"{key.name}:") for line in lines), key.name
        said = meanings(kind).get(key.name, "")
        assert said in flat, key.name


def test_the_issues_keys_are_those_of_a_cluster() -> None:
    assert set(KEYS) < {key.name for key in fields(ClusterConfig)}
    assert "mounts" in {key.name for key in fields(ContainerConfig)}


@pytest.mark.parametrize(
    "kind",
    [*(COMMANDS[name].schema for name in OWN_KEYS), *(method.config for method in METHODS.values())],
    ids=[*OWN_KEYS, *METHODS],
)
def test_every_key_has_a_meaning(kind: type) -> None:
    found = [*keys(kind)]
    assert found
    assert not [key.name for key in found if not key.meaning and key.name not in CHOSEN]
    assert len({key.name for key in found}) == len(found)


OF_METHODS = ("algorithm.", "shaping.")
"""Keys whose texts stand with the methods."""


@pytest.mark.parametrize("name", OWN_KEYS)
def test_a_text_stands_alone(name: str) -> None:
    for key in keys(COMMANDS[name].schema):
        if key.name.startswith(OF_METHODS):
            continue
        text = key.meaning
        assert text[:1].isupper() or text.startswith("`"), f"{key.name}: {text}"
        assert text.endswith("."), f"{key.name}: {text}"
        assert text.split()[0] not in ("Of", "As", "Whose", "What", "Which", "How"), f"{key.name}: {text}"


def test_keys_are_those_of_the_configuration() -> None:
    """Every leaf of the composed configuration, and no other."""
    from nemo_tvkd.config.compose import compose, flatten

    config = OmegaConf.to_container(compose("score", []))
    assert {key.name for key in keys(COMMANDS["score"].schema)} == set(flatten(config))


def test_a_key_in_words() -> None:
    found = {key.name: key for key in keys(Outer)}
    assert [*found] == ["first", "silent", "second", "inner.deep", "last"]
    assert found["second"] == Key("second", "list of text", "[x,y]", "Two lines.")
    assert found["inner.deep"] == Key("inner.deep", "whole number", "3", "How deep.")
    assert found["last"].kind == "null, or a list"
    train = {key.name: key for key in keys(COMMANDS["train"].schema)}
    assert train["trainer.max_steps"].kind == "whole number or null"
    assert (train["optim.lr"].kind, train["optim.lr"].default) == ("number", "5e-07")
    assert (train["optim.betas"].kind, train["optim.betas"].default) == ("list of numbers", "[0.9,0.999]")
    assert train["data.train"].kind == "text, or a list"


def test_names_that_the_user_chooses_stand_in_capitals() -> None:
    names = {key.name for key in keys(SubmitConfig)}
    assert {"recipe.models.NAME.path", "recipe.stages.NAME.settings", "cluster.environment"} <= names
    assert "recipe.layouts.NODE_TYPE.STAGE.nodes" in names


def test_defaults_are_those_of_the_section_where_it_stands() -> None:
    bench = {key.name: key.default for key in keys(COMMANDS["bench"].schema)}
    assert (bench["trainer.global_batch_size"], bench["bench.teacher.hidden_size"]) == ("4", "384")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optim.schedule", "one of constant, linear, cosine"),
        ("optim.warmup_ratio", "from 0 to 1"),
        ("data.max_length", "more than 0"),
        ("optim.lr", "0 or more"),
        ("trainer.output_dir", ""),
    ],
)
def test_what_a_key_admits(key: str, said: str) -> None:
    assert {each.name: each.admits for each in keys(COMMANDS["train"].schema)}[key] == said


def test_bounds_and_choices_stand_behind_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    flat = " ".join(capsys.readouterr().out.replace("\n", " ").replace("#", " ").split())
    assert "Highest learning rate." in flat
    assert "needs another (2e-5). 0 or more. lr: 5.0e-07" in flat
    assert "of the steps in which the learning rate rises from 0. From 0 to 1." in flat
    assert "constant | linear | cosine. weight_decay" in flat  # the text names them
    assert "alpha: 0.7 Weight of the teacher's shaping" in flat  # the method's keys have their texts, too


def test_the_defaults_of_the_page_are_those_of_the_command(page: str) -> None:
    text = page.split("keys and defaults:\n", 1)[1]
    plain = OmegaConf.to_container(OmegaConf.structured(SubmitConfig), resolve=False)
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=False) == plain
