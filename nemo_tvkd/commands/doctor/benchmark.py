"""What `doctor` says of a benchmark stage, which comes last and would fail after days."""

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

from nemo_tvkd.commands.benchmark import prompts, tasks
from nemo_tvkd.commands.benchmark.job import check_judge, reward_model, reward_tokenizer, wanted_tasks
from nemo_tvkd.commands.benchmark.models import quiet
from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.stages import StageChecks

ELSEWHERE = "benchmark.cluster.container.runtime=none benchmark.cluster.python=ENV/bin/python runs it in an environment"


def benchmark_checks(stage: StageChecks) -> Iterator[Check]:
    """The tasks and their data, the prompts and questions, the reward model."""
    options = stage.config.benchmark
    yield stage.check("tasks", partial(_tasks, stage))
    for key, read in (("prompts", prompts.read_prompts), ("questions", prompts.read_questions)):
        if options[key]:
            yield stage.check(f"benchmark.{key}", partial(_count, read, options[key], options.limit))
    if options.reward_model:
        yield stage.check("benchmark.reward_model", partial(_judge, options))


def _tasks(stage: StageChecks) -> Check | str:
    options, name = stage.config.benchmark, stage.name("tasks")
    wanted = wanted_tasks(options)
    if not wanted:
        return "none"
    names = ", ".join(task.name for task in wanted)
    if options.backend == "vllm" or importlib.util.find_spec("lm_eval") is None:
        advice = f"not checked here, where there is no lm_eval or vllm; {ELSEWHERE}"
        return Check(name, "WARN", names, advice)
    quiet()
    tasks.check_data(wanted, tasks.find_tasks(wanted, options), lambda line: None)
    if stage.stage.cluster.container.runtime != "none":
        advice = f"the image must have lm_eval, which is not installed with nemo_tvkd there; {ELSEWHERE}"
        return Check(name, "WARN", f"{names}: their data are here", advice)
    return f"{names}: their data are here"


def _judge(options: Any) -> str:
    check_judge(options)
    checkpoint = reward_model(options.reward_model)
    reward_tokenizer(checkpoint)
    return str(checkpoint.path)


def _count(read: object, path: str, limit: int | None) -> str:
    assert callable(read)
    return f"{path}: {len(read(path, limit))} conversations"
