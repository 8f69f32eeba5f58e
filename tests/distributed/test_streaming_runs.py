"""Runs that stream: the numbers of runs in memory, bit for bit, also where one goes on with what the other began."""

import json
from pathlib import Path
from typing import Any

import pytest
from rank_pool import Layout, RankPool
from streaming import STREAMING
from training import fit_prepared, import_checkpoint
from two_tokenizers import Setting

from nemo_tvkd.commands.score import prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.lazy import Lazy
from nemo_tvkd.prepare.training import prepare_training

LAYOUT = Layout(dp=2)
STEPS = 4
TIMES = ("time", "seconds", "per_second", "memory")


def score_task(config: Any, job: Any) -> None:
    """Task: the scoring that the parent prepared."""
    from nemo_tvkd.commands.score import score

    score(config, job, job.checkpoint)


def metrics(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


def test_metrics_are_those_of_memory(pool: RankPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted sources, a teacher's score store, flipped labels and a validation set; and scores, byte for byte."""
    monkeypatch.setenv("NEMO_TVKD_CACHE", str(tmp_path / "cache"))
    setting = Setting(tmp_path)
    student = tmp_path / "student_nemo"
    pool.run(Layout(), import_checkpoint, str(setting.student), str(student))
    lines = setting.two.pairs.read_text().splitlines(keepends=True)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("".join(lines[:3]))
    two.write_text("".join(lines[3:]))
    values = setting.store()

    def train(name: str, steps: int, *settings: str) -> list[dict[str, Any]]:
        options = [*LAYOUT.overrides(), f"student.path={student}", "data.label_noise=0.3", "trainer.precision=fp32"]
        options += [f"data.train=[{one}:0.7,{two}:0.3]", f"data.validation={setting.two.pairs}", "optim.lr=1e-3"]
        options += ["teacher.mode=cached", f"teacher.scores={values}", "algorithm.shaping.gamma=0.9"]
        options += ["trainer.global_batch_size=4", "trainer.micro_batch_size=2", "logger.tensorboard=false"]
        options += [f"trainer.output_dir={tmp_path / name}", f"trainer.max_steps={steps}", "optim.schedule=constant"]
        config = setting.training(*options, *settings)
        prepared = prepare_training(config)
        assert isinstance(prepared.train, Lazy) == (STREAMING in settings)
        pool.run(LAYOUT, fit_prepared, config, prepared)
        return metrics(tmp_path / name)

    expected = train("memory", STEPS)
    assert len({row["loss"] for row in expected if "loss" in row}) == STEPS
    assert "eval_loss" in expected[-1]
    assert train("streamed", STEPS, STREAMING) == expected
    train("changing", 2, STREAMING)
    resumed = [row for row in train("changing", STEPS) if row["step"] in (3, 4)]
    assert resumed == [row for row in expected if row["step"] in (3, 4)]

    stores = []
    for name, settings in (("held", []), ("mapped", [STREAMING])):
        options = [f"score.model={student}", f"data.train={setting.two.pairs}", f"data.validation={one}"]
        options += ["score.what=[value,logprob]", "score.part_size=3", f"score.output={tmp_path / name}"]
        config = compose("score", [*LAYOUT.overrides(), *options, "data.max_length=64", *settings])
        pool.run(LAYOUT, score_task, config, prepare_scoring(config))
        stores.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert stores[0] == stores[1]
    assert len(stores[0]) == 3 + 2
