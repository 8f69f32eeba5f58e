"""Shared fixtures: the real tokenizers with their templates, the demo's rows."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))  # a folder of scripts, no package

from chat_templates import LLAMA3_CHAT, MISTRAL_CHAT, MISTRAL_CHAT_V01, file_of
from demo_pairs import make_conversations, make_pairs

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
