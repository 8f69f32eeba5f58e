"""Reward heads beside a language model: imported, trained or dropped, and exported in either form."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from conversions import ONE, TP2PP2, UNTOUCHING, assert_same_weights, export, llama3, make_source, other_files
from conversions import read_weights as read_hf
from rank_pool import Layout, RankPool
from reward_models import (
    VOCAB,
    add_head,
    as_item,
    assert_loads_as_reward_model,
    classifier,
    hf_rewards,
    make_reward_model,
    random_head,
    random_texts,
)
from safetensors import safe_open
from test_interrupted_conversions import cached_imports
from test_reward_models import TOLERANCE, export_as, provenance, rewards_of
from training import import_checkpoint, make_items, run_training
from transformers import AutoModelForCausalLM, PreTrainedModel

HEAD = "reward_head.safetensors"
TEXTS = random_texts(9, 10)
POLICIES: dict[str, PreTrainedModel] = {
    "llama fp32": ref.tiny_llama(51, vocab=VOCAB),
    "llama bf16 tied": llama3(52, vocab=VOCAB).bfloat16(),
    "mistral bf16": ref.tiny_mistral(53, vocab=VOCAB).bfloat16(),
}


@pytest.fixture(scope="module")
def policies(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each policy's Hugging Face folder with a head beside it, and its NeMo checkpoint."""
    made = {}
    for seed, (name, model) in enumerate(POLICIES.items()):
        place = tmp_path_factory.mktemp(name.replace(" ", "_"))
        source = add_head(make_source(place / "hf", model), random_head(seed, model.config.hidden_size))
        pool.run(ONE, import_checkpoint, str(source), str(place / "nemo"))
        made[name] = source, place / "nemo"
    return made


