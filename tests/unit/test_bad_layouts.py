"""Layouts that do not divide a model, batches that do not divide the data, launchers that start other ranks."""

from pathlib import Path

import pytest
from bad_input import CHECKPOINT_KEYS, STARTED, Fails, World

from nemo_tvkd.__main__ import main

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        ({}, f"{TP}=3", f"{TP}=3 does not divide the 4 attention heads of "),
        ({}, f"{TP}=4", f"{TP}=4 does not divide the 2 key/value heads of "),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            f"{TP}=3",
            f"{TP}=3 does not divide the 1024 padded vocabulary entries of ",
        ),
        ({"intermediate_size": 65}, f"{TP}=2", f"{TP}=2 does not divide the 65 feed-forward columns of "),
        ({"num_hidden_layers": 3}, f"{PP}=2", f"{PP}=2 does not divide the 3 layers of "),
    ],
)
@pytest.mark.parametrize("key", ["student.path", "score.model", "checkpoint"])
def test_layouts(world: World, fails: Fails, key: str, config: dict, layout: str, message: str) -> None:
    path = world.variant("layout-" + "-".join(config), **config)
    assert fails(*getattr(world, CHECKPOINT_KEYS[key])(), layout, f"{key}={path}") == message + key


@pytest.mark.parametrize("key", ["teacher.path", "reference"])
def test_layouts_of_the_other_model(world: World, fails: Fails, key: str) -> None:
    """Where the student fits, it is the teacher that is named."""
    odd = world.variant("odd", num_hidden_layers=3)
    assert fails(*getattr(world, CHECKPOINT_KEYS[key])(), f"{PP}=2", f"{key}={odd}") == (
        f"{PP}=2 does not divide the 3 layers of {key}"
    )


def test_batches(world: World, fails: Fails) -> None:
    two = "parallel.data_parallel_size=2"
    message = fails(*world.online(), two, "trainer.global_batch_size=4", "trainer.micro_batch_size=4")
    assert message == (
        "trainer.global_batch_size=4 is not divisible by trainer.micro_batch_size=4 x 2 data-parallel replicas"
    )
    message = fails(*world.online(), two, "trainer.global_batch_size=3")
    assert message.startswith("trainer.global_batch_size=3 is not divisible by trainer.micro_batch_size=1 x 2 ")
    assert main([*world.online(), two, "trainer.global_batch_size=4", "trainer.micro_batch_size=2"]) == STARTED
    message = fails(*world.online(), "trainer.global_batch_size=64")
    assert message.startswith("trainer.global_batch_size=64 is more than the 4 rows of 1 epochs")
    assert main([*world.online(), "trainer.global_batch_size=8", "trainer.max_epochs=2"]) == STARTED


def test_launcher_that_does_not_fit(world: World, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for command in (world.online(), world.score(), world.evaluate()):
        message = fails(*command, f"{TP}=2")
        assert message.startswith("3 ranks were started but parallel.tensor_model_parallel_size x ")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main([*world.online(), f"{TP}=2"]) == STARTED
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert fails(*world.online(), f"{TP}=2").startswith("3 ranks were started but ")


def test_used_output_directory(world: World, fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    command = [*world.online(), f"trainer.output_dir={tmp_path}"]
    message = fails(*command, "trainer.resume=never")
    assert message.startswith(f"trainer.output_dir: {tmp_path} holds a run; remove it, or use trainer.resume=auto")
    assert main(command) == STARTED


def test_resuming_another_run(world: World, fails: Fails, tmp_path: Path) -> None:
    """A checkpoint holds optimizer and schedule; continuing it with other settings would be neither run."""
    from omegaconf import OmegaConf

    from nemo_tvkd.config.compose import compose

    command = [str(word) for word in (*world.online(), f"trainer.output_dir={tmp_path}")]
    OmegaConf.save(compose("train", command[1:]), tmp_path / "config.yaml")
    (tmp_path / "checkpoints" / "step-00000001" / "weights").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "weights" / "metadata.json").touch()
    for change, key in (
        ("optim.lr=0.5", "optim.lr"),
        ("trainer.seed=7", "trainer.seed"),
        ("data.shuffle=false", "data.shuffle"),
        ("algorithm.alpha=0.25", "algorithm.alpha"),
    ):
        assert fails(*command, change).startswith(f"trainer.output_dir: {tmp_path} holds a run with {key}=")
    for change in ("trainer.max_steps=9", "trainer.micro_batch_size=2", "trainer.log_interval=3"):
        assert main([*command, change]) == STARTED
