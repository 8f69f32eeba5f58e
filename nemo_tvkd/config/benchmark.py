"""Typed configuration of `nemo-tvkd benchmark`."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.keys import key

LEADERBOARD_TASKS = ("arc_challenge", "hellaswag", "truthfulqa_mc2", "mmlu", "winogrande", "gsm8k")
"""The Open LLM Leaderboard v1."""


@dataclass
class BenchmarkingConfig:
    tasks: Any = key(list(LEADERBOARD_TASKS))
    """Tasks of lm-evaluation-harness, NAME or NAME:SHOTS, one or a list; the default is the Open LLM Leaderboard v1
    with its shots. []: none."""
    task_folder: str = ""
    """Folder with further task files (lm-evaluation-harness' include_path)."""
    backend: str = key("hf", choices=("hf", "vllm"))
    """What computes the tasks: hf | vllm (in an environment or container of its own)."""
    apply_chat_template: bool = False
    """Of the tasks; the leaderboard did not. Generated answers always use the chat template."""
    prompts: str = ""
    """AlpacaEval's instructions (a JSON list or JSONL with `instruction`), answered in DIR/alpaca_eval.json."""
    questions: str = ""
    """MT-Bench's question.jsonl, answered in DIR/mt_bench.jsonl."""
    max_new_tokens: int = key(1024, above=0)
    """Longest answer, in tokens."""
    reward_model: str = ""
    """Sequence-classification checkpoint with one label that scores the answers."""
    model_name: str = ""
    """What AlpacaEval and MT-Bench call the model; the checkpoint's folder name when empty."""
    batch_size: int = key(8, above=0)
    """Sequences at a time."""
    limit: int | None = key(None, above=0)
    """Only so many examples of each task, prompts and questions: for a rehearsal."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """bf16 | fp32."""


@dataclass
class BenchmarkConfig:
    """`nemo-tvkd benchmark`."""

    checkpoint: str = ""
    """Hugging Face directory or hub id."""
    output: str = ""
    """Folder of the results; the same command continues what is there."""
    benchmark: BenchmarkingConfig = key(BenchmarkingConfig)
