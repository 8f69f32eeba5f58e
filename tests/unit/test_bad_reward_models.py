"""Reward models that cannot be converted, each refused with one line; NeMo is not imported for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import torch
from bad_input import Fails, World
from reward_models import add_head, classifier, random_head
from safetensors.torch import load_file, save_file

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.checkpoints.hf_weights import read_model
from nemo_tvkd.errors import UserError

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

HIDDEN = 32


def nemo_checkpoint(path: Path, side: Path, **heads: bool) -> Path:
    """What a NeMo checkpoint looks like from outside."""
    (path / "weights").mkdir(parents=True)
    shutil.copytree(side, path / "context" / "hf")
    (path / "context" / "nemo_tvkd.json").write_text(json.dumps(heads))
    return path


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    classifier(ref.tiny_llama(1), 2).save_pretrained(tmp_path / "reward_model")
    return tmp_path / "reward_model"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    ref.tiny_llama(1).save_pretrained(tmp_path / "policy")
    return add_head(tmp_path / "policy", random_head(3, HIDDEN))


def test_export_of_another_kind(world: World, fails: Fails, tmp_path: Path, reward_model: Path) -> None:
    output = f"output={tmp_path / 'new'}"
    plain = nemo_checkpoint(tmp_path / "plain", world.student)
    rewards = {"lm_head": False, "reward_head": True, "reward_model": True}
    judge = nemo_checkpoint(tmp_path / "judge", reward_model, **rewards)
    message = fails("export-hf", f"checkpoint={plain}", output, "kind=rewards")
    assert message == "kind=rewards is none of auto, causal_lm, reward_model"
    message = fails("export-hf", f"checkpoint={plain}", output, "kind=reward_model")
    assert message.startswith(f"kind=reward_model: {plain} has no reward head: ")
    message = fails("export-hf", f"checkpoint={judge}", output, "kind=causal_lm")
    assert message.startswith(f"kind=causal_lm: {judge} is a reward model without an output layer")
    both = nemo_checkpoint(tmp_path / "both", reward_model, **rewards | {"lm_head": True})
    message = fails("export-hf", f"checkpoint={both}", output, "kind=causal_lm")
    assert message == f"kind=causal_lm: {both}/context/hf/config.json is a sequence-classification model's"
    assert not (tmp_path / "new").exists()


def test_import_of_several_labels(fails: Fails, tmp_path: Path, reward_model: Path) -> None:
    entries = json.loads((reward_model / "config.json").read_text())
    for labels in ({"id2label": {"0": "a", "1": "b", "2": "c"}}, {"num_labels": 3}):
        changed = {name: entry for name, entry in entries.items() if not name.endswith(("2label", "2id"))} | labels
        (reward_model / "config.json").write_text(json.dumps(changed))
        message = fails("import-hf", f"source={reward_model}", f"output={tmp_path / 'new'}")
        assert message == "source: a classifier with 3 labels: a reward model has num_labels=1"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"score.weight": torch.ones(1, HIDDEN)},
            "holds score.weight: a reward head is one tensor `weight` [1, 32] of floats",
        ),
        ({"weight": torch.ones(1, HIDDEN), "bias": torch.ones(1)}, "holds bias, weight: a reward head is one tensor"),
        ({}, "holds nothing: a reward head is one tensor `weight` [1, 32] of floats"),
        ({"weight": torch.ones(1, HIDDEN + 1)}, "holds `weight` [1, 33] of float32: a reward head is one tensor"),
        ({"weight": torch.ones(HIDDEN)}, "holds `weight` [32] of float32: a reward head is one tensor"),
        ({"weight": torch.ones(1, HIDDEN).int()}, "holds `weight` [1, 32] of int32: a reward head is one tensor"),
        ({"weight": torch.full((1, HIDDEN), torch.inf)}, "holds `weight` with a value that is not finite"),
        (b"no tensors", "cannot be read as safetensors: "),
        (b"", "cannot be read as safetensors: "),
    ],
)
def test_a_file_that_is_no_reward_head(fails: Fails, tmp_path: Path, policy: Path, tensors: Any, said: str) -> None:
    file = policy / "reward_head.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    else:
        save_file(tensors, file)
    message = fails("import-hf", f"source={policy}", f"output={tmp_path / 'new'}")
    assert message.startswith(f"source: {file} {said}")
    assert message.count("of floats") <= 1
    assert not (tmp_path / "new").exists()


def test_two_reward_heads(fails: Fails, tmp_path: Path, reward_model: Path) -> None:
    add_head(reward_model, random_head(3, HIDDEN))
    message = fails("import-hf", f"source={reward_model}", f"output={tmp_path / 'new'}")
    assert message.startswith(f"source: {reward_model} has two reward heads: its score.weight and reward_head.safe")


def change_weights(folder: Path, others: dict[str, torch.Tensor], without: str = "") -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in tensors.items() if name != without}
    save_file(kept | others, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """What is said of a folder's weights, and no other line."""

    def refuse(folder: Path) -> str:
        capfd.readouterr()
        with pytest.raises(UserError) as error:
            read_model(Checkpoint("hf", folder, folder))
        assert capfd.readouterr().err == ""
        return str(error.value)

    return refuse


def test_weights_that_are_not_there(reward_model: Path, policy: Path, refusal: Callable[[Path], str]) -> None:
    change_weights(reward_model, {}, without="score.weight")
    lacks = "lacks score.weight, a weight of LlamaForSequenceClassification (missing: 1)"
    assert refusal(reward_model) == f"source: {reward_model} {lacks}"
    change_weights(policy, {}, without="lm_head.weight")
    assert refusal(policy) == f"source: {policy} lacks lm_head.weight, a weight of LlamaForCausalLM (missing: 1)"
    (policy / "model.safetensors").unlink()  # the head alone is left
    assert refusal(policy).startswith(f"source: the weights in {policy} cannot be read: ")


def test_weights_of_other_sizes(reward_model: Path, policy: Path, refusal: Callable[[Path], str]) -> None:
    change_weights(reward_model, {"score.weight": torch.ones(2, HIDDEN)})
    said = "score.weight has not the size of LlamaForSequenceClassification's with its config.json"
    assert refusal(reward_model) == f"source: {reward_model}: {said}"
    change_weights(policy, {"model.norm.weight": torch.ones(HIDDEN + 1)})
    assert refusal(policy).startswith(f"source: {policy}: model.norm.weight has not the size of LlamaForCausalLM's")


def test_weights_without_a_use(policy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Imported without them, as ever; but not in silence."""
    change_weights(
        policy, {"v_head.weight": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    )
    read_model(Checkpoint("hf", policy, policy))
    warning = f"warning: {policy}: LlamaForCausalLM has no v_head.weight (unused weights: 1)\n"
    assert capfd.readouterr().err == warning


def test_damaged_weights(reward_model: Path, refusal: Callable[[Path], str]) -> None:
    whole = (reward_model / "model.safetensors").read_bytes()
    (reward_model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refusal(reward_model).startswith(f"source: the weights in {reward_model} cannot be read: ")
