"""The recipes that are shipped, on every example cluster: the paper's settings, and layouts that fit the models.

Numbers are those of the issue and of the papers' facts, written here once more.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tvkd.cluster.recipe import Stage, Submission, load_recipe
from nemo_tvkd.config.compose import choices
from nemo_tvkd.files import package_folder

TVKD = {
    "tvkd-llama-8b-1b": ("llama-3.1-8b", "llama-3.2-1b"),
    "tvkd-llama-8b-3b": ("llama-3.1-8b", "llama-3.2-3b"),
    "tvkd-mistral-7b-danube-500m": ("mistral-7b", "danube3-500m"),
    "tvkd-mistral-7b-llama-1b": ("mistral-7b", "llama-3.2-1b"),
}
"""Recipe -> architectures of teacher and student."""
DRDO = {"drdo-llama-8b-1b": ("llama-3.1-8b", "llama-3.2-1b")}
PAIRS = TVKD | DRDO
CLUSTERS = {"example_pyxis": (8, "8x80gb"), "example_apptainer": (4, "4x64gb"), "example_bare": (8, "8x80gb")}
"""Cluster -> GPUs of a node, node type."""
TVKD_STAGES = ["teacher_sft", "teacher_dpo", "student_sft", "score", "train", "export", "evaluate", "benchmark"]
DRDO_STAGES = ["oracle_sft", "oracle", "student_sft", "score", "train", "export", "evaluate", "benchmark"]
TEACHERS = ("teacher_sft", "teacher_dpo", "oracle_sft", "oracle", "score")
TOKENS = {  # base models have neither a template nor these
    "llama-3.1-8b": ("llama3", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "mistral-7b": ("mistral", "</s>", "<unk>"),
}
TOKENS |= dict.fromkeys(("llama-3.2-1b", "llama-3.2-3b"), TOKENS["llama-3.1-8b"])
TOKENS["danube3-500m"] = TOKENS["mistral-7b"]


@dataclass
class Composed:
    submission: Submission
    configs: dict[str, Any]

    def stage(self, name: str) -> Stage:
        return self.submission.stage(name, "")

    def of(self, stage: str, key: str) -> Any:
        return OmegaConf.select(self.configs[stage], key, throw_on_missing=True)


def composed(*arguments: str) -> Composed:
    submission = load_recipe(arguments)
    return Composed(submission, {stage.name: stage.config() for stage in submission.stages})


@pytest.fixture(scope="module")
def recipes() -> dict[tuple[str, str], Composed]:
    """(recipe, cluster) -> it, with the configuration of each stage's own command."""
    names = ((recipe, cluster) for recipe in PAIRS for cluster in ("example_pyxis", "example_apptainer"))
    return {(r, c): composed(f"recipe={r}", f"cluster={c}", "run_dir=/runs/x") for r, c in names}


@pytest.fixture
def recipe(recipes: dict[tuple[str, str], Composed], request: pytest.FixtureRequest) -> Composed:
    return recipes[request.param]


def on(names: Any, *clusters: str) -> Any:
    pairs = [(name, cluster) for name in names for cluster in clusters or ("example_pyxis", "example_apptainer")]
    return pytest.mark.parametrize("recipe", pairs, ids=["-on-".join(pair) for pair in pairs], indirect=True)


def shape(architecture: str) -> dict[str, Any]:
    return json.loads((package_folder("conf") / "model" / f"{architecture}.json").read_text())


def test_these_are_all_recipes_and_clusters() -> None:
    assert set(choices("recipe")) == {*PAIRS, "train"}
    assert set(choices("cluster")) == {*CLUSTERS, "local"}


@pytest.mark.parametrize("cluster", [*CLUSTERS, "local"])
@pytest.mark.parametrize("name", ["drdo-llama-8b-1b", "train"])
def test_a_recipe_composes_with_every_cluster(name: str, cluster: str) -> None:
    stages = load_recipe([f"recipe={name}", f"cluster={cluster}"]).stages
    gpus, node_type = CLUSTERS.get(cluster, (8, "8x80gb"))
    for stage in stages:
        assert (stage.cluster.name, stage.cluster.gpus_per_node, stage.cluster.node_type) == (cluster, gpus, node_type)


@on(PAIRS)
def test_stages_come_after_what_they_read(recipe: Composed) -> None:
    stages = recipe.submission.stages
    names = [stage.name for stage in stages]
    expected = TVKD_STAGES if "teacher_sft" in names else DRDO_STAGES
    assert sorted(names) == sorted(expected)
    for place, stage in enumerate(stages):
        assert set(stage.after) <= set(names[:place]), stage.name
        assert stage.state == "submitted"
        assert stage.output == Path("/runs/x") / stage.name


