"""Run folders as `submit` and its jobs leave them, in parts: for tests of `report` and `status`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TVKD_ROWS = """\
{"step": 10, "loss": 0.8232823751821718, "rewards/chosen": -0.4628843524862533, "rewards/rejected": -0.544870882963096, "rewards/margins": 0.08198653047684276, "rewards/accuracies": 0.46875, "lr": 0.00045000000000000004, "grad_norm": 0.7660514712333679, "tokens_per_second": 18433.4, "pairs_seen": 320}
{"step": 20, "loss": 0.7733389420074845, "rewards/chosen": -0.541431499182636, "rewards/rejected": -0.8037005654759015, "rewards/margins": 0.2622690662932655, "rewards/accuracies": 0.625, "lr": 0.0004877641290737884, "grad_norm": 0.850517213344574, "tokens_per_second": 19508.9, "pairs_seen": 640}
{"step": 100, "loss": 0.6139386912050848, "rewards/chosen": -1.9057650554595968, "rewards/rejected": -2.6276823103026805, "rewards/margins": 0.7219172548430834, "rewards/accuracies": 0.75, "lr": 1.5229324522605948e-07, "grad_norm": 1.2615023851394653, "tokens_per_second": 16684.2, "pairs_seen": 3200}
{"step": 100, "eval_loss": 0.7622180336966453, "eval_rewards/chosen": -1.764434371258268, "eval_rewards/rejected": -2.2283411875211656, "eval_rewards/margins": 0.46390681626289726, "eval_rewards/accuracies": 0.6}
"""  # noqa: E501
"""Of a real run (the demo's student_tvkd)."""
SFT_ROWS = """\
{"step": 10, "loss": 4.131689331493655, "lr": 0.0018, "grad_norm": 2.34354305267334, "tokens_per_second": 8263.3, "pairs_seen": 640}
{"step": 20, "loss": 1.5702144223730397, "lr": 0.0029935061859747065, "grad_norm": 1.0843238830566406, "tokens_per_second": 8444.1, "pairs_seen": 1280}
{"step": 150, "loss": 0.7165268867332013, "lr": 4.0613823080742907e-07, "grad_norm": 0.35711053013801575, "tokens_per_second": 8865.1, "pairs_seen": 9600}
"""  # noqa: E501
"""Of a real run (the demo's teacher_sft)."""
MANIFEST = {
    "format": 2,
    "identity": {
        "model": "runs/teacher_dpo/checkpoints/step-00000100",
        "precision": "fp32",
        "max_length": 128,
        "value_storage": "all",
        "values": [{"kind": "soft_value", "temperature": 0.1}],
        "what": ["value"],
    },
    "totals": {"bytes": 316549, "parts": 2, "rows": 1800},
}
PREFERENCES = {
    "checkpoint": "runs/export",
    "reference": None,
    "beta": 0.1,
    "oracle": "columns",
    "pairs": 300,
    "rewards/accuracies": 0.7133333333333334,
    "rewards/accuracies_stderr": 0.026107,
    "rewards/margins": 6.821110547383626,
    "rewards/margins_stderr": 0.81234,
    "rewards/oracle_correlation": 0.4321,
    "rewards/oracle_correlation_interval": [0.3812, 0.4799],
    "rewards/teacher_agreement": None,
    "rewards/teacher_agreement_interval": None,
    "confidence": 0.95,
    "by_confidence": {
        "rewards": [
            {
                "confidence/least": 0.5,
                "confidence/greatest": 0.75,
                "confidence/mean": 0.625,
                "accuracies": 0.5432,
                "pairs": 300,
            }
        ]
    },
    "by_strength": [
        {
            "strength/least": 0.1,
            "strength/greatest": 1.25,
            "pairs": 150,
            "rewards/accuracies": 0.6125,
            "rewards/accuracies_stderr": 0.0398,
            "rewards/margins": 2.345,
            "rewards/margins_stderr": 0.5,
            "rewards/agreement": 0.6271,
        },
        {
            "strength/least": 1.5,
            "strength/greatest": 4.75,
            "pairs": 150,
            "rewards/accuracies": 0.8142,
            "rewards/accuracies_stderr": 0.0318,
            "rewards/margins": 11.297,
            "rewards/margins_stderr": 0.9,
            "rewards/agreement": None,
        },
    ],
}
BENCHMARK = {
    "checkpoint": "runs/export",
    "tasks": {
        "arc_challenge": {"metric": "acc_norm", "value": 0.3623, "stderr": 0.014, "shots": 25, "samples": 1172},
        "hellaswag": {"metric": "acc_norm", "value": 0.6411, "stderr": 0.0048, "shots": 10, "samples": 10042},
        "gsm8k": {"metric": "exact_match", "value": 0.0614, "stderr": None, "shots": 5, "samples": 1319},
    },
    "leaderboard_average": 0.354933,
    "alpaca_eval": {"answers": 805, "mean_length": 1423.5, "reward": {"mean": -1.153, "stderr": 0.021}},
    "mt_bench": {"answers": 80, "mean_length": 1711.25, "reward": {"mean": -0.8725, "stderr": 0.11}},
    "versions": {"lm_eval": "0.4.9", "transformers": "4.57.6"},
}
CONFIG = "algorithm:\n  name: {}\ntrainer:\n  max_steps: {}\n  seed: 42\n"


def stage(name: str, command: str, after: Sequence[str] = (), **others: Any) -> dict[str, Any]:
    """A stage's entry in submission.json."""
    entry = {"name": name, "command": command, "after": list(after), "output": name, "state": "submitted"}
    entry |= {"job_id": None, "tasks": None, "sweep": [], "script": f"jobs/{name}.sbatch", "nodes": 1}
    return {**entry, "max_steps": None, **others}


def submission(run_dir: Path, stages: Sequence[dict[str, Any]], **others: Any) -> Path:
    """Write submission.json; returns the run folder."""
    for folder in ("jobs", "logs"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    text = {"version": 1, "recipe": "tvkd_tiny", "cluster": "example_bare", "run_dir": str(run_dir)}
    text |= {"submitted": "2026-11-21T12:00:00+00:00", "stages": list(stages)}
    (run_dir / "submission.json").write_text(json.dumps(text | others))
    return run_dir


def trained(output: Path, rows: str, method: str, max_steps: int, finished: bool = True) -> None:
    """A training run's output."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.jsonl").write_text(rows)
    (output / "config.yaml").write_text(CONFIG.format(method, max_steps))
    if finished:
        write(output / "finished.json", {"step": max_steps})


def write(file: Path, content: Any) -> None:
    """A JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def scaled(rows: str, factor: float) -> str:
    """The rows of another seed: every loss, accuracy and margin times `factor`."""
    changed = []
    for line in rows.splitlines():
        row = json.loads(line)
        for name in row:
            if name.removeprefix("eval_") in ("loss", "rewards/accuracies", "rewards/margins"):
                row[name] *= factor
        changed.append(json.dumps(row))
    return "\n".join(changed) + "\n"


def chain(run_dir: Path) -> Path:
    """A TVKD recipe whose training is swept over three seeds, of which the third is still running."""
    seeds = [[f"trainer.seed={seed}", f"trainer.output_dir={run_dir}/train/{i}"] for i, seed in enumerate((1, 2, 3))]
    paths = [[f"checkpoint={run_dir}/train/{i}", f"output={run_dir}/export/{i}"] for i in range(3)]
    stages = [
        stage("teacher_sft", "train", state="done"),
        stage("teacher_dpo", "train", ["teacher_sft"], state="replaced", output="/models/teacher"),
        stage("student_sft", "train", job_id=11, max_steps=150),
        stage("score", "score", ["teacher_dpo"], job_id=12),
        stage("train", "train", ["student_sft", "score"], job_id=13, tasks=3, sweep=seeds, max_steps=100),
        stage("export", "export-hf", ["train"], job_id=14, tasks=3, sweep=paths),
        stage("evaluate", "evaluate", ["export"], job_id=15, tasks=3, sweep=paths),
        stage("benchmark", "benchmark", ["export"], job_id=16, tasks=3, sweep=paths),
    ]
    submission(run_dir, stages)
    trained(run_dir / "teacher_sft", SFT_ROWS, "sft", 150)
    trained(run_dir / "student_sft", SFT_ROWS, "sft", 150)
    write(run_dir / "score" / "manifest.json", MANIFEST)
    for index, factor in enumerate((1.0, 1.1)):
        trained(run_dir / "train" / str(index), scaled(TVKD_ROWS, factor), "tvkd", 100)
        write(run_dir / "export" / str(index) / "config.json", {})
        result = PREFERENCES | {"rewards/accuracies": PREFERENCES["rewards/accuracies"] * factor}
        write(run_dir / "evaluate" / str(index) / "preferences.json", result)
    write(run_dir / "benchmark" / "0" / "results.json", BENCHMARK)
    first = TVKD_ROWS.splitlines(keepends=True)
    trained(run_dir / "train" / "2", first[0] + first[1] + '{"step": 30, "loss": 0.7', "tvkd", 100, finished=False)
    (run_dir / "jobs" / "train-2.ends").write_text(
        "2026-11-21T12:00:00Z job 13 restart 0 code 85 requeued\n"
        "2026-11-21T12:30:00Z job 13 restart 1 code 1 requeued\n"
        "2026-11-21T13:00:00Z job 13 restart 2 code 85 requeued\n"
    )
    return run_dir
