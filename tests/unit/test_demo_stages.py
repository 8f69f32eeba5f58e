"""The demos' commands are ones that the command line takes."""

from pathlib import Path
from typing import Any

import demo
import demo_drdo
import demo_judge
import noise_robustness
import pytest
from demo_stages import Stage

from nemo_tvkd.config.compose import compose

CHAINS = {
    "tvkd": (demo.stages, ["train"] * 3 + ["score"] + ["train"] * 2 + ["export-hf"] * 4),
    "drdo": (demo_drdo.stages, ["train"] * 3 + ["score", "train"] + ["export-hf"] * 3),
}


def composed(stage: Stage) -> Any:
    command, *overrides = stage.arguments
    return compose(command, overrides)


@pytest.mark.parametrize("name", CHAINS)
def test_every_stage_composes(name: str, tmp_path: Path) -> None:
    make, commands = CHAINS[name]
    stages = make(tmp_path)
    assert [stage.arguments[0] for stage in stages] == commands
    for stage in stages:
        config = composed(stage)
        if stage.arguments[0] == "train":
            assert config.parallel.tensor_model_parallel_size == config.parallel.pipeline_model_parallel_size == 2
            assert stage.output.name == f"step-{config.trainer.max_steps:08d}"


def test_the_demos_share_their_first_runs(tmp_path: Path) -> None:
    assert demo.stages(tmp_path)[:2] == demo_drdo.stages(tmp_path)[:2]


def test_the_table_holds_every_export() -> None:
    rows = [{"model": name, "accuracy": 0.5, "margin": 1.0, "answer_reward": 2.0} for name in demo.EXPORTED.values()]
    assert len(demo_judge.table(rows).splitlines()) == 1 + len(demo.EXPORTED)


def test_students_of_the_noise_experiment_differ_in_their_method_alone(tmp_path: Path) -> None:
    cell = noise_robustness.Cell(tmp_path, 0.2, 1)
    stages = {stage.title: stage for stage in cell.stages()}
    configs = {title: composed(stage) for title, stage in stages.items()}
    students = [configs[name] for name in ("dpo", "edpo", "drdo", "edpo_true", "drdo_true")]
    for config in (*students, configs["oracle"]):
        assert (config.data.label_noise, config.data.label_noise_seed, config.trainer.seed) == (0.2, 1, 1)
    focal = configs["focal"]
    assert focal.data.train.endswith("pairs_equal.jsonl")
    assert {**focal.data, "train": ""} == {**students[0].data, "train": ""}
    for config in students:
        assert config.data == students[0].data
        assert config.optim == students[0].optim
        assert config.student == students[0].student
        assert {**config.trainer, "output_dir": ""} == {**students[0].trainer, "output_dir": ""}
    assert [config.oracle.mode for config in students[1:]] == ["cached", "cached", "columns", "columns"]
    assert "label_noise" not in configs["rewards"].data  # what an oracle says of a response has no label
    for name in ("oracle", "dpo", "drdo_true"):
        assert stages[name].output.name == f"step-{configs[name].trainer.max_steps:08d}"
        assert stages[f"evaluation of {name}"].output == cell.folder / f"{name}.json"