@torch.no_grad()
def policy_rewards(folder: Path) -> np.ndarray:
    """Of TEXTS, with transformers' base model and the head beside it."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    weight = read_hf(folder)["weight"]
    states = [model.model(torch.tensor([prompt + response])).last_hidden_state[0, -1] for prompt, response in TEXTS]
    return (torch.stack(states) @ weight[0]).numpy()


@pytest.mark.parametrize("name", POLICIES)
def test_a_policys_head_is_imported_and_exported(
    pool: RankPool, policies: dict[str, tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    source, checkpoint = policies[name]
    assert provenance(checkpoint) == {"lm_head": True, "reward_head": True, "reward_model": False}
    got = rewards_of(pool, TP2PP2, checkpoint, [[as_item(text) for text in TEXTS]])[0]
    assert np.abs(got - policy_rewards(source)).max() <= TOLERANCE
    exported = export(pool, checkpoint, tmp_path / "exported")
    assert_same_weights(exported, source)
    assert other_files(exported) == other_files(source)
    index = "model.safetensors.index.json"  # keeps loaders that read every *.safetensors away from the head
    assert sorted(f.name for f in exported.glob("*.safetensors*")) == ["model.safetensors", index, HEAD]
    with safe_open(exported / "model.safetensors", framework="pt") as stored:
        weights = dict.fromkeys(stored.keys(), "model.safetensors")
    assert json.loads((exported / index).read_text())["weight_map"] == weights
    assert read_hf(exported)["weight"].dtype == torch.float32
    _, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_exported_as_a_reward_model(
    pool: RankPool, policies: dict[str, tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    source, checkpoint = policies[name]
    pool.run(ONE, export_as, str(checkpoint), str(tmp_path / "exported"), "reward_model")
    model = assert_loads_as_reward_model(tmp_path / "exported")
    assert {weight.dtype for weight in model.state_dict().values()} == {POLICIES[name].dtype}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "exported"))
    family = "Mistral" if "mistral" in name else "Llama"
    changed = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert after == before | changed | {"architectures": [f"{family}ForSequenceClassification"]}
    assert list(after)[: len(before)] == list(before)
    others = [other_files(folder) for folder in (source, tmp_path / "exported")]
    assert [files.pop("config.json") for files in others]
    assert others[0] == others[1]
    expected, theirs = read_hf(source), read_hf(tmp_path / "exported")
    head = expected.pop("weight").to(POLICIES[name].dtype)
    expected.pop("lm_head.weight", None)
    assert sorted(theirs) == sorted([*expected, "score.weight"])
    assert all(torch.equal(theirs[key], weight) for key, weight in [*expected.items(), ("score.weight", head)])
    if name == "llama fp32":
        assert np.abs(hf_rewards(tmp_path / "exported", TEXTS) - policy_rewards(source)).max() <= TOLERANCE


def train(
    pool: RankPool, layout: Layout, output: Path, algorithm: str, student: Path, *options: str, **more: Any
) -> Path:
    items = make_items(ref.random_pairs(33, 4, VOCAB))
    run_training(pool, layout, output, algorithm=algorithm, student=student, items=items, options=[*options], **more)
    return output


TRAINED = [
    ("llama fp32", Layout(tp=2, sp=True), "fp32", "0.01"),
    ("llama bf16 tied", TP2PP2, "fp32", "0.01"),
    ("mistral bf16", Layout(tp=2), "bf16", "0"),
]


@pytest.mark.parametrize(("name", "layout", "precision", "alpha_sft"), TRAINED)
def test_a_trained_reward_model_is_exported_as_one(
    pool: RankPool, tmp_path: Path, name: str, layout: Layout, precision: str, alpha_sft: str
) -> None:
    """From a plain language model, whose head the run draws."""
    source = make_source(tmp_path / "hf", POLICIES[name])
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    options = [f"trainer.precision={precision}", f"algorithm.alpha_sft={alpha_sft}", "optim.lr=1e-2"]
    run = train(pool, layout, tmp_path / "run", "reward", tmp_path / "nemo", *options)
    has_lm_head = alpha_sft != "0"
    assert provenance(run / "checkpoints/step-00000001") == {
        "lm_head": has_lm_head,
        "reward_head": True,
        "reward_model": True,
    }
    exported = export(pool, run, tmp_path / "exported")
    model = assert_loads_as_reward_model(exported)
    assert model.score.weight.abs().max() > 0
    got = rewards_of(pool, ONE, run, [[as_item(text) for text in TEXTS]])[0]
    tolerance = TOLERANCE if POLICIES[name].dtype == torch.float32 else 0.05  # exports are in the source's dtype
    assert np.abs(hf_rewards(exported, TEXTS) - got).max() <= tolerance
    if has_lm_head:
        pool.run(ONE, export_as, str(run), str(tmp_path / "causal"), "causal_lm")
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "causal", output_loading_info=True)
        assert not info["missing_keys"] + info["unexpected_keys"]
        assert np.abs(policy_rewards(tmp_path / "causal") - got).max() <= tolerance
        assert other_files(tmp_path / "causal") == other_files(source)


def test_a_reward_model_that_training_leaves_alone_comes_back(pool: RankPool, tmp_path: Path) -> None:
    source = make_reward_model(tmp_path / "hf", classifier(ref.tiny_llama(54, vocab=VOCAB), 6))
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    options = [*UNTOUCHING, "algorithm.alpha_sft=0"]
    run = train(pool, TP2PP2, tmp_path / "run", "reward", tmp_path / "nemo", *options)
    exported = export(pool, run, tmp_path / "exported")
    assert_same_weights(exported, source)
    assert other_files(exported) == other_files(source)


def test_training_without_rewards_drops_the_head(
    pool: RankPool, policies: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, checkpoint = policies["llama fp32"]
    frozen = {"reference": checkpoint}
    run = train(pool, Layout(tp=2), tmp_path / "run", "dpo", checkpoint, *UNTOUCHING, frozen=frozen)
    heads = {"lm_head": True, "reward_head": False, "reward_model": False}
    assert provenance(run / "checkpoints/step-00000001") == heads
    exported = export(pool, run, tmp_path / "exported")
    assert not (exported / HEAD).exists()
    bare = tmp_path / "bare"
    shutil.copytree(source, bare)
    (bare / HEAD).unlink()
    assert_same_weights(exported, bare)
    assert other_files(exported) == other_files(bare)


def test_another_head_is_another_import(pool: RankPool, policies: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", str(tmp_path / "cache")
    shutil.copytree(policies["llama fp32"][0], folder)
    first = pool.run(ONE, cached_imports, [str(folder)], cache)[0]
    assert pool.run(ONE, cached_imports, [str(folder)], cache)[0] == first
    add_head(folder, random_head(99, 32))
    second = pool.run(ONE, cached_imports, [str(folder)], cache)[0]
    (folder / HEAD).unlink()
    third = pool.run(ONE, cached_imports, [str(folder)], cache)[0]
    assert len({*first, *second, *third}) == 3
    assert [provenance(Path(path))["reward_head"] for path in (*first, *second, *third)] == [True, True, False]
    rewards = [rewards_of(pool, ONE, Path(path), [[as_item(TEXTS[0])]])[0] for path in (*first, *second)]
    assert abs(rewards[0] - rewards[1]).item() > 1e-3


def refused_task(source: str, output: str) -> str:
    """Task: the line with which an import refuses its source."""
    from nemo_tvkd.errors import UserError

    try:
        import_checkpoint(source, output)
    except UserError as error:
        return str(error)
    return ""


def refused_automatically(path: str, cache: str) -> str:
    """Task: with which line an import for `oracle.path` fails, if its process says this."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.errors import UserError
    from nemo_tvkd.models import conversion as checkpoints

    def refuse(*arguments: Any) -> None:
        raise UserError(f"source: {path} lacks score.weight")

    original = checkpoints._import_in_subprocess, checkpoints.import_folder
    checkpoints._import_in_subprocess = refuse  # type: ignore[assignment]
    checkpoints.import_folder = lambda: Path(cache)
    try:
        checkpoints.as_nemo({"oracle.path": (find_checkpoint(path, "oracle.path"), "")})
    except UserError as error:
        return str(error)
    finally:
        checkpoints._import_in_subprocess, checkpoints.import_folder = original
    return ""


def test_an_automatic_import_names_the_key(
    pool: RankPool, policies: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source = policies["llama fp32"][0]
    message = pool.run(ONE, refused_automatically, str(source), str(tmp_path))[0]
    assert message == f"oracle.path: {source} lacks score.weight"


def test_an_import_refuses_what_transformers_would_make_up(pool: RankPool, tmp_path: Path) -> None:
    model = ref.tiny_llama(55, vocab=VOCAB)
    headless = make_reward_model(tmp_path / "hf", classifier(model, 7))
    model.save_pretrained(tmp_path / "causal")
    shutil.copy2(tmp_path / "causal/model.safetensors", headless)
    message = pool.run(ONE, refused_task, str(headless), str(tmp_path / "nemo"))[0]
    lacks = "lacks score.weight, a weight of LlamaForSequenceClassification (missing: 1)"
    assert message == f"source: {headless} {lacks}"
    assert not (tmp_path / "nemo").exists()
    wrong = add_head(make_source(tmp_path / "wrong", model), torch.zeros(1, 31))
    message = pool.run(ONE, refused_task, str(wrong), str(tmp_path / "nemo"))[0]
    assert message.startswith(f"source: {wrong / HEAD} holds `weight` [1, 31]")
    assert not (tmp_path / "nemo").exists()
