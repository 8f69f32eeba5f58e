"""Stages of a demo: commands of `nemo-tvkd` that run one after the other; those whose output exists are skipped."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TWO_BY_TWO = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
BETA = "0.1"
PRECISE = ["trainer.precision=fp32", "data.max_length=128"]
SFT = ["algorithm=sft", "trainer.max_steps=150", "trainer.global_batch_size=64", "trainer.micro_batch_size=32"]
PAIRS = ["trainer.max_steps=100", "trainer.global_batch_size=32", "trainer.micro_batch_size=16", "optim.lr=5e-4"]

ORACLE = ["trainer.max_steps=150", "trainer.global_batch_size=32", "trainer.micro_batch_size=32", "optim.lr=1e-3"]


@dataclass
class Stage:
    """One command; done when `output` is there."""

    title: str
    arguments: list[str]
    output: Path


def train(title: str, output: Path, *arguments: str, layout: list[str] = TWO_BY_TWO) -> Stage:
    """A training run; its last checkpoint is named after `trainer.max_steps`, the last of which counts."""
    steps = [int(a.split("=")[1]) for a in arguments if a.startswith("trainer.max_steps=")][-1]
    options = ["trainer.log_interval=10", *arguments, *layout, *PRECISE, f"trainer.output_dir={output}"]
    return Stage(title, ["train", *options], output / "checkpoints" / f"step-{steps:08d}")


def score(title: str, model: Path, output: Path, *arguments: str, layout: list[str] = TWO_BY_TWO) -> Stage:
    """A score store of a run's model."""
    options = [*arguments, *layout, "score.precision=fp32", "data.max_length=128", "score.micro_batch_size=32"]
    where = [f"score.model={model}", f"score.output={output}"]
    return Stage(title, ["score", *where, *options], output / "manifest.json")


def export(title: str, run: Path, output: Path) -> Stage:
    """A run's last checkpoint as a Hugging Face directory."""
    return Stage(title, ["export-hf", f"checkpoint={run}", f"output={output}"], output)


def sft_stages(root: Path) -> list[Stage]:
    """What every demo starts from: both models fine-tuned on plausible answers."""
    data = root / "data"
    return [
        train(
            f"SFT of the {model}",
            root / f"{model}_sft",
            *(*SFT, f"student.path={data}/{model}_hf", f"data.train={data}/sft_train.jsonl", f"optim.lr={rate}"),
        )
        for model, rate in (("teacher", "3e-3"), ("student", "5e-3"))
    ]


def environment(root: Path) -> dict[str, str]:
    """Of a stage: the demo is the same everywhere, so GPUs are hidden."""
    own = {"OMP_NUM_THREADS": "1", "NEMO_TVKD_CACHE": str(root / "imported"), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **own}


def run_stages(chain: list[Stage], root: Path) -> None:
    """Run what is missing; a stage that fails ends the demo with its own exit code."""
    for number, stage in enumerate(chain, 1):
        title = f"[{number}/{len(chain)}] {stage.title}"
        if stage.output.exists():
            print(f"{title}: there already", flush=True)
            continue
        command = [sys.executable, "-m", "nemo_tvkd", *stage.arguments]
        print(f"\n{title}\n    nemo-tvkd {' '.join(stage.arguments)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, env=environment(root), check=False).returncode
        if code:
            sys.exit(code)
        print(f"    {time.perf_counter() - start:.0f} s", flush=True)