@on(PAIRS, "example_pyxis")
def test_a_stage_is_told_to_read_what_those_before_it_write(recipe: Composed) -> None:
    tvkd = "teacher_sft" in recipe.configs
    first, second = ("teacher_sft", "teacher_dpo") if tvkd else ("oracle_sft", "oracle")
    judge = "teacher" if tvkd else "oracle"
    read = {
        second: {"student.path": first},
        "score": {"score.model": second},
        "train": {"student.path": "student_sft", f"{judge}.path": second, f"{judge}.scores": "score"},
        "export": {"checkpoint": "train"},
        "evaluate": {"checkpoint": "export"},
        "benchmark": {"checkpoint": "export"},
    }
    for stage, keys in read.items():
        assert set(recipe.stage(stage).after) == set(keys.values()), stage
        for key, other in keys.items():
            assert recipe.of(stage, key) == f"/runs/x/{other}", (stage, key)
    assert recipe.of("train", f"{judge}.mode") == "cached"
    written = {"train": "trainer.output_dir", "score": "score.output", "export": "output", "benchmark": "output"}
    for stage, key in written.items():
        assert recipe.of(stage, key) == f"/runs/x/{stage}"
    assert recipe.of("evaluate", "output") == "/runs/x/evaluate/preferences.json"


@on(TVKD)
def test_tvkd_has_the_papers_settings(recipe: Composed) -> None:
    for stage in ("teacher_sft", "student_sft"):
        assert recipe.of(stage, "algorithm.name") == "sft"
        assert recipe.of(stage, "data.train") == "HuggingFaceH4/deita-10k-v0-sft:train_sft"
        assert recipe.of(stage, "optim.lr") == 2e-5
        assert recipe.of(stage, "trainer.max_epochs") == 3
    expected = {
        "teacher_dpo": {"algorithm.name": "dpo", "trainer.max_epochs": 1},
        "train": {
            "algorithm.name": "tvkd",
            "algorithm.alpha": 0.7,
            "algorithm.shaping.gamma": 1.0,
            "trainer.max_epochs": 5,
            "optim.schedule": "cosine",
            "optim.warmup_ratio": 0.1,
            "trainer.seed": 42,
        },
    }
    for stage, keys in expected.items():
        keys |= {"optim.lr": 5e-7, "algorithm.beta": 0.01, "data.max_prompt_length": 1800}
        for key, value in keys.items():
            assert recipe.of(stage, key) == value, (stage, key)
    for stage in ("teacher_sft", "teacher_dpo", "student_sft", "train"):
        assert recipe.of(stage, "trainer.global_batch_size") == 64
        assert recipe.of(stage, "trainer.precision") == "bf16"
        assert recipe.of(stage, "trainer.max_steps") is None
    for stage in ("teacher_dpo", "score", "train"):
        assert recipe.of(stage, "data.train") == "argilla/dpo-mix-7k:train"


@on(PAIRS)
def test_lengths_agree_in_all_stages(recipe: Composed) -> None:
    """A store is bound to them."""
    for stage, config in recipe.configs.items():
        if "data" in config:
            assert config.data.max_length == 2048, stage
    trained = ("data.train", "data.validation", "data.max_length", "data.max_prompt_length")
    for key in trained:
        assert recipe.of("score", key) == recipe.of("train", key), key
    assert recipe.of("evaluate", "data.validation") == recipe.of("train", "data.validation")


@on(TVKD)
def test_the_teacher_is_scored_at_tau_beta(recipe: Composed) -> None:
    assert recipe.of("score", "score.what") == ["value"]
    assert recipe.of("score", "score.temperature") == recipe.of("train", "algorithm.beta") == 0.01
    assert recipe.of("train", "algorithm.shaping.temperature") in (None, 0.01)


@on(DRDO)
def test_drdo_trains_an_oracle_and_scores_its_rewards(recipe: Composed) -> None:
    methods = {"oracle_sft": "sft", "oracle": "reward", "student_sft": "sft", "train": "drdo"}
    assert {stage: recipe.of(stage, "algorithm.name") for stage in methods} == methods
    assert recipe.of("score", "score.what") == ["reward"]
    assert recipe.of("train", "algorithm.alpha") == 0.1
    assert recipe.of("train", "algorithm.gamma") == 2.0


