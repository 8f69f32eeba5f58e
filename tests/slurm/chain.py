"""A whole tiny recipe on the private Slurm: what the user types, and the same training without Slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from slurm_cluster import SlurmCluster

RECIPE = "tvkd-mistral-7b-danube-500m"
PLACES = ("nice", "wet", "old", "loud", "cold", "far", "small", "bright", "quiet", "busy", "dark", "warm")
TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/tiny_choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def write_inputs(folder: Path) -> None:
    """Mistral's tokenizer, 12 pairs to train on and 4 to validate with, a task and prompts for the benchmark."""
    from importlib.util import find_spec

    from nemo_tvkd.data.tokenizer import load_tokenizer

    origin = find_spec("mistral_common")
    assert origin is not None
    assert origin.submodule_search_locations
    pieces = Path(next(iter(origin.submodule_search_locations)), "data", "tokenizer.model.v1")
    load_tokenizer(str(pieces)).save_pretrained(folder / "tokenizer")
    pairs = [
        {
            "prompt": f"Is the town {place}?",
            "chosen": f"It is {place} and {other}.",
            "rejected": f"No, {other}, and no.",
        }
        for place, other in zip(PLACES, PLACES[1:] + PLACES[:1], strict=True)
    ]
    for name, rows in (("train", pairs), ("validation", pairs[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "tiny_choice.yaml").write_text(TASK.format(folder=tasks))
    row = {"question": "What is it?", "choices": [" a dog", " a cat"], "answer": 0}
    (tasks / "tiny_choice.jsonl").write_text((json.dumps(row) + "\n") * 4)
    (folder / "prompts.json").write_text(json.dumps([{"instruction": "Say hello."}]))


class Chain:
    """One run folder, and the commands about it.

    Args:
        inputs: folder of :func:`write_inputs`.
    """

    def __init__(self, slurm: SlurmCluster, inputs: Path, run_dir: Path, *words: str) -> None:
        self.slurm, self.run_dir = slurm, run_dir
        data = inputs / "train.jsonl"
        self.arguments = [
            *(f"recipe={RECIPE}", "cluster=example_bare", "recipe_scale=tiny", f"run_dir={run_dir}"),
            *(f"recipe.models.{name}.tokenizer={inputs}/tokenizer" for name in ("teacher", "student")),
            *(f"recipe.datasets.sft.train={data}", f"recipe.datasets.dpo-mix.train={data}"),
            f"recipe.datasets.dpo-mix.validation={inputs}/validation.jsonl",
            *("cluster.partition=main", "cluster.gpus_per_node=0", "cluster.nodes=2", "cluster.ranks_per_node=1"),
            *("cluster.modules=[]", "cluster.setup=[]", "cluster.exclusive=false", f"cluster.python={sys.executable}"),
            'cluster.sbatch_lines=["--exclude=n[3-8]"]',
            *("benchmark.benchmark.tasks=[tiny_choice]", f"benchmark.benchmark.task_folder={inputs}/tasks"),
            *(f"benchmark.benchmark.prompts={inputs}/prompts.json", "benchmark.benchmark.max_new_tokens=4"),
            *words,
        ]

    def command(self, *words: str) -> subprocess.CompletedProcess:
        """`nemo-tvkd` as a user calls it."""
        environment = {**self.slurm.environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "nemo_tvkd", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess:
        done = self.command("submit", *self.arguments, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def stages(self) -> dict[str, dict[str, Any]]:
        found = json.loads((self.run_dir / "submission.json").read_text())
        return {stage["name"]: stage for stage in found["stages"]}

    def jobs(self) -> dict[str, int]:
        """Job ids of the stages that were submitted."""
        return {name: stage["job_id"] for name, stage in self.stages().items() if stage["job_id"]}

    def at_step(self, name: str, step: int) -> int:
        """Wait until a training stage has made a step; its job's id."""
        job = self.jobs()[name]
        log = self.run_dir / "logs" / f"{name}-{job}.log"
        text = f"step {step}/"
        self.slurm.wait_until(job, lambda: log.exists() and text in log.read_text(), f"{text!r} in {log}", 300)
        return job

    def log(self, name: str) -> str:
        return (self.run_dir / "logs" / f"{name}-{self.jobs()[name]}.log").read_text()

    def ends(self, name: str) -> list[str]:
        """The stage's .ends without times and job: "restart 0 code 0 ended"."""
        lines = (self.run_dir / "jobs" / f"{name}.ends").read_text().splitlines()
        return [line.split(" ", 3)[3] for line in lines]


def rows(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for the speed."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def train_uninterrupted(overrides: list[str], cache: str) -> None:
    """Task of the rank pool: what every rank of a training job does."""
    from nemo_tvkd.commands import train
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.prepare.training import prepare_training

    os.environ["NEMO_TVKD_CACHE"] = cache
    config = compose("train", overrides)
    prepared = prepare_training(config)
    train._use_nemo_checkpoints(config, prepared)
    train.fit(config, prepared)
