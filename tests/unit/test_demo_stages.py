"""The demo's commands are ones that the command line takes."""

from pathlib import Path

import demo

from nemo_tvkd.compose import compose


def test_every_stage_composes(tmp_path: Path) -> None:
    stages = demo.stages(tmp_path)
    assert [stage.arguments[0] for stage in stages] == ["train"] * 3 + ["score"] + ["train"] * 2 + ["export-hf"] * 4
    for stage in stages:
        command, *overrides = stage.arguments
        config = compose(command, overrides)
        if command == "train":
            assert config.parallel.tensor_model_parallel_size == config.parallel.pipeline_model_parallel_size == 2
            assert stage.output.name == f"step-{config.trainer.max_steps:08d}"


def test_the_table_holds_every_export() -> None:
    rows = [{"model": name, "accuracy": 0.5, "margin": 1.0, "answer_reward": 2.0} for name in demo.EXPORTED.values()]
    assert len(demo.table(rows).splitlines()) == 1 + len(demo.EXPORTED)
