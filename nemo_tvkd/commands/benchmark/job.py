"""A benchmark from its configuration to results.json: answers, their rewards, tasks; finished parts are kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import Checkpoint, check_heads, classifies_sequences, find_checkpoint, weights_fingerprint
from nemo_tvkd.commands.benchmark import prompts, rewards, tasks
from nemo_tvkd.commands.benchmark.files import as_json, as_jsonl, claim, read_lines, write_whole
from nemo_tvkd.commands.benchmark.models import free_memory, load_model
from nemo_tvkd.commands.benchmark.results import show
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.exits import rank_variables

ALPACA, MT_BENCH = "alpaca_eval", "mt_bench"
VERSIONS = ("nemo_tvkd", "torch", "transformers", "datasets", "lm_eval", "vllm")


@dataclass
class Job:
    """What is to be done."""

    options: Any
    """The section `benchmark` of the configuration."""
    checkpoint: Checkpoint
    name: str
    """Of the model, for AlpacaEval and MT-Bench."""
    tokenizer: Any
    output: Path
    tasks: list[tasks.Task]
    catalogue: Any
    """lm-evaluation-harness'; None without tasks."""
    asked: dict[str, list[prompts.Conversation]]
    """By ALPACA and MT_BENCH."""
    reward: Checkpoint | None
    reward_tokenizer: Any


def prepare(config: Any) -> Job:
    """Check a benchmark's configuration and read what it asks for.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    options = config.benchmark
    if rank_variables()["world"] > 1:
        raise UserError(f"benchmark is one process, and {rank_variables()['world']} were started: srun -n1")
    wanted = wanted_tasks(options)
    check_judge(options)
    if not config.output:
        raise UserError("output is not set: give the folder of the results")
    check_writable(config.output, "output")
    if Path(config.output).is_file():
        raise UserError(f"output: {config.output} is a file: give a folder")
    asked = {}
    if options.prompts:
        asked[ALPACA] = prompts.read_prompts(options.prompts, options.limit)
    if options.questions:
        asked[MT_BENCH] = prompts.read_questions(options.questions, options.limit)
    checkpoint = _language_model(config.checkpoint)
    tokenizer = load_tokenizer(str(checkpoint.path), "checkpoint")
    if (asked or options.apply_chat_template) and not tokenizer.chat_template:
        raise UserError(
            f"checkpoint: {checkpoint.path} has no chat template, which "
            f"{'benchmark.prompts and benchmark.questions need' if asked else 'benchmark.apply_chat_template needs'}"
        )
    reward = reward_model(options.reward_model) if options.reward_model else None
    return Job(
        options=options,
        checkpoint=checkpoint,
        name=options.model_name or checkpoint.path.absolute().name,
        tokenizer=tokenizer,
        output=Path(config.output),
        tasks=wanted,
        catalogue=tasks.find_tasks(wanted, options) if wanted else None,
        asked=asked,
        reward=reward,
        reward_tokenizer=reward_tokenizer(reward) if reward else None,
    )


def wanted_tasks(options: Any) -> list[tasks.Task]:
    """The tasks asked for; a UserError where nothing at all is."""
    wanted = tasks.read_tasks(options.tasks)
    if not (wanted or options.prompts or options.questions):
        raise UserError("there is nothing to do: set benchmark.tasks, benchmark.prompts or benchmark.questions")
    return wanted


def check_judge(options: Any) -> None:
    """Whether a reward model that is set has answers to score; a UserError where it has none."""
    if options.reward_model and not (options.prompts or options.questions):
        raise UserError("benchmark.reward_model is set without benchmark.prompts or benchmark.questions to score")


def _language_model(path: str) -> Checkpoint:
    checkpoint = find_checkpoint(path, "checkpoint")
    if checkpoint.kind == "nemo":
        raise UserError(
            f"checkpoint: {path} is a NeMo checkpoint: run nemo-tvkd export-hf checkpoint={path} output=DIR first and "
            "give DIR"
        )
    check_heads(checkpoint, "checkpoint", lm=True)
    return checkpoint


def reward_model(path: str) -> Checkpoint:
    """A Hugging Face sequence-classification model with one label.

    Raises:
        UserError: it is none.
    """
    checkpoint = find_checkpoint(path, rewards.KEY)
    if checkpoint.kind == "nemo":
        raise UserError(f"{rewards.KEY}: {path} is a NeMo checkpoint: run nemo-tvkd export-hf first")
    if not classifies_sequences(checkpoint.config):
        raise UserError(f"{rewards.KEY}: {path} is no sequence-classification model (export-hf kind=reward_model)")
    if checkpoint.config.num_labels != 1:
        raise UserError(f"{rewards.KEY}: {path} has {checkpoint.config.num_labels} labels: a reward model has one")
    return checkpoint


def reward_tokenizer(checkpoint: Checkpoint) -> Any:
    """Its tokenizer; a UserError where that has no chat template."""
    tokenizer = load_tokenizer(str(checkpoint.path), rewards.KEY)
    if not tokenizer.chat_template:
        raise UserError(f"{rewards.KEY}: {checkpoint.path} has no chat template")
    return tokenizer


def run(job: Job) -> None:
    """Do what is left of a job, write results.json and print it.

    Raises:
        UserError: data that cannot be had, a folder that has other results, and what shows only while running.
    """
    _claim(job)
    left = [task for task in job.tasks if not _task_file(job, task).exists()]
    if left:
        tasks.check_data(left, job.catalogue, _say)
    answers = _answer_all(job)
    scored = _score_all(job, answers)
    _run_tasks(job, left)
    results = _results(job, answers, scored)
    write_whole(job.output / "results.json", as_json(results))
    print(show(results, str(job.output)), flush=True)


def _claim(job: Job) -> None:
    """Refuse a folder whose results of the same name are of other weights, templates, questions or settings."""
    weights = {"weights": weights_fingerprint(job.checkpoint)}
    for task in job.tasks:
        facts = _settings(job, "backend", "precision", "limit", "apply_chat_template", "task_folder")
        claim(job.output, f"tasks/{task.name}", weights | {"shots": task.shots} | facts)
    for part in job.asked:
        facts = {
            "chat template": prompts.digest(job.tokenizer.chat_template),
            "questions": prompts.file_digest(job.options.prompts if part == ALPACA else job.options.questions),
            "model_name": job.name,
        }
        claim(job.output, part, weights | facts | _settings(job, "precision", "limit", "max_new_tokens"))
        if job.reward is not None:
            facts = {
                "reward model": weights_fingerprint(job.reward),
                "chat template": prompts.digest(job.reward_tokenizer.chat_template),
            }
            claim(job.output, f"rewards/{part}", facts | _settings(job, "precision"))


def _results(job: Job, answers: dict[str, prompts.Answers], scored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What results.json holds."""
    found: dict[str, dict[str, Any]] = {}
    for task in job.tasks:
        told = json.loads(_task_file(job, task).read_text(encoding="utf-8"))
        found[task.name] = {name: value for name, value in told.items() if name != "lm_eval"}
    results: dict[str, Any] = {"checkpoint": str(job.checkpoint.path), "limit": job.options.limit, "tasks": found}
    results["leaderboard_average"] = tasks.leaderboard_average(found, job.options)
    for part, said in answers.items():
        texts = [text for turns in said for text in turns]
        results[part] = {"answers": len(texts), "mean_length": sum(map(len, texts)) / len(texts)}
        results[part]["empty"] = texts.count("")
        results[part] |= {"reward": scored[part]} if part in scored else {}
    return results | {"versions": {name: told for name in VERSIONS if (told := _version(name))}}


