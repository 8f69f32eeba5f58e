"""recipe_scale=tiny: the same families in tiny sizes, few steps, layouts of at most TP2 x PP2."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from recipe_folder import Folder
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.cluster.tiny import architecture, make_models, tiny_architecture
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder

pytestmark = pytest.mark.usefixtures("without_nemo")
ARCHITECTURES = ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "mistral-7b", "danube3-500m"]
SAME = [
    *("model_type", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings", "hidden_act"),
    *("max_position_embeddings", "sliding_window", "attention_bias", "mlp_bias", "architectures"),
]
"""What makes a family."""


def test_these_are_all_architectures() -> None:
    assert {file.stem for file in (package_folder("conf") / "model").glob("*.json")} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tiny_model_is_of_the_same_family(name: str) -> None:
    full = json.loads((package_folder("conf") / "model" / f"{name}.json").read_text())
    small = tiny_architecture(full, 1000)
    for key in SAME:
        assert small.get(key) == full.get(key), key
    assert set(small) >= set(full)
    assert small["vocab_size"] == 1000
    heads, groups = small["num_attention_heads"], small["num_key_value_heads"]
    assert 1 < groups < heads, "grouped queries, of more than one group"
    assert heads % groups == 0
    for number in (heads, groups, small["num_hidden_layers"], small["intermediate_size"], small["hidden_size"]):
        assert number % 2 == 0, "splits two ways"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
    embedding = model.get_input_embeddings().weight.numel()
    embeddings = embedding if full["tie_word_embeddings"] else 2 * embedding
    assert sum(p.numel() for p in model.parameters()) - embeddings < 5e6


@pytest.mark.parametrize("name", ["", "llama-9", "../recipe/train"])
def test_an_unknown_architecture_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"^recipe\.models\.student\.architecture=.*danube3-500m"):
        architecture(name, "recipe.models.student.architecture")


@pytest.mark.parametrize("name", ["tvkd-llama-8b-3b", "tvkd-mistral-7b-llama-1b", "drdo-llama-8b-1b"])
@pytest.mark.parametrize("cluster", ["example_pyxis", "example_apptainer"])
def test_every_stage_is_short_and_small(name: str, cluster: str) -> None:
    submission = load_recipe([f"recipe={name}", f"cluster={cluster}", "recipe_scale=tiny", "run_dir=/runs/t"])
    for stage in submission.stages:
        config = stage.config()
        check_values(config)
        if stage.command not in ("train", "score", "evaluate"):
            continue
        tp, pp = (config.parallel[f"{kind}_model_parallel_size"] for kind in ("tensor", "pipeline"))
        assert max(tp, pp) <= 2
        assert not config.parallel.sequence_parallel or tp > 1
        assert config.data.max_length <= 512
        if stage.command != "train":
            continue
        replicas, left = divmod(stage.nodes * stage.ranks_per_node, tp * pp)
        trainer = config.trainer
        assert left == 0
        assert trainer.max_steps <= 10
        assert 0 < trainer.save_interval < trainer.max_steps, "there is something to resume from"
        assert trainer.global_batch_size % (trainer.micro_batch_size * replicas) == 0


def test_the_rehearsal_reads_the_recipes_data_and_its_own_models() -> None:
    words = ["recipe=tvkd-llama-8b-1b", "cluster=example_pyxis", "run_dir=/runs/t"]
    full, tiny = load_recipe(words), load_recipe([*words, "recipe_scale=tiny"])
    assert [(s.name, s.after, s.command) for s in full.stages] == [(s.name, s.after, s.command) for s in tiny.stages]
    for role, stage in (("teacher", "teacher_sft"), ("student", "student_sft")):
        there, here = (chain.stage(stage, "").config() for chain in (full, tiny))
        assert here.student.path == f"/runs/t/tiny/{role}"
        assert tiny.config.recipe.models[role].tokenizer == there.student.path
        for key in ("train", "chat_template", "end_token", "pad_token"):
            assert here.data[key] == there.data[key], key
    score = [OmegaConf.to_container(chain.stage("score", "").config().score) for chain in (full, tiny)]
    for key in ("what", "temperature", "value_kind", "value_storage", "model"):
        assert score[0][key] == score[1][key], key


def test_batches_fit_the_nodes_of_a_stage_of_its_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    submission = folder.load("recipe_scale=tiny", "second.cluster.nodes=5")
    stage = submission.stage("second", "")
    assert stage.nodes * stage.ranks_per_node == 20
    assert stage.config().trainer.global_batch_size % 20 == 0


def test_a_typed_key_wins_over_the_rehearsals() -> None:
    words = ["recipe=tvkd-llama-8b-1b", "cluster=example_pyxis", "recipe_scale=tiny", "train.trainer.max_steps=7"]
    assert load_recipe(words).stage("train", "").config().trainer.max_steps == 7


def test_models_are_made_once_each_with_its_tokenizer(tmp_path: Path, mistral_file: str, capsys: Any) -> None:
    folder = Folder(tmp_path)
    folder.recipe["models"] = {
        "big": {"tokenizer": mistral_file, "architecture": "mistral-7b", "path": "mistralai/none"},
        "little": {"tokenizer": mistral_file, "architecture": "danube3-500m", "path": "h2oai/none"},
    }
    submission = folder.load("recipe_scale=tiny")
    make_models(submission)
    assert capsys.readouterr().out.count("random") == 2
    for role, architecture_name in (("big", "mistral-7b"), ("little", "danube3-500m")):
        path = folder.run_dir / "tiny" / role
        config = json.loads((path / "config.json").read_text())
        assert config["model_type"] == architecture(architecture_name, "")["model_type"]
        assert config["vocab_size"] == 32000
        assert load_tokenizer(str(path)).get_vocab() == load_tokenizer(mistral_file).get_vocab()
    assert submission.stage("first", "").config().student.path == str(folder.run_dir / "tiny" / "big")
    weights = {file: file.read_bytes() for file in folder.run_dir.rglob("*.safetensors")}
    assert len(weights) == 2
    assert not list((folder.run_dir / "tiny").glob(".*")), "nothing half-written"
    make_models(submission)
    assert capsys.readouterr().out == ""
    assert {file: file.read_bytes() for file in weights} == weights


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path, no_ranks: None) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(UserError, match=r"recipe\.models\.(big|little)\.tokenizer") as caught:
        make_models(folder.load("recipe_scale=tiny"))
    assert "\n" not in str(caught.value)
