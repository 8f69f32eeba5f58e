"""The inspection: checks, the choice of pairs, what the models say about them; rank 0 writes the page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tvkd import __version__
from nemo_tvkd.checkpoints.hf import Checkpoint, check_architecture, check_heads, check_layout, find_checkpoint
from nemo_tvkd.commands.inspect.numbers import Figures, Pair, Response, psi, ranked, verdict
from nemo_tvkd.commands.inspect.text import pieces, words
from nemo_tvkd.config.paths import check_result, given_paths, held_out
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Mapped
from nemo_tvkd.data.pairs import iter_rows
from nemo_tvkd.data.records import Row
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_result
from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.prepare.encoder import Encoder, check_vocabulary
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero

DATA = "data.validation"


@dataclass
class Inspection:
    """What every rank needs to know."""

    models: dict[str, Checkpoint]
    """"checkpoint" and, where they are asked for, "reference" and "reward_model"."""
    rows: Sequence[Tokenized]
    chosen: list[int] | None
    """Which rows to show; None: as their shaping says."""
    rule: Shaping
    tokenizer: Any
    template: str
    ranks: int
    notes: list[str] = field(default_factory=list)


def run(config: Any) -> int:
    """The command; returns the exit code."""
    job = prepare_inspection(config)
    if is_rank_zero():
        print("\n".join(job.notes), flush=True)
    return launch.run(inspect_rank, (config, job), job.ranks)


def prepare_inspection(config: Any) -> Inspection:
    """Check an inspection's configuration and read its pairs.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    if not config.output:
        raise UserError("output is not set: give the name of the HTML file to write")
    check_result(config.output, "output", "an HTML", given_paths(config.data.validation, DATA))
    if wrong := [number for number in config.pairs if number < 1]:
        raise UserError(f"pairs={wrong[0]}: pairs are counted from 1")
    names = [name for name in ("checkpoint", "reference", "reward_model") if name == "checkpoint" or config[name]]
    models = {name: find_checkpoint(config[name], name) for name in names}
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    for key, model in models.items():
        check_heads(model, key, lm=key != "reward_model", reward=key == "reward_model")
        check_architecture(model.config, key)
        check_layout(model.config, key, *layout)
    encoder = Encoder.build(models["checkpoint"], config.tokenizer, config.data, "tokenizer")
    for key in names[1:]:
        check_vocabulary(models[key], encoder, key, "checkpoint")
    notes: list[str] = []
    rows = encoder.read(held_out(config), DATA, True, notes.append)
    rule = Shaping.of(config.shaping, config.beta)
    chosen = _chosen(config, len(rows))
    name = encoder.template.name
    return Inspection(models, rows, chosen, rule, encoder.tokenizer, name, launch.world_size(config.parallel), notes)


def _chosen(config: Any, count: int) -> list[int] | None:
    """The rows that are shown, from 0, where the configuration alone says which."""
    if not config.pairs:
        return list(range(min(count, config.limit))) if config.order == "file" else None
    if missing := [number for number in config.pairs if number > count]:
        raise UserError(f"pairs={missing[0]}: {DATA} has {count} usable pairs")
    return list(dict.fromkeys(number - 1 for number in config.pairs))


def inspect_rank(config: Any, job: Inspection) -> None:
    """One rank's part; rank 0 writes the page and says where it is."""
    launch.join(config.parallel)  # before anything imports NeMo, which it keeps quiet
    from nemo_tvkd.models.conversion import as_nemo

    job.models = as_nemo({key: (model, "") for key, model in job.models.items()})
    figures = inspect(config, job)
    if figures is not None:
        from nemo_tvkd.commands.inspect.page import html

        file = Path(config.output)
        write_result(file, html(figures))
        print(summary(figures) + f"\nwritten: {file}", flush=True)
    launch.leave()


@dataclass
class Answers:
    """What the models say."""

    chosen: list[int]
    """The rows that are shown, from 0, in their order on the page."""
    said: dict[str, Any]
    """By model, of each of these rows: a dict of arrays (`statistics.Arrays`) of either response."""
    margins: list[float]
    """Psi_w - Psi_l of all rows where the choice depended on them; else none."""


def inspect(config: Any, job: Inspection) -> Figures | None:
    """The page's numbers, on rank 0 (collective, in a process group that exists already)."""
    answers = _ask(config, job)
    return _figures(config, job, answers) if is_rank_zero() else None


def _ask(config: Any, job: Inspection) -> Answers:
    """One model after the other; first, where the pairs are chosen by their shaping, the teacher's of all pairs."""
    import nemo_tvkd.commands.inspect.statistics as ask
    from nemo_tvkd.models.frozen import load_frozen, measure, release_memory

    memory, size = config.parallel.lm_head_memory_mib * 2**20, config.micro_batch_size
    model = job.models["checkpoint"]
    module = load_frozen(model, "checkpoint", config.precision, memory)
    margins: list[float] = []
    if job.chosen is None:
        items: Sequence[Item] = Mapped(Item, job.rows)
        found = measure(module, items, size, ask.values(job.rule.statistic))
        sums = [[float(psi(job.rule, said["value"]).sum()) for said in both] for both in found]
        margins = [job.rule.margin(chosen, rejected) for chosen, rejected in sums]
    chosen = job.chosen if job.chosen is not None else ranked(margins, config.order)[: config.limit]
    rows = [job.rows[index] for index in chosen]
    shown = [Item(row) for row in rows]
    asked = ask.tokens(job.rule.statistic)
    if model.has_reward_head and "reward_model" not in job.models:
        asked = ask.together(asked, ask.rewards)
    said = {"checkpoint": measure(module, shown, size, asked)}
    del module
    for key, question in (("reference", ask.logps), ("reward_model", ask.rewards)):
        if key in job.models:
            release_memory()
            module = load_frozen(job.models[key], key, config.precision, memory, lm_head=key == "reference")
            said[key] = measure(module, shown, size, question)
            del module
    for key, found in said.items():
        check_finite(f"{key}: {config[key]}", rows, found)
    return Answers(chosen, said, margins)


