"""What cannot be converted is refused with one line, before NeMo is imported."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import reference as ref

from nemo_tvkd.__main__ import main


def bare_source(folder: Path, config: dict[str, Any]) -> Path:
    """A directory that looks like a checkpoint: a config and a file of weights that nobody reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def llama_config(**changed: Any) -> dict[str, Any]:
    return {**ref.tiny_llama(1).config.to_dict(), **changed}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BAD_SOURCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["source:", "gpt2", "llama", "mistral"]),
    "unknown to transformers": ({"model_type": "nextgen9"}, ["config.json", "nextgen9"]),
    "no model type": ({"hidden_size": 32}, ["config.json"]),
    "attention bias": (llama_config(attention_bias=True), ["source:", "attention_bias"]),
    "mlp bias": (llama_config(mlp_bias=True), ["source:", "mlp_bias"]),
    "activation": (llama_config(hidden_act="gelu"), ["source:", "hidden_act", "gelu"]),
    "yarn": (llama_config(rope_scaling=YARN), ["source:", "rope", "yarn"]),
    "dynamic": (llama_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), ["source:", "rope", "dynamic"]),
}


def assert_refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2 and one line that says why; NeMo is not imported for it."""
    capsys.readouterr()
    with patch.dict(os.environ):  # conversions hide GPUs from their process, which here is that of all tests
        assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("nemo-tvkd: ")
    assert len(message.strip().splitlines()) == 1
    for word in words:
        assert word in message
    assert "nemo.lightning" not in sys.modules
    assert "megatron.core" not in sys.modules


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_import_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config, words = BAD_SOURCES[name]
    source = bare_source(tmp_path / "hf", config)
    assert_refused(["import-hf", f"source={source}", f"output={tmp_path / 'new'}"], capsys, *words)
    assert not (tmp_path / "new").exists()


def test_import_refuses_what_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nemo = tmp_path / "nemo"
    (nemo / "weights").mkdir(parents=True)
    bare_source(nemo / "context/hf", llama_config())
    output = f"output={tmp_path / 'new'}"
    assert_refused(["import-hf", f"source={nemo}", output], capsys, "source", str(nemo), "NeMo checkpoint already")
    assert_refused(["import-hf", f"source={tmp_path / 'absent'}", output], capsys, "source", "absent", "does not exist")
    assert_refused(["import-hf", f"source={tmp_path}", output], capsys, "source", "no checkpoint")
    assert_refused(["import-hf", output], capsys, "source is not set")
    damaged = bare_source(tmp_path / "damaged", {})
    (damaged / "config.json").write_text('{"model_type": "llama",')
    assert_refused(["import-hf", f"source={damaged}", output], capsys, str(damaged / "config.json"))


def test_conversions_refuse_an_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = bare_source(tmp_path / "source", llama_config())
    assert_refused(["import-hf", f"source={source}", f"output={tmp_path}"], capsys, "output", "exists")
    assert_refused(["import-hf", f"source={source}"], capsys, "output is not set")
    nemo = tmp_path / "nemo"
    (nemo / "weights").mkdir(parents=True)
    bare_source(nemo / "context/hf", llama_config())
    assert_refused(["export-hf", f"checkpoint={nemo}", f"output={tmp_path}"], capsys, "output", "exists")


def test_export_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"output={tmp_path / 'new'}"
    source = bare_source(tmp_path / "source", llama_config())
    already = ["checkpoint", str(source), "Hugging Face directory already"]
    assert_refused(["export-hf", f"checkpoint={source}", output], capsys, *already)
    (tmp_path / "run/checkpoints/.step-00000002/weights").mkdir(parents=True)
    refused = ["checkpoint", "run", "without a complete checkpoint"]
    assert_refused(["export-hf", f"checkpoint={tmp_path / 'run'}", output], capsys, *refused)
    foreign = tmp_path / "foreign"  # NeMo's own import keeps no Hugging Face config
    (foreign / "weights").mkdir(parents=True)
    (foreign / "context").mkdir()
    assert_refused(["export-hf", f"checkpoint={foreign}", output], capsys, "checkpoint", "config.json")
