"""A run that was stopped between its last checkpoint and the validation after it makes up for that validation."""

import json
from pathlib import Path
from typing import Any

import pytest
import reference as ref
from rank_pool import Layout, RankPool
from training import VOCAB, make_items, run_training


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, pp=2), Layout(dp=2)], ids=lambda layout: layout.name)
def test_the_validation_that_is_owed_is_the_one_that_was_lost(
    pool: RankPool, models: Any, tmp_path: Path, layout: Layout
) -> None:
    run: dict[str, Any] = {
        "algorithm": "tvkd",
        "student": models.paths["student"],
        "items": make_items(ref.random_pairs(11, 8, VOCAB)),
        "frozen": {"teacher": models.paths["teacher"]},
        "steps": 2,
        "validation": make_items(ref.random_pairs(12, 6, VOCAB)),
    }
    whole = run_training(pool, layout, tmp_path, **run)
    assert [(row["step"], "eval_loss" in row) for row in whole] == [(1, False), (2, False), (2, True)]
    finished = tmp_path / "finished.json"
    assert json.loads(finished.read_text()) == {"step": 2}

    finished.unlink()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:-1]))
    again = run_training(pool, layout, tmp_path, **run)
    assert again == whole
    assert json.loads(finished.read_text()) == {"step": 2}


def test_a_validation_that_a_signal_left_out(pool: RankPool, models: Any, tmp_path: Path) -> None:
    """A run that is stopped at the step of a validation saves and ends; the next start validates before it goes on."""
    run: dict[str, Any] = {
        "algorithm": "tvkd",
        "student": models.paths["student"],
        "items": make_items(ref.random_pairs(11, 8, VOCAB)),
        "frozen": {"teacher": models.paths["teacher"]},
        "validation": make_items(ref.random_pairs(12, 6, VOCAB)),
    }
    layout, every = Layout(pp=2), ["trainer.val_interval=2", "optim.schedule=constant"]
    whole = run_training(pool, layout, tmp_path / "whole", options=every, **run, steps=4)
    assert [row["step"] for row in whole if "eval_loss" in row] == [2, 4]
    run_training(pool, layout, tmp_path / "stopped", options=every, **run, steps=2)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in whole[:2]))
    resumed = run_training(pool, layout, tmp_path / "stopped", options=every, **run, steps=4)
    for row in (*whole, *resumed):
        row.pop("tokens_per_second", None)
    assert resumed == whole
