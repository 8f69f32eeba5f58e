"""Every recipe at recipe_scale=tiny, with its real tokenizers: its models shard, and its training stage makes a step.

The scores are those of the recipe's own score stage; the models before it are the random ones of the rehearsal.
"""

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from chat_templates import file_of
from rank_pool import Layout, RankPool
from reward_models import add_head, random_head

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.cluster.recipe import Submission, load_recipe
from nemo_tvkd.cluster.tiny import HEAD_DIM, HEADS, make_models
from nemo_tvkd.commands.score import ScoringJob, prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.prepare.training import Prepared, prepare_training

RECIPES = {
    "tvkd-llama-8b-1b": (Layout(tp=2), Layout(tp=2)),
    "tvkd-llama-8b-3b": (Layout(tp=2), Layout(tp=2, pp=2, sp=True)),
    "tvkd-mistral-7b-danube-500m": (Layout(pp=2), Layout(pp=2, dp=2)),
    "tvkd-mistral-7b-llama-1b": (Layout(tp=2), Layout(tp=2, sp=True)),
    "drdo-llama-8b-1b": (Layout(tp=2), Layout(tp=2, pp=2)),
}
"""Recipe -> layout of the score and of the training stage: its own cut to four ranks, and pipelines."""
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {n} plus {n}, my friend?"}],
        "chosen": [{"role": "assistant", "content": f"It is {2 * n}, of course: é, 你好."}],
        "rejected": [{"role": "assistant", "content": "That is a good question!" + " Well..." * n}],
    }
    for n in range(4)
]


def tokenizer_of(architecture: str) -> str:
    """As published, from PyPI's packages."""
    if architecture.startswith("llama"):
        return file_of("llama_models", "llama3", "tokenizer.model")
    return file_of("mistral_common", "data", "tokenizer.model.v1")


def rehearsal(name: str, folder: Path) -> Submission:
    """A recipe's rehearsal over ROWS; random models take the place of the stages that would train them."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [f"recipe={name}", "cluster=local", "recipe_scale=tiny", f"run_dir={folder}"]
    recipe = load_recipe(words).config.recipe
    words += [f"recipe.datasets.{recipe.dataset}.{key}={rows}" for key in ("train", "validation")]
    words += [f"recipe.models.{role}.tokenizer={tokenizer_of(m.architecture)}" for role, m in recipe.models.items()]
    submission = load_recipe(words)
    make_models(submission)
    tvkd = "teacher" in recipe.models
    if not tvkd:
        add_head(folder / "tiny" / "oracle", random_head(1, HEADS * HEAD_DIM))
    words += [f"student_sft={folder}/tiny/student", "train.trainer.global_batch_size=4", "train.trainer.max_steps=1"]
    words += [f"teacher_dpo={folder}/tiny/teacher" if tvkd else f"oracle={folder}/tiny/oracle"]
    return load_recipe(words)


def command(submission: Submission, name: str, layout: Layout, role: str) -> Any:
    """A stage's configuration at another layout, with the dialogue that its model would have from its own training."""
    stage, model = submission.stage(name, ""), submission.config.recipe.models[role]
    dialogue = [f"data.{key}='{model[key]}'" for key in ("chat_template", "end_token", "pad_token")]
    fp32 = "score.precision=fp32" if name == "score" else "trainer.precision=fp32"
    return compose(stage.command, [*stage.overrides, *layout.overrides(), *dialogue, fp32])


def import_task(checkpoint: Checkpoint, tokenizer: str) -> None:
    """Task of one rank: what `as_nemo` starts a process for, with ten seconds of imports; it is found there later."""
    from nemo_tvkd.models import conversion

    with patch.object(conversion, "_import_in_subprocess", conversion.import_hf):
        conversion.as_nemo({"model": (checkpoint, tokenizer)})


def score_task(config: Any, job: ScoringJob) -> None:
    """Task: `score` as the command's ranks run it."""
    from nemo_tvkd.commands.score import score
    from nemo_tvkd.models.conversion import as_nemo

    assert job.checkpoint is not None
    score(config, job, as_nemo({"score.model": (job.checkpoint, config.score.tokenizer)})["score.model"])


def train_task(config: Any, prepared: Prepared) -> None:
    """Task: `train` as the command's ranks run it."""
    from nemo_tvkd.commands import train

    train._use_nemo_checkpoints(config, prepared)
    train.fit(config, prepared)


@pytest.mark.parametrize("name", RECIPES)
def test_the_training_stage_makes_a_step(
    pool: RankPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    submission = rehearsal(name, tmp_path)
    states = {stage.name: stage.state for stage in submission.stages}
    assert [n for n, state in states.items() if state == "submitted"][:2] == ["score", "train"]
    tvkd = "teacher" in submission.config.recipe.models
    judge = "teacher" if tvkd else "oracle"
    scoring, training = RECIPES[name]

    config = command(submission, "score", scoring, judge)
    job = prepare_scoring(config)
    assert job.checkpoint is not None
    pool.run(Layout(), import_task, job.checkpoint, config.score.tokenizer)
    pool.run(scoring, score_task, config, job)
    assert (tmp_path / "score" / "manifest.json").is_file()

    config = command(submission, "train", training, "student")
    assert config[judge].mode == "cached"
    if "mistral-7b-llama" in name:  # a trained teacher carries its own
        config.teacher.chat_template = submission.config.recipe.models.teacher.chat_template
    prepared = prepare_training(config)
    pool.run(Layout(), import_task, prepared.student, config.student.tokenizer)
    pool.run(training, train_task, config, prepared)
    first, *more = map(json.loads, (tmp_path / "train" / "metrics.jsonl").read_text().splitlines())
    assert first["step"] == 1
    assert first["pairs_seen"] == 4
    for key in ("loss", "rewards/accuracies", "rewards/margins", "grad_norm", "lr"):
        assert math.isfinite(first[key]), key
    assert first["grad_norm"] > 0
    assert any(math.isfinite(row.get("eval_loss", math.nan)) for row in more)
    assert json.loads((tmp_path / "train" / "finished.json").read_text()) == {"step": 1}