def _say(line: str) -> None:
    print(line, flush=True)


def _settings(job: Job, *keys: str) -> dict[str, Any]:
    return {f"benchmark.{key}": job.options[key] for key in keys}


def _task_file(job: Job, task: tasks.Task) -> Path:
    return job.output / "tasks" / f"{task.name}.json"


def _load_language_model(job: Job) -> Any:
    return load_model("AutoModelForCausalLM", job.checkpoint, "checkpoint", job.options.precision)


def _run_tasks(job: Job, left: list[tasks.Task]) -> None:
    """Each task's file, written whole."""
    if not left:
        return
    model = tasks.harness_model(job.options, job.checkpoint.path, lambda: (_load_language_model(job), job.tokenizer))
    for task in left:
        _say(f"{task.name}: {'its own' if task.shots is None else task.shots} shots")
        found = tasks.run_task(task, model, job.catalogue, job.options)
        write_whole(_task_file(job, task), as_json(found))
        _say(f"{task.name}: {found['metric']} {found['value']:.4f}")
    del model
    free_memory()


def _answer_all(job: Job) -> dict[str, prompts.Answers]:
    """The answers by part, from their file or from the model, which is loaded where one is missing."""
    from nemo_tvkd.commands.benchmark.answers import Writer, answer

    @cache
    def writer() -> Writer:
        return Writer(_load_language_model(job), job.tokenizer, job.options.max_new_tokens)

    found: dict[str, prompts.Answers] = {}
    for part, asked in job.asked.items():
        file = _answer_file(job, part)
        partial = file.with_name(f".{part}.partial.jsonl")
        if file.exists():
            found[part] = READ[part](asked, file.read_text(encoding="utf-8"))
        else:
            _say(f"{part}: {len(asked)} conversations")
            found[part] = answer(asked, writer, job.options.batch_size, partial, _say)
            if part == ALPACA:
                write_whole(file, as_json(prompts.alpaca_rows(asked, found[part], job.name)))
            else:
                write_whole(file, as_jsonl(prompts.mt_bench_rows(asked, found[part], job.name)))
        partial.unlink(missing_ok=True)  # also one that a kill left beside the finished file
    writer.cache_clear()
    free_memory()
    return found


def _answer_file(job: Job, part: str) -> Path:
    return job.output / (f"{part}.json" if part == ALPACA else f"{part}.jsonl")


READ: dict[str, Callable[[list[prompts.Conversation], str], prompts.Answers]] = {
    ALPACA: prompts.alpaca_answers,
    MT_BENCH: prompts.mt_bench_answers,
}


def _score_all(job: Job, answers: dict[str, prompts.Answers]) -> dict[str, dict[str, Any]]:
    """Each part's mean reward; every answer's is in rewards/PART.jsonl."""
    if job.reward is None:
        return {}
    model = None
    found = {}
    for part, said in answers.items():
        file = job.output / "rewards" / f"{part}.jsonl"
        if file.exists():
            rows = read_lines(file)
        else:
            model = model or load_model(
                "AutoModelForSequenceClassification", job.reward, rewards.KEY, job.options.precision
            )
            rows = rewards.score(job.asked[part], said, model, job.reward_tokenizer, job.options.batch_size)
            write_whole(file, as_jsonl(rows))
        found[part] = rewards.summary(rows)
    del model
    free_memory()
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
