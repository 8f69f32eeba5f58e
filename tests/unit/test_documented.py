"""`--help`: every key of submit's configuration stands there with its meaning, as YAML that reads back."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import main
from nemo_tvkd.cluster.config import ClusterConfig, ContainerConfig, SubmitConfig
from nemo_tvkd.compose import choices
from nemo_tvkd.documented import documented, meanings


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


def test_every_key_of_a_cluster_that_its_name_does_not_explain_has_a_meaning() -> None:
    plain = {"name", "account", "partition", "qos", "modules", "srun_options", "cpus_per_rank", "gpus_per_node"}
    for kind in (ClusterConfig, ContainerConfig):
        sections = {key.name for key in fields(kind) if isinstance(key.type, type) and is_dataclass(key.type)}
        silent = {key.name for key in fields(kind)} - set(meanings(kind)) - sections
        assert silent <= plain, silent - plain


def test_the_defaults_of_the_page_are_those_of_the_command(page: str) -> None:
    text = page.split("keys and defaults:\n", 1)[1]
    plain = OmegaConf.to_container(OmegaConf.structured(SubmitConfig), resolve=False)
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=False) == plain
