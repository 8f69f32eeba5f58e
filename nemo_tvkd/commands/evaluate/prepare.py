"""From a configuration to what an evaluation needs: checked checkpoints and pairs. No NeMo, no process group."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tvkd.checkpoints.hf import Checkpoint, check_architecture, check_heads, check_layout, find_checkpoint
from nemo_tvkd.config.paths import check_result, given_paths, held_out
from nemo_tvkd.config.values import as_list, check_values
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.reads import Psi, Quantity, Reward, source
from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.prepare.encoder import Encoder, check_vocabulary
from nemo_tvkd.prepare.frozen import resolve, sources_of
from nemo_tvkd.prepare.needs import Needs, Say, title
from nemo_tvkd.runtime.launch import world_size

SAME = ""
"""The reading of models that read pairs as the first checkpoint does."""


@dataclass
class Evaluation:
    """What every rank needs to know."""

    models: dict[str, Checkpoint]
    """By configuration key: the checkpoints in their order, then "reference", "oracle.path" and "teacher.path" where
    they are asked for and run here."""
    items: Sequence[Item]
    """The pairs that all of them can read, with what score stores say."""
    ranks: int
    readings: dict[str, str] = field(default_factory=dict)
    """By key, the name in `Item.readings` of how a model reads the pairs; SAME: as the first checkpoint does."""
    names: dict[str, str] = field(default_factory=dict)
    """Of the checkpoints: their paths as given, by key."""
    oracle: np.ndarray | None = None
    """[P, 2] rewards of a store or of the data's columns (reward units)."""
    psi: Psi | None = None
    """The teacher's shaping, where there is a teacher."""
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Tokenized]:
        """The pairs as the first checkpoint reads them."""
        return [item.tokens for item in self.items]

    def items_of(self, key: str) -> Sequence[Item]:
        """The pairs as a model reads them."""
        return Reading(self.items, self.readings.get(key, SAME))


class Reading(Sequence[Item]):
    """Items with nothing but the tokens of one reading, made when they are asked for."""

    def __init__(self, items: Sequence[Item], name: str) -> None:
        self.items, self.name = items, name

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        item = self.items[index]
        other = item.readings.get(self.name)
        if other is None:
            return Item(item.tokens)
        return Item(other.tokens, readings={self.name: other} if other.states else {})


