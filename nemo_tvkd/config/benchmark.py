"""Typed configuration of `nemo-tvkd benchmark`."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.keys import key

LEADERBOARD_TASKS = ("arc_challenge", "hellaswag", "truthfulqa_mc2", "mmlu", "winogrande", "gsm8k")
"""The Open LLM Leaderboard v1."""


@dataclass
class BenchmarkingConfig:
    tasks: Any = key(list(LEADERBOARD_TASKS))
    """Tasks of lm-evaluation-harness, NAME or NAME:SHOTS, one or a list; []: none. The default is the Open LLM
    Leaderboard v1 with its shots."""
    task_folder: str = ""
    """Folder with further task files (lm-evaluation-harness' include_path)."""
    backend: str = key("hf", choices=("hf", "vllm"))
    """Engine that computes the tasks: hf | vllm (in an environment or container of its own)."""
    apply_chat_template: bool = False
    """Whether the tasks use the chat template; the leaderboard did not. Generated answers always use it."""
    prompts: str = ""
    """Instructions of AlpacaEval (a JSON list or JSONL with `instruction`), answered in DIR/alpaca_eval.json."""
    questions: str = ""
    """Question file of MT-Bench (question.jsonl), answered in DIR/mt_bench.jsonl."""
    max_new_tokens: int = key(1024, above=0)
    """Longest answer in tokens."""
    reward_model: str = ""
    """Sequence-classification checkpoint with one label that scores the answers."""
    model_name: str = ""
    """Name of the model in AlpacaEval's and MT-Bench's files; the checkpoint's folder name when empty."""
    batch_size: int = key(8, above=0)
    """Sequences per forward pass."""
    limit: int | None = key(None, above=0)
    """Number of examples of each task, prompts and questions, for a rehearsal; null: all."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """Number format of the computation: bf16 | fp32."""


@dataclass
class BenchmarkConfig:
    """`nemo-tvkd benchmark`."""

    checkpoint: str = ""
    """Hugging Face directory or hub id."""
    output: str = ""
    """Folder of the results; the same command continues unfinished ones."""
    benchmark: BenchmarkingConfig = key(BenchmarkingConfig)
