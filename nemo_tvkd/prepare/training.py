"""From a configuration to what a job needs: checked values, tokenised rows, scores. No NeMo, no process group.

Everything a user can get wrong is found here, before ranks start or a queue is waited for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from nemo_tvkd.checkpoints.hf import (
    Checkpoint,
    check_architecture,
    check_heads,
    check_layout,
    find_checkpoint,
    newest_complete,
)
from nemo_tvkd.config.compose import flatten
from nemo_tvkd.config.paths import check_writable, path_list, weighted_paths
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Chained, Mapped, Selected
from nemo_tvkd.data.noise import is_flipped
from nemo_tvkd.data.readings import pair_ids, tokens_of
from nemo_tvkd.data.stream import Mixture
from nemo_tvkd.data.tokenizer import Dialogue
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.prepare.encoder import Encoder
from nemo_tvkd.prepare.frozen import resolve, training_sources, unused
from nemo_tvkd.prepare.needs import Needs
from nemo_tvkd.prepare.oracles import standardized
from nemo_tvkd.runtime.launch import world_size


@dataclass
class Prepared:
    """What a training job starts from."""

    student: Checkpoint
    train: Sequence[Item]
    validation: Sequence[Item]
    max_steps: int
    ranks: int
    frozen: dict[str, Checkpoint] = field(default_factory=dict)
    """Models that run online, by what they provide."""
    notes: list[str] = field(default_factory=list)
    flipped: Sequence[Item] = field(default_factory=list)
    """Training pairs with a changed label (data.label_noise), as they are after it."""
    dialogue: Dialogue | None = None
    """What the run's checkpoints must carry beside what the student's has."""
    mixture: Mixture | None = None
    """The sources of the training items and their shares of an epoch, where data.train has weights."""


def prepare_training(config: Any) -> Prepared:
    """Check a training configuration and read its data.

    Raises:
        UserError: anything a user can get wrong, one line, the key or row named.
    """
    check_values(config)
    notes: list[str] = []
    method = METHODS[config.algorithm.name]
    if method.pairs and config.data.assistant_turns != "last":
        raise UserError(
            f"data.assistant_turns={config.data.assistant_turns} trains every answer of a conversation, with "
            f"algorithm=sft alone: algorithm={config.algorithm.name} compares pairs, which differ in the last answer"
        )
    warnings = method.check(config.algorithm)
    student = find_checkpoint(config.student.path, "student.path")
    check_architecture(student.config, "student.path")
    check_heads(student, "student.path", lm="lm" in method.heads(config.algorithm))
    ranks = world_size(config.parallel)
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    check_layout(student.config, "student.path", *layout)
    check_batches(config, ranks // math.prod(layout))
    check_output(config)
    check_writable(config.trainer.output_dir, "trainer.output_dir")
    encoder = Encoder.build(student, config.student.tokenizer, config.data, "student.tokenizer")
    dialogue = encoder.dialogue(config.student.tokenizer)
    notes += _end_token_note(encoder, dialogue)
    needs = Needs(encoder, method.pairs, require={c.column: c.key for c in method.columns(config.algorithm)})
    resolve(needs, training_sources(config, method), config, notes.append)
    train, mixture = _read_train(config.data.train, needs, notes)
    validation: Sequence[Item] = []
    if config.data.validation:
        validation = needs.read(path_list(config.data.validation, "data.validation"), "data.validation", notes.append)
    asked = method.frozen(config.algorithm)
    warnings = unused(config, asked, f"algorithm={config.algorithm.name}") + warnings
    notes += [f"warning: {line}" for line in warnings]
    for name in asked:
        if config[name].get("normalize") == "zscore":
            train, validation = standardized(needs, name, train, validation, notes.append)
    train, flipped = _with_label_noise(config.data, method.pairs, train, notes)
    return Prepared(
        student=student,
        train=train,
        validation=validation,
        max_steps=_max_steps(config.trainer, len(train)),
        ranks=ranks,
        frozen=needs.frozen,
        notes=notes,
        flipped=flipped,
        dialogue=dialogue,
        mixture=mixture,
    )


def _read_train(value: Any, needs: Needs, notes: list[str]) -> tuple[Sequence[Item], Mixture | None]:
    """The training items; where data.train has weights, source by source, with their shares of an epoch."""
    key = "data.train"
    paths, weights = weighted_paths(value, key)
    if weights is None:
        return needs.read(paths, key, notes.append), None
    parts = [needs.read([path], key, notes.append) for path in paths]
    mixture = Mixture.of(paths, weights, [len(part) for part in parts], key)
    notes.append(mixture.describe(paths, key))
    return Chained(parts), mixture


def _with_label_noise(
    data: Any, pairs: bool, items: Sequence[Item], notes: list[str]
) -> tuple[Sequence[Item], Sequence[Item]]:
    """The training items, some with a changed label (data.label_noise), and those alone."""
    share, seed = data.label_noise, data.label_noise_seed
    if not share:
        return items, []
    if not pairs:
        raise UserError(f"data.label_noise={share} exchanges chosen and rejected responses: algorithm=sft has no pairs")
    chosen = np.array([is_flipped(pair_id, share, seed) for pair_id in pair_ids(tokens_of(items))])
    changed, flipped = _flipped(items, chosen)
    notes.append(
        f"data.label_noise={share}: {len(flipped)} of {len(items)} training pairs are flipped (label_noise.json)"
    )
    return changed, flipped


def _flipped(items: Sequence[Item], chosen: np.ndarray) -> tuple[Sequence[Item], Sequence[Item]]:
    """The items with those that are `chosen` (bool [N]) flipped, and these alone."""
    changed = Mapped(_flipped_if, items, chosen)
    return changed, Selected(changed, np.flatnonzero(chosen))


def _flipped_if(item: Item, flip: bool) -> Item:
    return item.flipped() if flip else item


def _end_token_note(encoder: Encoder, dialogue: Dialogue | None) -> list[str]:
    """A warning where a template's turns end otherwise than data.end_token says."""
    if dialogue is None or not dialogue.end_token or dialogue.end_id == encoder.tokenizer.eos_token_id:
        return []
    ends = encoder.tokenizer.convert_ids_to_tokens(dialogue.end_id)
    return [
        f"warning: data.end_token={dialogue.end_token} ends no response: by template {encoder.template.name} they "
        f"end with {ends}"
    ]


