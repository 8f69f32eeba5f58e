"""Tasks of lm-evaluation-harness: one call and one file each, so that a stopped job goes on at the next."""

import difflib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.config.values import as_list
from nemo_tvkd.errors import UserError, one_line

KEY = "benchmark.tasks"
LEADERBOARD: dict[str, tuple[int, str]] = {
    "arc_challenge": (25, "acc_norm,none"),
    "hellaswag": (10, "acc_norm,none"),
    "truthfulqa_mc2": (0, "acc,none"),  # mc2: the probability of the true answers
    "mmlu": (5, "acc,none"),
    "winogrande": (5, "acc,none"),
    # The leaderboard's harness (commit b281b09) took the number behind "####" alone: lm-eval's strict-match.
    # Its answers also ended at every ":", which lm-eval has given up since.
    "gsm8k": (5, "exact_match,strict-match"),
}
"""Shots and metric of the Open LLM Leaderboard v1."""
METRICS = ("acc_norm", "acc", "exact_match")
"""Which metric of another task is shown, where it has several."""


@dataclass(frozen=True)
class Task:
    """A task or group of lm-evaluation-harness."""

    name: str
    shots: int | None
    """None: the task's own."""


def read_tasks(value: Any) -> list[Task]:
    """`benchmark.tasks` as tasks; those of the leaderboard have its shots unless others are asked for.

    Raises:
        UserError: an entry that is not a name, or one given twice.
    """
    tasks: dict[str, Task] = {}
    for entry in as_list(value) if value not in (None, "") else []:
        match = re.fullmatch(r"([^\s:]+)(?::(\d+))?", str(entry))
        if match is None:
            raise UserError(f"{KEY}: {entry} is not a task: write NAME, or NAME:SHOTS with a whole number")
        name, shots = match[1], match[2]
        if name in tasks:
            raise UserError(f"{KEY} has {name} twice")
        known = LEADERBOARD[name][0] if name in LEADERBOARD else None
        tasks[name] = Task(name, known if shots is None else int(shots))
    return list(tasks.values())


def find_tasks(tasks: list[Task], options: Any) -> Any:
    """lm-evaluation-harness' catalogue, in which all `tasks` are.

    Raises:
        UserError: it is not installed (nor vLLM, where that is asked for), no such task folder, an unknown task.
    """
    for module, install in (
        ("lm_eval", f"pip install 'nemo_tvkd[eval]', or set {KEY}=[]"),
        ("vllm", "in an environment or container of its own: pip install vllm lm-eval, and nemo_tvkd with --no-deps"),
    ):
        if (module == "lm_eval" or options.backend == "vllm") and importlib.util.find_spec(module) is None:
            raise UserError(f"{KEY}: {module} is not installed here: {install}")
    if options.task_folder and not Path(options.task_folder).is_dir():
        raise UserError(f"benchmark.task_folder: {options.task_folder} is not a folder")
    from lm_eval.tasks import TaskManager

    try:
        catalogue = TaskManager(include_path=options.task_folder or None)
    except Exception as error:  # a task file is YAML with Python in it
        raise UserError(f"benchmark.task_folder: {options.task_folder} cannot be read: {one_line(error)}") from error
    known = [*catalogue.all_subtasks, *catalogue.all_groups]
    for task in tasks:
        if task.name in catalogue.all_tags and task.name not in known:
            raise UserError(f"{KEY}: {task.name} is a tag of several tasks: name those you want")
        if task.name not in known:
            near = difflib.get_close_matches(task.name, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them"
            raise UserError(f"{KEY}: {task.name} is not a task of lm-evaluation-harness; {hint}")
    return catalogue


def check_data(tasks: list[Task], catalogue: Any, say: Callable[[str], None]) -> None:
    """Whether the data of all tasks are here, before a model is loaded.

    Raises:
        UserError: a data set that is neither on disk nor reachable; names its task.
    """
    from datasets import config as places

    for task in tasks:
        say(f"{task.name}: loading its data")
        try:
            catalogue.load([task.name])
        except Exception as error:  # of datasets, the hub's client or the task's own Python
            reason = one_line(error, 160)
            raise UserError(
                f"{KEY}: the data of {task.name} cannot be loaded ({type(error).__name__}: {reason}); without a "
                f"network they must be in HF_DATASETS_CACHE ({places.HF_DATASETS_CACHE}): run it once with one"
            ) from error


def harness_model(options: Any, path: Path, load: Callable[[], tuple[Any, Any]]) -> Any:
    """The checkpoint as lm-evaluation-harness' model.

    Args:
        load: (model, tokenizer) of transformers, for backend=hf.
    """
    if options.backend == "vllm":
        import torch
        from lm_eval.models.vllm_causallms import VLLM

        dtype = {"bf16": "bfloat16", "fp32": "float32"}[options.precision]
        return VLLM(str(path), dtype=dtype, tensor_parallel_size=max(torch.cuda.device_count(), 1), batch_size="auto")
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load()
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)


def run_task(task: Task, model: Any, catalogue: Any, options: Any) -> dict[str, Any]:
    """Evaluate one task; what its file holds."""
    from lm_eval import evaluator

    # These ask pip, git and the driver about the machine, 10 s for each task, and nothing of it is kept.
    evaluator.add_env_info = evaluator.get_git_commit_hash = lambda *args: None
    report = evaluator.simple_evaluate(
        model=model,
        tasks=[task.name],
        num_fewshot=task.shots,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        task_manager=catalogue,
        log_samples=False,
    )
    assert report is not None, "one process is rank 0"
    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "configs")
    return figures(task.name, report) | {"lm_eval": {name: report[name] for name in kept if name in report}}


def figures(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """metric, value, stderr, shots and samples of a task from what lm-evaluation-harness returns.

    A group's value is the mean over its tasks, each counting the same (so did the leaderboard for MMLU's 57 subjects;
    lm-eval's own weighting by size stays in the task's file).

    Raises:
        UserError: a group whose tasks have no metric in common.
    """
    parts, results = list(report["n-samples"]), report["results"]
    common = [key for key in results[parts[0]] if all(key in results[part] for part in parts)]
    metrics = [key for key in common if "," in key and "_stderr," not in key]
    preferred = [LEADERBOARD[name][1]] if name in LEADERBOARD else []
    preferred += [metric for kind in METRICS for metric in metrics if metric.split(",")[0] == kind]
    metric = next((metric for metric in [*preferred, *metrics] if metric in metrics), None)
    if metric is None:
        raise UserError(f"{KEY}: the tasks of {name} have no metric in common: name them one by one")
    values = [results[part][metric] for part in parts]
    errors = [results[part].get(metric.replace(",", "_stderr,")) for part in parts]
    known = [error for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    shots = {report["n-shot"].get(part) for part in parts}
    return {
        "metric": metric,
        "value": math.fsum(values) / len(parts),
        "stderr": math.sqrt(math.fsum(e * e for e in known)) / len(parts) if len(known) == len(parts) else None,
        "shots": shots.pop() if len(shots) == 1 else None,
        "samples": sum(report["n-samples"][part]["effective"] for part in parts),
    }


def leaderboard_average(results: dict[str, dict[str, Any]], options: Any) -> float | None:
    """The mean of the six tasks (0 to 1), or None where one is missing or was run in another way."""
    comparable = results.keys() >= LEADERBOARD.keys() and options.limit is None and not options.apply_chat_template
    if not comparable or any(results[name]["shots"] != shots for name, (shots, _) in LEADERBOARD.items()):
        return None
    return math.fsum(results[name]["value"] for name in LEADERBOARD) / len(LEADERBOARD)
