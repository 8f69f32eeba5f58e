"""Checkpoints and tokenizers that are none, are damaged, are not supported or do not fit each other."""

import json
from pathlib import Path
from typing import Any

import pytest
from bad_input import CHECKPOINT_KEYS, STARTED, Fails, World

from nemo_tvkd.__main__ import main

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.mark.parametrize("key", CHECKPOINT_KEYS)
def test_paths_that_are_no_checkpoint(world: World, fails: Fails, tmp_path: Path, key: str) -> None:
    command = getattr(world, CHECKPOINT_KEYS[key])()
    if key != "reference":  # which may be empty
        assert fails(*command, f"{key}=''").startswith(f"{key} is not set: give a Hugging Face directory")
    assert fails(*command, f"{key}=/no/such/model") == f"{key}: /no/such/model does not exist"
    assert fails(*command, f"{key}=some/model").startswith(f"{key}: some/model is neither a local path nor a hub id")
    assert fails(*command, f"{key}={tmp_path}").startswith(f"{key}: {tmp_path} is no checkpoint: expected")
    bare = world.variant("bare", without=("*.safetensors",))
    assert fails(*command, f"{key}={bare}") == f"{key}: {bare} has a config.json but no *.safetensors weights"
    message = fails(*command, f"{key}={world.variant('gpt2', model_type='gpt2')}")
    assert message == f"{key}: model type 'gpt2' is not supported: llama and mistral are"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_bias": True}, "attention_bias and mlp_bias are not supported"),
        ({"mlp_bias": True}, "attention_bias and mlp_bias are not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: silu is"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' is not supported: default, linear and llama3 are",
        ),
    ],
)
def test_architectures(world: World, fails: Fails, config: dict[str, Any], message: str) -> None:
    path = world.variant(f"architecture-{next(iter(config))}", **config)
    assert fails(*world.online(), f"student.path={path}") == f"student.path: {message}"


def test_damaged_checkpoints(world: World, fails: Fails, tmp_path: Path) -> None:
    unknown = world.variant("unknown_type", model_type="zzz")
    message = fails(*world.online(), f"student.path={unknown}")
    assert message.startswith(f"{unknown}/config.json is not a model's config: ")
    assert "zzz" in message
    broken = world.variant("broken")
    (broken / "config.json").write_text("{")
    message = fails(*world.online(), f"student.path={broken}")
    assert message.startswith(f"{broken}/config.json is not a model's config: ")
    sharded = world.variant("sharded")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    message = fails(*world.online(), f"student.path={sharded}")
    assert message == f"student.path: {sharded} lacks model-2.safetensors, one of the 2 files in {index.name}"
    index.write_text("{")
    message = fails(*world.online(), f"student.path={sharded}")
    assert message == f"student.path: {index} is not a readable index of weight files"


def test_an_index_of_weights_that_are_not_read_does_not_count(world: World, fails: Fails) -> None:
    """Repositories often have weights in both formats, of which only the safetensors are downloaded."""
    both = world.variant("both_formats")
    index = both / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}))
    assert main([*world.online(), f"student.path={both}"]) == STARTED
    (both / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    message = fails(*world.online(), f"student.path={both}")
    assert message.startswith(
        f"student.path: {both} lacks model-2.safetensors, one of the 1 files in model.safetensors."
    )


def test_an_index_of_the_only_weights(world: World, fails: Fails) -> None:
    older = world.variant("bin_only", without=("*.safetensors",))
    (older / "pytorch_model-1.bin").touch()
    index = older / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}))
    message = fails(*world.online(), f"student.path={older}")
    assert message == f"student.path: {older} lacks pytorch_model-2.bin, one of the 2 files in {index.name}"
    (older / "pytorch_model-2.bin").touch()
    assert main([*world.online(), f"student.path={older}"]) == STARTED


def test_nemo_checkpoints(world: World, fails: Fails, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-00000002.incomplete").mkdir(parents=True)
    message = fails(*world.online(), f"student.path={run}")
    assert message == f"student.path: {run} is a run without a complete checkpoint"
    foreign = tmp_path / "foreign"
    (foreign / "weights").mkdir(parents=True)
    (foreign / "context").mkdir()
    message = fails(*world.online(), f"student.path={foreign}")
    assert message.startswith(f"student.path: NeMo checkpoint {foreign} has no context/hf/config.json")


def test_tokenizers(world: World, fails: Fails, tmp_path: Path) -> None:
    for command, key in (("online", "student.tokenizer"), ("score", "score.tokenizer"), ("evaluate", "tokenizer")):
        arguments = getattr(world, command)()
        assert fails(*arguments, f"{key}=/no/such") == f"{key}: /no/such does not exist"
        assert fails(*arguments, f"{key}={tmp_path}").startswith(f"{key}: {tmp_path} is not a tokenizer: give ")
    size = len(world.tokenizer)
    narrow = world.variant("narrow", vocab_size=size - 1)
    message = fails(*world.online(), f"student.path={narrow}")
    wrong = f"the tokenizer has {size} entries but the model's vocabulary has {size - 1}"
    assert message == f"student.tokenizer: {wrong}"
    assert fails(*world.score(), f"score.model={narrow}") == f"score.tokenizer: {wrong}"
    assert fails(*world.evaluate(), f"checkpoint={narrow}") == f"tokenizer: {wrong}"
    without = world.variant("without_tokenizer", without=("tokenizer*", "special*", "chat_template*"))
    assert fails(*world.online(), f"student.path={without}").startswith(
        f"student.tokenizer: {without} is not a tokenizer"
    )


def test_vocabularies_of_online_models(world: World, fails: Fails) -> None:
    size = len(world.tokenizer)
    narrow = world.variant("narrow_teacher", "teacher", vocab_size=size - 1)
    message = fails(*world.online(), f"teacher.path={narrow}")
    assert message == f"teacher.path: the tokenizer has {size} entries but the model's vocabulary has {size - 1}"
    message = fails(*world.online(), "algorithm=dpo", f"reference.path={narrow}")
    assert message == (
        f"reference.path: its vocabulary of {size - 1} is smaller than the {size} token ids it would read: "
        "it must share student.path's tokenizer"
    )
    other = world.other_tokenizer()
    message = fails(*world.online(), "algorithm=dpo", f"reference.path={other}")
    assert message == "reference.path: its tokenizer is not student.path's, whose token ids it would read"


def test_vocabularies_that_may_differ(world: World) -> None:
    """A model may have more columns than tokens, a teacher another tokenizer; without need of one none is looked at."""
    wide = world.variant("wide_teacher", "teacher", vocab_size=1000)
    assert main([*world.online(), f"teacher.path={wide}"]) == STARTED
    assert main([*world.online(), f"teacher.path={world.other_tokenizer()}"]) == STARTED
    assert main([*world.online(), "algorithm=dpo", "teacher.path=/no/such"]) == STARTED


def test_evaluate_reference_with_another_vocabulary(world: World, fails: Fails) -> None:
    narrow = world.variant("narrow_teacher", "teacher", vocab_size=len(world.tokenizer) - 1)
    assert fails(*world.evaluate(), f"reference={narrow}").startswith("reference: its vocabulary of ")
    other = world.other_tokenizer()
    assert fails(*world.evaluate(), f"reference={other}").startswith("reference: its tokenizer is not checkpoint's")