def check_finite(who: str, rows: Sequence[Tokenized], found: Sequence[Any]) -> None:
    """Of what a model says of each row's chosen and rejected response.

    Raises:
        UserError: a number that is not finite; names the pair.
    """
    for row, both in zip(rows, found, strict=True):
        for side, arrays in zip(("chosen", "rejected"), both, strict=True):
            if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
                response = f"the {side} response of {row.source}"
                raise UserError(f"{who}: {bad[0]} of {response} is not finite: the model's weights are broken")


def _figures(config: Any, job: Inspection, answers: Answers) -> Figures:
    rows = [job.rows[index] for index in answers.chosen]
    texts = _texts(config, {row.source for row in rows})
    pairs = []
    for position, (index, row) in enumerate(zip(answers.chosen, rows, strict=True)):
        text = texts[row.source]
        both = [{key: found[position][side] for key, found in answers.said.items()} for side in range(2)]
        chosen, rejected = (_response(job, row, side, said) for side, said in enumerate(both))
        pairs.append(Pair(index + 1, row, text.id, list(text.messages), chosen, rejected, job.rule))
    margins = answers.margins or [pair.margin for pair in pairs]
    measured = zip(margins, map(_length_difference, job.rows if answers.margins else rows), strict=True)
    figures = Figures(pairs, job.rule, config.beta, _facts(config, job, len(pairs)), _notes(job), list(measured))
    figures.words = words(job.tokenizer, sorted(_all_top_ids(pairs)))
    return figures


def _response(job: Inspection, row: Tokenized, side: int, said: dict[str, Any]) -> Response:
    ids = (row.chosen_ids, row.rejected_ids)[side]
    assert ids is not None
    own = said["checkpoint"]
    return Response(
        ids=ids,
        pieces=pieces(job.tokenizer, ids),
        psi=psi(job.rule, own["value"]),
        logp=own["logp"],
        value=own["value"] if not job.rule.of_actions else None,
        ref=said["reference"]["logp"] if "reference" in said else None,
        reward=said.get("reward_model", own).get("reward"),
        top_ids=own["top_ids"],
        top_p=own["top_p"],
        label=(row.chosen_reward, row.rejected_reward)[side],
    )


def _texts(config: Any, sources: set[str]) -> dict[str, Row]:
    """The rows as they stand in the data, by where they come from."""
    found: dict[str, Row] = {}
    for row in iter_rows(held_out(config), on_bad_row="skip", key=DATA):
        if row.source in sources:
            found[row.source] = row
        if len(found) == len(sources):
            break
    return found


def _length_difference(row: Tokenized) -> int:
    assert row.rejected_ids is not None
    return len(row.chosen_ids) - len(row.rejected_ids)


def _all_top_ids(pairs: Iterable[Pair]) -> set[int]:
    return {int(i) for pair in pairs for side in pair.sides if side.top_ids is not None for i in side.top_ids.flat}


def _facts(config: Any, job: Inspection, shown: int) -> list[tuple[str, str]]:
    rule = job.rule
    facts = [(key.replace("_", " "), str(config[key])) for key in ("checkpoint", "reference", "reward_model")]
    facts = [(name, value) for name, value in facts if value]
    facts += [("data", ", ".join(held_out(config)))]
    facts += [("pairs", f"{shown} of {len(job.rows)}, order: {'as asked' if config.pairs else config.order}")]
    facts += [("value", rule.statistic.kind)]
    if rule.statistic.kind == "soft_value":
        facts.append(("τ", f"{rule.statistic.temperature:g}"))
    if not rule.of_actions:
        facts += [("γ", f"{rule.gamma:g}"), ("form", rule.form), ("terminal", rule.terminal)]
    facts += [("β", f"{config.beta:g}"), ("chat template", job.template), ("precision", config.precision)]
    facts.append(("made by", f"nemo-tvkd {__version__}"))
    return facts


def _notes(job: Inspection) -> list[str]:
    """What of the rule makes the teacher vanish, and what was cut to length."""
    notes = []
    if why := job.rule.vanishes():
        notes.append(f"The teacher vanishes from every pair's loss: {why.replace('algorithm.', '')}.")
    if cut := sum(row.truncated for row in job.rows):
        notes.append(
            f"{cut} of {len(job.rows)} pairs were cut to length: a cut response's last value is behind no end token."
        )
    return notes


def summary(figures: Figures) -> str:
    """A line for the terminal: how often the teacher agrees with the label."""
    margins = [margin for margin, _ in figures.margins]
    counts = {name: sum(verdict(m) == name for m in margins) for name in ("agrees", "disagrees", "tie")}
    mean = math.fsum(margins) / len(margins) if all(map(math.isfinite, margins)) else math.nan
    return (
        f"{len(figures.pairs)} pairs shown; of {len(margins)} measured, the teacher's shaping agrees with the label in "
        f"{counts['agrees']}, disagrees in {counts['disagrees']} and prefers neither in {counts['tie']}; "
        f"mean shaping margin {mean:.4g} {figures.rule.unit}"
    )