def check_batches(config: Any, replicas: int) -> None:
    """Batch arithmetic: the global batch is micro batches x model replicas x accumulation steps."""
    trainer = config.trainer
    unit = trainer.micro_batch_size * replicas
    if trainer.global_batch_size % unit:
        raise UserError(
            f"trainer.global_batch_size={trainer.global_batch_size} is not divisible by trainer.micro_batch_size="
            f"{trainer.micro_batch_size} x {replicas} data-parallel replicas"
        )


FREE_TO_CHANGE = (
    *("parallel.", "logger.", "data.validation", "trainer.output_dir", "trainer.resume", "trainer.recompute"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.micro_batch_size", "trainer.keep_checkpoints"),
    *("trainer.val_interval", "trainer.save_interval", "trainer.log_interval", "teacher.mode", "teacher.scores"),
    *("reference.mode", "reference.scores"),
)
"""What a resumed run may do differently and still be the same run."""
OLDER = {
    **{"data.label_noise": 0.0, "data.label_noise_seed": 0, "data.end_token": "", "data.pad_token": ""},
    "data.assistant_turns": "last",
}
"""What the configurations of runs mean that were saved before there were these keys."""


def check_output(config: Any) -> None:
    """A used output directory is only entered to continue the run that it holds."""
    directory = Path(config.trainer.output_dir)
    if config.trainer.resume == "never" and (directory / "metrics.jsonl").exists():
        raise UserError(f"trainer.output_dir: {directory} holds a run; remove it, or use trainer.resume=auto to go on")
    if newest_complete(directory / "checkpoints") is None or not (directory / "config.yaml").is_file():
        return
    saved, wanted = (flatten(OmegaConf.to_container(c)) for c in (OmegaConf.load(directory / "config.yaml"), config))
    saved = OLDER | saved
    # A key that only one of them knows is another version's; with another method all of its keys are.
    for key in sorted(saved.keys() & wanted.keys(), key=lambda k: (k != "algorithm.name", k)):
        there, here = saved[key], wanted[key]
        free = key.startswith(FREE_TO_CHANGE) or (
            key in ("oracle.mode", "oracle.scores") and _one_oracle(saved, wanted)
        )
        if not free and there != here and not _same_paths(there, here):
            raise UserError(
                f"trainer.output_dir: {directory} holds a run with {key}={there}, not {here}: "
                "continue it as it was, or choose another directory"
            )


def _one_oracle(saved: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether oracle.path says whose the rewards are, and nothing depends on where they come from."""
    modes = (saved["oracle.mode"], wanted["oracle.mode"])
    return bool(wanted["oracle.path"]) and wanted["oracle.normalize"] == "none" and "columns" not in modes


def _same_paths(one: Any, other: Any) -> bool:
    ones, others = ([value] if isinstance(value, str) else value for value in (one, other))
    if not (isinstance(ones, list) and isinstance(others, list) and len(ones) == len(others)):
        return False
    if not all(isinstance(value, str) for value in ones + others):
        return False
    one_place, other_place = ([Path(value).expanduser().resolve() for value in values] for values in (ones, others))
    return one_place == other_place


def _max_steps(trainer: Any, rows: int) -> int:
    if trainer.max_steps is not None:
        return int(trainer.max_steps)
    steps = trainer.max_epochs * rows // trainer.global_batch_size
    if steps == 0:
        raise UserError(
            f"trainer.global_batch_size={trainer.global_batch_size} is more than the {rows} rows of "
            f"{trainer.max_epochs} epochs: no step would be made"
        )
    return int(steps)
