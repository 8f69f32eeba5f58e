"""DRDO by the command line: an oracle, its scores, a student under label noise, an evaluation by strength."""

import json
import os
from pathlib import Path

import pytest
from demo_model import make_demo_model
from forked_commands import run_command


def rows_of(file: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def test_the_pipeline_of_drdo(tmp_path: Path) -> None:
    make_demo_model(tmp_path, 32, hidden=32, layers=2, tie=True)
    data = f"data.train={tmp_path}/data/pairs_train.jsonl"
    heldout = f"data.validation={tmp_path}/data/pairs_heldout.jsonl"
    common = ["data.max_length=128"]
    train = [data, heldout, f"student.path={tmp_path}/model", "trainer.precision=fp32", "optim.lr=1e-3", *common]
    train += ["trainer.max_steps=3", "trainer.global_batch_size=8", "trainer.micro_batch_size=4"]
    cached = [f"oracle.path={tmp_path}/oracle", "oracle.mode=cached", f"oracle.scores={tmp_path}/rewards"]

    def run(command: str, *arguments: str) -> str:
        environment = {**os.environ, "NEMO_TVKD_CACHE": str(tmp_path / "imported"), "OMP_NUM_THREADS": "1"}
        done = run_command([command, *arguments], environment)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("train", "algorithm=reward", *train, f"trainer.output_dir={tmp_path}/oracle")
    said = run(
        *("score", f"score.model={tmp_path}/oracle", data, heldout, "score.what=[reward]", "score.precision=fp32"),
        *(f"score.output={tmp_path}/rewards", *common),
    )
    assert "40 pairs" in said
    noisy = ["data.label_noise=0.3", "oracle.normalize=zscore", "parallel.tensor_model_parallel_size=2"]
    said = run("train", "algorithm=drdo", *train, *cached, *noisy, f"trainer.output_dir={tmp_path}/drdo")
    record = json.loads((tmp_path / "drdo" / "label_noise.json").read_text())
    assert f"data.label_noise=0.3: {record['flipped']} of 32 training pairs are flipped" in said
    assert "oracle.normalize=zscore: rewards of the oracle are divided" in said
    rows = [json.loads(line) for line in (tmp_path / "drdo" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1].keys() >= {"eval_reward_distillation/mse", "eval_logps/accuracies", "eval_oracle/margins_std"}

    options = [heldout, "precision=fp32", "strength_bins=2", f"oracle.path={tmp_path}/oracle", *common]
    judged = run("evaluate", f"checkpoint={tmp_path}/drdo", f"output={tmp_path}/drdo.json", *options)
    assert "reward_head, by the strength of the preference" in judged
    result = json.loads((tmp_path / "drdo.json").read_text())
    assert sum(part["pairs"] for part in result["by_strength"]) == result["pairs"] == 8
    scored = {row["pair_id"]: row for file in (tmp_path / "rewards").glob("*.parquet") for row in rows_of(file)}
    assert len(scored) == 40
    margins = [row["chosen_reward"] - row["rejected_reward"] for row in list(scored.values())[32:]]
    assert result["oracle/margins"] == pytest.approx(sum(margins) / 8, rel=1e-5, abs=1e-7)  # the oracle then and now
