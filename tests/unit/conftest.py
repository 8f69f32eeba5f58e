"""Shared fixtures: the real tokenizers with their templates, the demo's rows, commands that must find a mistake."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))  # folders of scripts, not packages
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

from bad_input import STARTED, Fails, World, nemo_stays_out
from chat_templates import LLAMA3_CHAT, MISTRAL_CHAT, MISTRAL_CHAT_V01, file_of
from demo_pairs import make_conversations, make_pairs
from doctor_cases import Chain, remembered
from submit_stand_ins import Slurm

from nemo_tvkd.__main__ import main
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def mistral_file() -> str:
    return file_of("mistral_common", "data", "tokenizer.model.v1")


@pytest.fixture(scope="session")
def llama_file() -> str:
    return file_of("llama_models", "llama3", "tokenizer.model")


@pytest.fixture(scope="session")
def mistral(mistral_file: str) -> Any:
    return load_tokenizer(mistral_file)


@pytest.fixture(scope="session")
def llama(llama_file: str) -> Any:
    return load_tokenizer(llama_file)


@pytest.fixture(scope="session")
def templates(mistral: Any, llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    folder = tmp_path_factory.mktemp("jinja")
    made = {"mistral plain": Template(mistral, "plain"), "llama plain": Template(llama, "plain")}
    for name, text, tokenizer in (
        ("mistral", MISTRAL_CHAT, mistral),
        ("mistral v0.1", MISTRAL_CHAT_V01, mistral),
        ("llama", LLAMA3_CHAT, llama),
    ):
        path = folder / f"{name}.jinja"
        path.write_text(text)
        made[name] = Template(tokenizer, str(path))
    return made


@pytest.fixture(scope="session")
def demo_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows at the demo's own sizes, without the checkpoints."""
    return {
        "train": make_pairs(0, 1500, heldout=False),
        "heldout": make_pairs(0, 300, heldout=True),
        "sft": make_conversations(0, 2000),
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with nemo_stays_out():
        return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def without_nemo() -> Iterator[None]:
    """Nothing in this file may import NeMo."""
    with nemo_stays_out():
        yield


@pytest.fixture
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run here, with a sentinel in place of the start of ranks: as that an unnoticed mistake shows."""
    from nemo_tvkd.runtime import launch

    def joined(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this process would become a rank")

    monkeypatch.setattr(launch, "run", lambda entry, args, ranks: STARTED)
    monkeypatch.setattr(launch, "join", joined)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # conversions set it
    for name in [*os.environ]:
        if name in ("RANK", "WORLD_SIZE", "NEMO_TVKD_DEBUG") or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str], messages: Callable[[str], None]) -> Fails:
    """Run a command that must find a mistake; its line without the "nemo-tvkd: ", compared with the golden one."""

    def run(*arguments: Any) -> str:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        error = capfd.readouterr().err
        assert code == 2, f"exit code {code}, stderr: {error}"
        assert error.endswith("\n")
        assert error.count("\n") == 1, f"not one line: {error}"
        assert error.startswith("nemo-tvkd: ")
        message = error.removeprefix("nemo-tvkd: ").rstrip("\n")
        messages(message)
        return message

    return run


@pytest.fixture
def chain(tmp_path: Path, world: World) -> Chain:
    """A recipe of tiny models, for `doctor`."""
    return Chain(tmp_path, world)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for chains that leave nothing in it but their recipe."""
    with remembered():
        yield tmp_path_factory.mktemp("plain")


@pytest.fixture
def plain(place: Path, world: World) -> Chain:
    """The same, where a test changes nothing that is there."""
    return Chain(place, world)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Stand-ins for Slurm's commands, found first."""
    made = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.place}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token caches of a test are."""
    from nemo_tvkd.data import cache

    monkeypatch.setenv("NEMO_TVKD_CACHE", str(tmp_path / "cache"))
    cache.program.cache_clear()  # what is edited while tests run
    return tmp_path / "cache" / "tokens"