def prepare_evaluation(config: Any) -> Evaluation:
    """Check an evaluation's configuration and read its pairs.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    if not 0 < config.confidence < 1:
        raise UserError(f"confidence={config.confidence} must lie between 0 and 1, as 0.95 does")
    _check_outputs(config)
    names = _keys(config)
    models = {key: find_checkpoint(path, key) for key, path in names.items()}
    checkpoints = dict(models)
    if config.reference:
        models["reference"] = find_checkpoint(config.reference, "reference")
        for key in checkpoints:
            if models[key].is_reward_model:
                raise UserError(f"reference is set, but {names[key]} is a reward model, whose rewards are its own")
        for key, model in models.items():
            check_heads(model, key, lm=True)
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    for key, model in models.items():
        check_architecture(model.config, key)
        check_layout(model.config, key, *layout)
    notes: list[str] = []
    readings, needs = _readings(config, models, checkpoints, notes.append)
    paths = held_out(config)
    items = needs.read(paths, "data.validation", notes.append)
    job = Evaluation(models, items, world_size(config.parallel), readings, names, notes=notes)
    job.oracle = _known_rewards(config, needs, items, notes.append)
    if given(config.teacher):
        _set_teacher(config, needs, job)
    for name, checkpoint in needs.frozen.items():
        models[f"{name}.path"] = checkpoint
        readings[f"{name}.path"] = name if name in needs.readers else SAME
    return job


def _check_outputs(config: Any) -> None:
    data = given_paths(config.data.validation, "data.validation")
    for key, kind in (("output", "a JSON"), ("pairs_output", "a JSONL")):
        if path := config[key]:
            check_result(path, key, kind, data)
    if config.output and config.pairs_output and Path(config.output).resolve() == Path(config.pairs_output).resolve():
        raise UserError(f"output and pairs_output are both {config.output}: give the pairs another file")


def _keys(config: Any) -> dict[str, str]:
    """The checkpoints by their configuration key: one, or checkpoint[0] and so on of a list."""
    paths = given_paths(config.checkpoint, "checkpoint")
    if len(paths) < 2:
        return {"checkpoint": paths[0] if paths else ""}
    return {f"checkpoint[{index}]": path for index, path in enumerate(paths)}


def _readings(
    config: Any, models: dict[str, Checkpoint], checkpoints: dict[str, Checkpoint], say: Say
) -> tuple[dict[str, str], Needs]:
    """How each checkpoint (and the reference with it) reads pairs, and everything that pairs are read with.

    Those with another tokenizer or chat template than the first are further readers of the pairs, as a teacher is.
    """
    encoders: dict[str, Encoder] = {}
    readings: dict[str, str] = {}
    first = None
    for index, (key, checkpoint) in enumerate(checkpoints.items()):
        named = "tokenizer" if config.tokenizer or len(checkpoints) == 1 else key
        encoder = Encoder.build(checkpoint, config.tokenizer, config.data, named, shared=first)
        first = first or encoder
        same = [name for name, other in encoders.items() if _read_alike(encoder, other)]
        readings[key] = same[0] if same else SAME if not index else f"checkpoint/{index}"
        encoders.setdefault(readings[key], encoder)
        if "reference" in models:
            check_vocabulary(models["reference"], encoder, "reference", key)
    needs = _needs(config, encoders[SAME], next(iter(checkpoints)), say)
    for name, encoder in encoders.items():
        if name != SAME:
            needs.readers[name] = encoder
            say(f"{title(name)} reads pairs its own way (template {encoder.template.name})")
    return readings, needs


def _read_alike(one: Encoder, other: Encoder) -> bool:
    return (one.fingerprint, one.template.fingerprint) == (other.fingerprint, other.template.fingerprint)


def given(section: Any) -> list[str]:
    """Which of a judge's `scores` and `path` are set."""
    return [name for name in ("scores", "path") if any(as_list(section[name]))]


JUDGES = ("teacher", "oracle")
"""Sections of models that are compared with."""


def _needs(config: Any, encoder: Encoder, key: str, say: Say) -> Needs:
    """The oracle and the teacher, checked as for training (`key` is the first checkpoint's)."""
    needs = Needs(encoder, pairs=True, key=key, owner=key)
    quantities: dict[str, Quantity] = {"teacher": Psi(Shaping.of(config.shaping, config.beta)), "oracle": Reward()}
    for name in JUDGES:
        section, asked = config[name], given(config[name])
        if asked:
            mode = {"scores": "cached", "path": "online"}[asked[0]]
            resolve(needs, sources_of(name, section, [quantities[name]], False, "evaluate", mode), config, say)
        elif unread := [entry for entry in ("tokenizer", "chat_template") if section[entry]]:
            raise UserError(f"{name}.{unread[0]} is set without {name}.path or {name}.scores, which it would be about")
    return needs


def _known_rewards(config: Any, needs: Needs, items: Sequence[Item], say: Say) -> np.ndarray | None:
    """[P, 2] the oracle's rewards where they are known already: of its store, or else the data's columns."""
    if given(config.oracle):
        if "oracle" in needs.frozen:
            return None
        return np.array([item.numbers[source("oracle", Reward())] for item in items], dtype=np.float64)
    found = [(item.tokens.chosen_reward, item.tokens.rejected_reward) for item in items]
    complete = [(chosen, rejected) for chosen, rejected in found if chosen is not None and rejected is not None]
    if len(complete) == len(found):
        return np.array(complete, dtype=np.float64)
    if complete:
        say(
            f"data.validation: {len(found) - len(complete)} of {len(found)} pairs have no reward columns: "
            "preferences are not told apart by strength"
        )
    return None


def _set_teacher(config: Any, needs: Needs, job: Evaluation) -> None:
    job.psi = Psi(Shaping.of(config.shaping, config.beta))
    if reason := job.psi.rule.vanishes():
        job.notes.append(
            f"warning: the teacher says the same of both responses: {reason}. There is nothing to agree with."
        )
    if needs.aligned and len(job.names) > 1:
        job.notes.append(
            f"the teacher's values are taken at the states of {next(iter(job.names))}, for all checkpoints"
        )
