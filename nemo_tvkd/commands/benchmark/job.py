"""A benchmark from its configuration to results.json: answers, their rewards, tasks; finished parts are kept.

OUTPUT/results.json                        the figures of everything below
OUTPUT/tasks/NAME.json                     one for each task
OUTPUT/alpaca_eval.json, mt_bench.jsonl    answers as those tools read them
OUTPUT/answers/PART.jsonl                  the same answers, added one by one while they are generated
OUTPUT/rewards/PART.jsonl                  their rewards
OUTPUT/settings.json                       what each of these was made with
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import Checkpoint, check_heads, classifies_sequences, find_checkpoint, weights_fingerprint
from nemo_tvkd.commands.benchmark import rewards
from nemo_tvkd.commands.benchmark import tasks as harness
from nemo_tvkd.commands.benchmark.answers import Writer, answer
from nemo_tvkd.commands.benchmark.models import free_memory, load_model
from nemo_tvkd.commands.benchmark.prompts import PARTS, Answers, Conversation, as_json, as_jsonl, read_lines
from nemo_tvkd.commands.table import table
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_result
from nemo_tvkd.runtime.exits import rank_variables

VERSIONS = ("nemo_tvkd", "torch", "transformers", "datasets", "lm_eval", "vllm")


@dataclass
class Job:
    """What is to be done."""

    options: Any
    """The section `benchmark` of the configuration."""
    checkpoint: Checkpoint
    name: str
    """The model's, for AlpacaEval and MT-Bench."""
    tokenizer: Any
    output: Path
    tasks: list[harness.Task]
    catalogue: Any
    """lm-evaluation-harness'; None without tasks."""
    asked: dict[str, list[Conversation]]
    """By the name of the part (PARTS)."""
    reward: Checkpoint | None
    reward_tokenizer: Any

    def task_file(self, task: harness.Task) -> Path:
        return self.output / "tasks" / f"{task.name}.json"

    def load_language_model(self) -> Any:
        return load_model("AutoModelForCausalLM", self.checkpoint, "checkpoint", self.options.precision)


def prepare(config: Any) -> Job:
    """Check a benchmark's configuration and read its questions.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    options = config.benchmark
    if rank_variables()["world"] > 1:
        raise UserError(f"benchmark is one process, and {rank_variables()['world']} were started: srun -n1")
    requested = wanted_tasks(options)
    check_judge(options)
    if not config.output:
        raise UserError("output is not set: give the folder of the results")
    check_writable(config.output, "output")
    if Path(config.output).is_file():
        raise UserError(f"output: {config.output} is a file: give a folder")
    asked = {name: part.read(options[part.key], options.limit) for name, part in PARTS.items() if options[part.key]}
    checkpoint = _hugging_face(config.checkpoint, "checkpoint")
    check_heads(checkpoint, "checkpoint", lm=True)
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
        tasks=requested,
        catalogue=harness.find_tasks(requested, options) if requested else None,
        asked=asked,
        reward=reward,
        reward_tokenizer=reward_tokenizer(reward) if reward else None,
    )


def wanted_tasks(options: Any) -> list[harness.Task]:
    """The requested tasks; a UserError where nothing at all is to be done."""
    requested = harness.read_tasks(options.tasks)
    if not (requested or options.prompts or options.questions):
        raise UserError("there is nothing to do: set benchmark.tasks, benchmark.prompts or benchmark.questions")
    return requested


def check_judge(options: Any) -> None:
    """Raise UserError where a reward model is set but no answers that it could score."""
    if options.reward_model and not (options.prompts or options.questions):
        raise UserError("benchmark.reward_model is set without benchmark.prompts or benchmark.questions to score")


def _hugging_face(path: str, key: str) -> Checkpoint:
    checkpoint = find_checkpoint(path, key)
    if checkpoint.kind == "nemo":
        export = f"nemo-tvkd export-hf checkpoint={path} output=DIR"
        raise UserError(f"{key}: {path} is a NeMo checkpoint: run {export} first and give DIR")
    return checkpoint


def reward_model(path: str) -> Checkpoint:
    """A Hugging Face sequence-classification model with one label.

    Raises:
        UserError: it is something else.
    """
    checkpoint = _hugging_face(path, rewards.KEY)
    if not classifies_sequences(checkpoint.config):
        raise UserError(f"{rewards.KEY}: {path} is not a sequence-classification model (export-hf kind=reward_model)")
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
    _claim_all(job)
    left = [task for task in job.tasks if not job.task_file(task).exists()]
    if left:
        harness.check_data(left, job.catalogue, _say)
    answers = _answer_all(job)
    mean_rewards = _score_all(job, answers)
    _run_tasks(job, left)
    results = _results(job, answers, mean_rewards)
    write_result(job.output / "results.json", as_json(results))
    _show(results)
    _say(f"results: {job.output}/results.json")


def _claim_all(job: Job) -> None:
    """Refuse a folder whose results of the same name are of other weights, templates, questions or settings."""
    weights = {"weights": weights_fingerprint(job.checkpoint)}
    for task in job.tasks:
        keys = ("backend", "precision", "limit", "apply_chat_template", "task_folder")
        claim(job.output, f"tasks/{task.name}", weights | {"shots": task.shots} | _settings(job, *keys))
    for name in job.asked:
        facts = {
            "chat template": _digest(job.tokenizer.chat_template),
            "questions": _digest(Path(job.options[PARTS[name].key]).expanduser().read_bytes()),
            "model_name": job.name,
        }
        claim(job.output, name, weights | facts | _settings(job, "precision", "limit", "max_new_tokens"))
        if job.reward is not None:
            template = _digest(job.reward_tokenizer.chat_template)
            facts = {"reward model": weights_fingerprint(job.reward), "chat template": template}
            claim(job.output, f"rewards/{name}", facts | _settings(job, "precision"))


def claim(folder: Path, part: str, settings: dict[str, Any]) -> None:
    """Note with which settings a part of the results is made, so that no other ones are mixed with it.

    Raises:
        UserError: it was begun with other settings; names the first that differs.
    """
    file = folder / "settings.json"
    try:
        known = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"output: {file} is damaged: give another folder") from error
    before = known.setdefault(part, settings)
    for name in [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"output: {folder} has {part} with {name} {before.get(name)}, and this is {settings[name]}: "
            "give another folder"
        )
    write_result(file, as_json(known))


def _settings(job: Job, *keys: str) -> dict[str, Any]:
    return {f"benchmark.{key}": job.options[key] for key in keys}


def _digest(content: Any) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else str(content).encode()).hexdigest()


def _say(line: str) -> None:
    print(line, flush=True)


def _run_tasks(job: Job, left: list[harness.Task]) -> None:
    """Each task's file, written whole."""
    if not left:
        return
    model = harness.harness_model(job.options, job.checkpoint.path, lambda: (job.load_language_model(), job.tokenizer))
    for task in left:
        _say(f"{task.name}: {'its own' if task.shots is None else task.shots} shots")
        result = harness.run_task(task, model, job.catalogue, job.options)
        write_result(job.task_file(task), as_json(result))
        _say(f"{task.name}: {result['metric']} {result['value']:.4f}")
    del model
    free_memory()


