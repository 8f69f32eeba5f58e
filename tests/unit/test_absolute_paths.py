"""Paths that are typed in one folder and read by a job in another."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from recipe_folder import Folder

from nemo_tvkd.commands.train import _save_config
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.paths import absolute, expand_homes
from nemo_tvkd.prepare.training import _same_paths

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: rows.jsonl, org/name/, and plain, a file that is called as a template is."""
    folder = tmp_path / "here"
    (folder / "org" / "name").mkdir(parents=True)
    for name in ("rows.jsonl", "plain", "it's: a file"):
        (folder / name).touch()
    (folder / "link.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "home" / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


def test_what_is_here_becomes_absolute(here: Path) -> None:
    assert absolute("rows.jsonl") == absolute("./rows.jsonl") == f"{here}/rows.jsonl"
    assert absolute("it's: a file") == f"{here}/it's: a file"
    assert absolute("link.jsonl") == f"{here}/link.jsonl"  # a link may be given another target on purpose
    assert absolute(str(here / "rows.jsonl")) == f"{here}/rows.jsonl"


def test_a_split_of_a_local_dataset(here: Path, tmp_path: Path) -> None:
    assert absolute("org/name:train") == f"{here}/org/name:train"
    assert absolute("~/data:test") == f"{tmp_path}/home/data:test"
    assert absolute("other/name:train") == "other/name:train"
    assert absolute("rows.jsonl:train") == "rows.jsonl:train"  # a file has no splits
    assert absolute(":train") == ":train"


def test_home(here: Path, tmp_path: Path) -> None:
    assert absolute("~/data") == f"{tmp_path}/home/data"
    assert absolute("~/nothing") == "~/nothing"


def test_home_is_meant_by_paths_alone(here: Path, tmp_path: Path) -> None:
    """Not by words of a vocabulary; outputs too, which libraries would put elsewhere than we do."""
    words = ["data.train=['~/a:0.7',b:0.3]", "trainer.output_dir='~/run'", "data.pad_token='~'", "algorithm=sft"]
    config = compose("train", words)
    expand_homes(config)
    assert list(config.data.train) == [f"{tmp_path}/home/a:0.7", "b:0.3"]
    assert (config.trainer.output_dir, config.data.pad_token) == (f"{tmp_path}/home/run", "~")
    config = compose("evaluate", ["output='~/e.json'"])
    expand_homes(config)
    assert config.output == f"{tmp_path}/home/e.json"


def test_home_is_the_same_when_a_run_goes_on(here: Path, tmp_path: Path) -> None:
    """config.yaml has it in full."""
    saved = absolute(["~/data:0.7", "~/data:train:0.3"])
    assert saved == [f"{tmp_path}/home/data:0.7", f"{tmp_path}/home/data:train:0.3"]
    assert _same_paths(saved, ["~/data:0.7", "~/data:train:0.3"])
    assert not _same_paths(saved, ["~/data:0.7", "~/data:test:0.3"])


@pytest.mark.parametrize("value", ["", None, 3, "plain", "llama3", "mistralai/Mistral-7B-v0.1", "no.jsonl", "/no/such"])
def test_what_is_no_path_here_stays(here: Path, value: object) -> None:
    """A template's name stays one where a file is called the same."""
    assert absolute(value) == value


def test_lists(here: Path) -> None:
    typed = ["rows.jsonl", "some/dataset:train", "org/name:train", None]
    expected = [f"{here}/rows.jsonl", "some/dataset:train", f"{here}/org/name:train", None]
    assert absolute(typed) == expected
    assert absolute(tuple(typed)) == absolute(OmegaConf.create(typed)) == expected
    assert absolute([]) == []


def test_stages_read_what_was_typed(here: Path, tmp_path: Path) -> None:
    mine = Folder(tmp_path / "mine")
    mine.recipe["stages"]["second"]["settings"]["data.validation"] = "rows.jsonl"
    words = ["first.data.train=rows.jsonl", "first.data.validation=[rows.jsonl,some/dataset:train]"]
    submission = mine.load(*words, "judge.data.train=org/name:train", "first.data.chat_template=plain")
    first, second, judge = (submission.stage(name, "").config() for name in ("first", "second", "judge"))
    assert first.data.train == f"{here}/rows.jsonl"
    assert list(first.data.validation) == [f"{here}/rows.jsonl", "some/dataset:train"]
    assert first.data.chat_template == "plain"
    assert second.data.validation == f"{here}/rows.jsonl"
    assert judge.data.train == f"{here}/org/name:train"


def test_images_and_checkouts(here: Path, tmp_path: Path) -> None:
    mine = Folder(tmp_path / "mine")
    mine.cluster["container"] = {"runtime": "pyxis", "image": "rows.jsonl", "install": "~/data"}
    found = mine.load("first.cluster.container.image=nvcr.io/nvidia/nemo:25.11")
    container = found.stage("second", "").cluster.container
    assert (container.image, container.install) == (f"{here}/rows.jsonl", f"{tmp_path}/home/data")
    assert found.stage("first", "").cluster.container.image == "nvcr.io/nvidia/nemo:25.11"


def test_a_saved_configuration_can_be_repeated_from_anywhere(here: Path, tmp_path: Path) -> None:
    words = ["data.train=[rows.jsonl,some/dataset:train]", "data.validation=org/name:test", "student.path=org/name"]
    _save_config(compose("train", [*words, "data.chat_template=plain", "algorithm=sft"]), tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["data"]["train"] == [f"{here}/rows.jsonl", "some/dataset:train"]
    assert saved["data"]["validation"] == f"{here}/org/name:test"
    assert saved["student"]["path"] == f"{here}/org/name"
    assert saved["data"]["chat_template"] == "plain"