def test_helpsteer2_is_the_second_data_set() -> None:
    other = composed("recipe=tvkd-llama-8b-1b", "cluster=example_pyxis", "recipe.dataset=helpsteer2")
    for stage in ("teacher_dpo", "score", "train"):
        assert "HelpSteer2" in other.of(stage, "data.train"), stage
        assert "HelpSteer2" in other.of(stage, "data.validation"), stage
    assert "HelpSteer2" in other.of("evaluate", "data.validation")
    assert "deita-10k" in other.of("student_sft", "data.train")


@on(PAIRS, "example_pyxis")
def test_models_are_the_pair_of_the_name_and_carry_a_template(recipe: Composed) -> None:
    name = recipe.submission.config.recipe.name
    judge = "oracle" if name in DRDO else "teacher"
    for role, architecture in zip((judge, "student"), PAIRS[name], strict=True):
        model = recipe.submission.config.recipe.models[role]
        assert model.architecture == architecture
        assert (model.chat_template, model.end_token, model.pad_token) == TOKENS[architecture]
        config = recipe.configs[f"{role}_sft"]
        assert config.student.path == model.path
        assert (config.data.chat_template, config.data.end_token, config.data.pad_token) == TOKENS[architecture]
    for stage in recipe.submission.stages:
        for key, model in stage.models.items():
            assert OmegaConf.select(recipe.configs[stage.name], key), (stage.name, key)
            teacher = stage.name in TEACHERS or key.startswith(judge)
            assert model.architecture == PAIRS[name][0 if teacher else 1], (stage.name, key)


@on(PAIRS)
def test_layouts_divide_batches_and_models(recipe: Composed) -> None:
    name = recipe.submission.config.recipe.name
    for stage in recipe.submission.stages:
        if stage.command not in ("train", "score", "evaluate"):
            assert (stage.nodes, stage.ranks_per_node) == (1, 1), stage.name
            continue
        assert stage.ranks_per_node == CLUSTERS[stage.cluster.name][0]
        parallel = recipe.configs[stage.name].parallel
        tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        replicas, left = divmod(stage.nodes * stage.ranks_per_node, tp * pp)
        assert left == 0, stage.name
        assert tp <= stage.ranks_per_node, "tensor parallelism stays inside a node"
        assert parallel.sequence_parallel is False or tp > 1
        model = shape(PAIRS[name][0 if stage.name in TEACHERS else 1])
        for number in (model["num_attention_heads"], model["num_key_value_heads"], model["intermediate_size"]):
            assert number % tp == 0, stage.name
        padded = (model["vocab_size"] + 127) // 128 * 128
        assert padded % tp == 0, stage.name
        assert model["num_hidden_layers"] % pp == 0, stage.name
        if stage.command == "train":
            trainer = recipe.configs[stage.name].trainer
            assert trainer.global_batch_size % (trainer.micro_batch_size * replicas) == 0, stage.name


@on(PAIRS)
def test_single_processes_have_shorter_limits_than_the_cluster(recipe: Composed) -> None:
    limits = {stage.name: stage.cluster.time for stage in recipe.submission.stages}
    assert limits["train"] == "24:00:00"
    assert limits["export"] == "02:00:00"


SOURCES = r"release|paper|TVKD|DRDO|this project's choice"
TUNED = (
    r"(optim\.\w+|algorithm\.[\w.]+|trainer\.(max_epochs|global_batch_size|seed)|score\.temperature|data\.max_length)"
)


def test_every_hyperparameter_has_a_source_in_a_comment() -> None:
    """On its line, or in one above it in the file that tells its number or name (", 3 epochs", "alpha and gamma")."""
    missing = []
    for file in sorted((package_folder("conf") / "recipe").glob("_*.yaml")):
        above = ""
        told: set[tuple[str, str]] = set()
        for number, line in enumerate(file.read_text().splitlines(), 1):
            text, _, comment = line.partition("  #")
            above += comment + "\n" if re.search(SOURCES, comment) else ""
            if not (found := re.match(rf"      {TUNED}: (\S+)", text)):
                continue
            key, value = found[1], found[3]
            if re.search(SOURCES, comment) or re.search(rf"\b({re.escape(value)}|{key.split('.')[-1]})\b", above):
                told.add((key, value))
            if (key, value) not in told:
                missing.append(f"{file.name}:{number}: {text.strip()}")
    assert not missing, "\n".join(missing)