def _answer_all(job: Job) -> dict[str, Answers]:
    """The answers by part, from their file or from the model, which is loaded where one is missing."""

    @cache
    def writer() -> Writer:
        return Writer(job.load_language_model(), job.tokenizer, job.options.max_new_tokens)

    answers: dict[str, Answers] = {}
    for name, asked in job.asked.items():
        _say(f"{name}: {len(asked)} conversations")
        file = job.output / "answers" / f"{name}.jsonl"
        answers[name] = answer(asked, writer, job.options.batch_size, file, _say)
        if not (result := job.output / PARTS[name].file).exists():
            write_result(result, PARTS[name].text(asked, answers[name], job.name))
    writer.cache_clear()
    free_memory()
    return answers


def _score_all(job: Job, answers: dict[str, Answers]) -> dict[str, dict[str, Any]]:
    """Each part's mean reward; every answer's is in rewards/PART.jsonl."""
    if job.reward is None:
        return {}
    model = None
    for name, texts in answers.items():
        file = job.output / "rewards" / f"{name}.jsonl"
        if not file.exists():
            kind = "AutoModelForSequenceClassification"
            model = model or load_model(kind, job.reward, rewards.KEY, job.options.precision)
            rows = rewards.score(job.asked[name], texts, model, job.reward_tokenizer, job.options.batch_size)
            write_result(file, as_jsonl(rows))
    del model
    free_memory()
    return {name: rewards.summary(read_lines(job.output / "rewards" / f"{name}.jsonl")) for name in answers}


def _results(job: Job, answers: dict[str, Answers], mean_rewards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What results.json holds."""
    rows: dict[str, dict[str, Any]] = {}
    for task in job.tasks:
        rows[task.name] = json.loads(job.task_file(task).read_text(encoding="utf-8"))
        rows[task.name].pop("lm_eval", None)
    results: dict[str, Any] = {"checkpoint": str(job.checkpoint.path), "limit": job.options.limit, "tasks": rows}
    results["leaderboard_average"] = harness.leaderboard_average(rows, job.options)
    for name, turns in answers.items():
        texts = [text for one in turns for text in one]
        results[name] = {"answers": len(texts), "mean_length": sum(map(len, texts)) / len(texts)}
        results[name] |= {"empty": texts.count("")}
        results[name] |= {"reward": mean_rewards[name]} if name in mean_rewards else {}
    return results | {"versions": {name: number for name in VERSIONS if (number := _version(name))}}


def _show(results: dict[str, Any]) -> None:
    """Print the results: a table of the tasks, a line for each part."""
    columns = ("shots", "samples", "metric", "value", "stderr")
    if results["tasks"]:
        _say(table([{"task": name} | {c: row[c] for c in columns} for name, row in results["tasks"].items()]))
    if results["leaderboard_average"] is not None:
        _say(f"Open LLM Leaderboard v1, average of the six: {results['leaderboard_average']:.4f}")
    for part in [name for name in PARTS if name in results]:
        row = results[part]
        line = f"{PARTS[part].title}: {row['answers']} answers of {row['mean_length']:.0f} characters on average"
        if "reward" in row:
            error = row["reward"]["stderr"]
            line += f", reward {row['reward']['mean']:.4g}" + ("" if error is None else f" +- {error:.2g}")
        _say(line)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
