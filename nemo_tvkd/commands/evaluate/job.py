"""`nemo-tvkd evaluate`: runs the models over the pairs, one after the other, and says what was found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.commands.evaluate.comparison import compare
from nemo_tvkd.commands.evaluate.figures import Judgement, Others, figures_of, pair_rows, result_of
from nemo_tvkd.commands.evaluate.forward import LOGPS, REWARDS, SHAPING, pair_numbers, stored_shaping
from nemo_tvkd.commands.evaluate.prepare import Evaluation, given, prepare_evaluation
from nemo_tvkd.files import write_result
from nemo_tvkd.losses.reads import LogProb, Quantity, Reward
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero


def main(config: Any) -> int:
    """Check, launch the ranks and evaluate; returns the exit code."""
    job = prepare_evaluation(config)
    if is_rank_zero():
        print("\n".join(job.notes), flush=True)
    return launch.run(evaluate_rank, (config, job), job.ranks)


def evaluate_rank(config: Any, job: Evaluation) -> None:
    """One rank's part of the evaluation; rank 0 prints and writes."""
    launch.join(config.parallel)  # before anything imports NeMo, which it keeps quiet
    from nemo_tvkd.models.conversion import as_nemo

    models = as_nemo({key: (model, "") for key, model in job.models.items()})
    judged, others = judge(config, job, models)
    if is_rank_zero():
        report(config, job, judged, others)
    launch.leave()


def judge(config: Any, job: Evaluation, models: dict[str, Checkpoint]) -> tuple[dict[str, Judgement], Others]:
    """What each checkpoint, and the oracle and the teacher, say of the pairs, on every rank (collective)."""
    references: dict[str, np.ndarray] = {}
    if "reference" in models:
        for key in job.names:  # once for each way of reading the pairs
            if (reading := job.readings[key]) not in references:
                asked: dict[str, Quantity] = {LOGPS: LogProb()}
                references[reading] = pair_numbers(config, models["reference"], "reference", job.items_of(key), asked)[
                    LOGPS
                ]
    judged = {}
    for key in job.names:
        model, asked = models[key], {}
        if not model.is_reward_model:
            asked[LOGPS] = LogProb()
        if model.has_reward_head:
            asked[REWARDS] = Reward()
        items = job.items_of(key)
        numbers = pair_numbers(config, model, key, items, asked)
        lengths = np.array([[len(response) for _, response in item.sequences()] for item in items])
        reference = references.get(job.readings[key])
        judged[key] = Judgement(lengths, numbers.get(LOGPS), reference, numbers.get(REWARDS), config.beta)
    return judged, _others(config, job, models)


def _others(config: Any, job: Evaluation, models: dict[str, Checkpoint]) -> Others:
    others = Others(job.oracle)
    if (key := "oracle.path") in models:
        others.oracle = pair_numbers(config, models[key], key, job.items_of(key), {REWARDS: Reward()})[REWARDS]
    if job.psi is None:
        return others
    if (key := "teacher.path") in models:
        others.shaping = pair_numbers(config, models[key], key, job.items_of(key), {SHAPING: job.psi})[SHAPING]
    else:
        others.shaping = stored_shaping(job.items, job.psi)
    if job.psi.rule.vanishes():  # the rest of the difference is rounding
        others.shaping[:, 1] = others.shaping[:, 0]
    return others


def report(config: Any, job: Evaluation, judged: dict[str, Judgement], others: Others) -> None:
    """Write the JSON and JSONL files that are asked for, and print the tables."""
    from nemo_tvkd.commands.evaluate.tables import show

    columns = others.oracle is not None
    figures = {key: figures_of(found, others, config.calibration_bins) for key, found in judged.items()}
    results = [
        _facts(config, job.names[key], columns) | result_of(found, others, figures[key], config)
        for key, found in judged.items()
    ]
    whole = results[0]
    if len(results) > 1:
        first, *rest = [(found, figures[key]) for key, found in judged.items()]
        names = list(job.names.values())
        compared = [
            {"checkpoint": name, "against": names[0], "pairs": len(job.items), **row}
            for name, row in zip(names[1:], compare(first, rest, config), strict=True)
        ]
        whole = {"checkpoints": results, "comparisons": compared}
    text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
    if config.pairs_output:
        write_result(Path(config.pairs_output), _pair_lines(job, judged, others))
    if config.output:  # last: a recipe's stage is done when it is there
        write_result(Path(config.output), text)
    show(results, whole.get("comparisons", []), config)


def _facts(config: Any, name: str, columns: bool) -> dict[str, Any]:
    """What was evaluated, and how."""
    facts: dict[str, Any] = {"checkpoint": name, "reference": config.reference or None, "beta": config.beta}
    for need in ("oracle", "teacher"):
        source = OmegaConf.to_container(config[need])
        assert isinstance(source, dict)
        facts[need] = next((source[which] for which in given(config[need])), None)
    if columns and not facts["oracle"]:
        facts["oracle"] = "columns"
    if facts["teacher"]:
        facts["shaping"] = OmegaConf.to_container(config.shaping)
    return facts | {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}


def _pair_lines(job: Evaluation, judged: dict[str, Judgement], others: Others) -> str:
    """A JSON object a pair: where it is from, what the other judges say of [chosen, rejected], and the checkpoints.

    Of one checkpoint its numbers stand beside the rest, of several in `checkpoints`.
    """
    rows = [{"checkpoint": job.names[key]} for key in judged]
    columns = [pair_rows(found) for found in judged.values()]
    lines = []
    for index, item in enumerate(job.items):
        line: dict[str, Any] = {"source": item.tokens.source, "pair_id": item.tokens.pair_id}
        for name, numbers in (("oracle", others.oracle), ("shaping", others.shaping)):
            if numbers is not None:
                line[name] = numbers[index].tolist()
                line[f"{name}_margin"] = line[name][0] - line[name][1]
        own = [row | column[index] for row, column in zip(rows, columns, strict=True)]
        line |= own[0] if len(own) == 1 else {"checkpoints": own}
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    return "".join(lines)
