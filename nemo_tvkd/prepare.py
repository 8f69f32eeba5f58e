"""From a configuration to what a job needs: checked values, tokenised rows, scores. No NeMo, no process group.

Everything a user can get wrong is found here, before ranks start or a queue is waited for.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tvkd.compose import flatten
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.pairs import read_rows
from nemo_tvkd.data.template import Template, Tokenized, tokenize_rows
from nemo_tvkd.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses import METHODS, REFERENCE_LOGPS, TEACHER_VALUE, Method
from nemo_tvkd.losses.tvkd import teacher_vanishes
from nemo_tvkd.models.hf import (
    Checkpoint,
    check_architecture,
    check_layout,
    find_checkpoint,
    newest_complete,
    weights_fingerprint,
)
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.runtime.launch import world_size
from nemo_tvkd.scores.store import ScoreStore
from nemo_tvkd.values import check_values, check_writable, path_list


@dataclass
class Encoder:
    """A tokenizer with its chat template, and the lengths that apply: text in, ids out."""

    tokenizer: Any
    template: Template
    data: Any

    @classmethod
    def build(cls, checkpoint: Checkpoint, tokenizer: str, data: Any, key: str) -> "Encoder":
        """The tokenizer named by `key`.tokenizer, or the checkpoint's own."""
        loaded = load_tokenizer(tokenizer or str(checkpoint.hf_dir), key)
        size, width = len(loaded), int(checkpoint.config.vocab_size)
        if size > width and max(loaded.get_vocab().values()) >= width:
            raise UserError(f"{key}: the tokenizer has {size} entries but the model's vocabulary has {width}")
        return cls(loaded, Template(loaded, data.chat_template, _end_ids(checkpoint)), data)

    @property
    def fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def read(self, paths: list[str], key: str, pairs: bool, report: Any = print) -> list[Tokenized]:
        """Tokenised rows of `paths`; says what was read, cut and skipped."""
        data = self.data
        rows, read = read_rows(paths, need_rejected=pairs, on_bad_row=data.on_bad_row, key=key)
        lengths = {"max_length": data.max_length, "max_prompt_length": data.max_prompt_length}
        tokenized, made = tokenize_rows(rows, self.template, on_bad_row=data.on_bad_row, **lengths)
        bad = read.bad + made.bad
        kind = "pairs" if pairs else "examples"
        report(
            f"{key}: {len(tokenized)} {kind} from {', '.join(paths)}; template {self.template.name}; "
            f"cut to length: {made.prompts_truncated} prompts, {made.responses_truncated} responses; "
            f"skipped: {len(bad)} bad rows" + (f", first {bad[0]}" if bad else "")
        )
        if not tokenized:
            raise UserError(f"{key}: no usable rows in {', '.join(paths)}")
        return tokenized


def _end_ids(checkpoint: Checkpoint) -> list[int]:
    eos = getattr(checkpoint.config, "eos_token_id", None)
    return [int(e) for e in (eos if isinstance(eos, list) else [eos]) if e is not None]


@dataclass
class Prepared:
    """What a training job starts from."""

    student: Checkpoint
    train: list[Item]
    validation: list[Item]
    max_steps: int
    ranks: int
    frozen: dict[str, Checkpoint] = field(default_factory=dict)
    """Models that run online, by what they provide."""
    notes: list[str] = field(default_factory=list)


def prepare_training(config: Any) -> Prepared:
    """Check a training configuration and read its data.

    Raises:
        UserError: anything a user can get wrong, one line, the key or row named.
    """
    check_values(config)
    notes: list[str] = []
    method = METHODS[config.algorithm.name]
    student = find_checkpoint(config.student.path, "student.path")
    check_architecture(student.config, "student.path")
    ranks = world_size(config.parallel)
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    check_layout(student.config, "student.path", *layout)
    check_batches(config, ranks // math.prod(layout))
    check_output(config)
    check_writable(config.trainer.output_dir, "trainer.output_dir")
    encoder = Encoder.build(student, config.student.tokenizer, config.data, "student.tokenizer")
    frozen, stores = _frozen_models(config, method, student, encoder, layout)
    train = encoder.read(path_list(config.data.train, "data.train"), "data.train", method.pairs, notes.append)
    validation = []
    if config.data.validation:
        paths = path_list(config.data.validation, "data.validation")
        validation = encoder.read(paths, "data.validation", method.pairs, notes.append)
    notes += _unused(config, method.needs(config.algorithm))
    if reason := _vanishing(config):
        notes.append(f"warning: the teacher does not enter the loss: {reason}. The loss is reference-free DPO.")
    return Prepared(
        student=student,
        train=_with_scores(train, stores),
        validation=_with_scores(validation, stores),
        max_steps=_max_steps(config.trainer, len(train)),
        ranks=ranks,
        frozen=frozen,
        notes=notes,
    )


def _vanishing(config: Any) -> str | None:
    if config.algorithm.name != "tvkd":
        return None
    s = config.algorithm.shaping
    return teacher_vanishes(kind=s.value, form=s.form, terminal=s.terminal, gamma=s.gamma, alpha=config.algorithm.alpha)


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


def check_output(config: Any) -> None:
    """A used output directory is only entered to continue the run that it holds."""
    directory = Path(config.trainer.output_dir)
    if config.trainer.resume == "never" and (directory / "metrics.jsonl").exists():
        raise UserError(f"trainer.output_dir: {directory} holds a run; remove it, or use trainer.resume=auto to go on")
    if newest_complete(directory / "checkpoints") is None or not (directory / "config.yaml").is_file():
        return
    saved, wanted = (flatten(OmegaConf.to_container(c)) for c in (OmegaConf.load(directory / "config.yaml"), config))
    # A key that only one of them knows is another version's; with another method all of its keys are.
    for key in sorted(saved.keys() & wanted.keys(), key=lambda k: (k != "algorithm.name", k)):
        there, here = saved[key], wanted[key]
        if not key.startswith(FREE_TO_CHANGE) and there != here and not _same_paths(there, here):
            raise UserError(
                f"trainer.output_dir: {directory} holds a run with {key}={there}, not {here}: "
                "continue it as it was, or choose another directory"
            )


def _same_paths(one: Any, other: Any) -> bool:
    ones, others = ([value] if isinstance(value, str) else value for value in (one, other))
    if not (isinstance(ones, list) and isinstance(others, list) and len(ones) == len(others)):
        return False
    if not all(isinstance(value, str) for value in ones + others):
        return False
    return [Path(value).resolve() for value in ones] == [Path(value).resolve() for value in others]


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


Stores = dict[str, ScoreStore]


def _frozen_models(
    config: Any, method: Method, student: Checkpoint, encoder: Encoder, layout: tuple[int, int]
) -> tuple[dict[str, Checkpoint], Stores]:
    """The online models and the score stores that a method needs, checked against the student."""
    frozen: dict[str, Checkpoint] = {}
    stores: Stores = {}
    needs = method.needs(config.algorithm)
    for need in (TEACHER_VALUE, REFERENCE_LOGPS):
        if need not in needs:
            continue
        section = config[need]
        if section.mode == "online" and section.scores:
            raise UserError(f"{need}.scores is set but {need}.mode=online would not read it: set {need}.mode=cached")
        path = section.path or (config.student.path if need == REFERENCE_LOGPS else "")
        if section.mode == "online":
            checkpoint = find_checkpoint(path, f"{need}.path")
            check_architecture(checkpoint.config, f"{need}.path")
            check_layout(checkpoint.config, f"{need}.path", *layout)
            check_vocabulary(checkpoint, encoder, f"{need}.path", "student.path")
            frozen[need] = checkpoint
        else:
            stores[need] = _open_store(config, need, path, encoder)
    return frozen, stores


def _unused(config: Any, needs: frozenset[str]) -> list[str]:
    """Sections that are filled in but not read by the method."""
    return [
        f"warning: {need}.{name} is set but algorithm={config.algorithm.name} reads no {need}"
        for need in (TEACHER_VALUE, REFERENCE_LOGPS)
        for name in ("path", "scores")
        if need not in needs and config[need][name]
    ]


def check_vocabulary(checkpoint: Checkpoint, encoder: Encoder, key: str, owner: str) -> None:
    """A model that reads the ids of `owner`'s tokenizer (both are configuration keys) must mean the same by them."""
    largest = max(encoder.tokenizer.get_vocab().values())
    if largest >= checkpoint.config.vocab_size:
        raise UserError(
            f"{key}: its vocabulary of {checkpoint.config.vocab_size} is smaller than the {largest + 1} token ids it "
            f"would read: it must share {owner}'s tokenizer"
        )
    try:
        own = load_tokenizer(str(checkpoint.hf_dir), key)
    except UserError:
        return  # a checkpoint without a tokenizer: the vocabulary size is all there is to compare
    if tokenizer_fingerprint(own) != encoder.fingerprint:
        raise UserError(f"{key}: its tokenizer is not {owner}'s, whose token ids it would read")


def _open_store(config: Any, need: str, path: str, encoder: Encoder) -> ScoreStore:
    section = config[need]
    key = f"{need}.scores"
    if not section.scores:
        raise UserError(f"{key} is not set: {need}.mode=cached reads a score store that `nemo-tvkd score` wrote")
    store = ScoreStore.open(section.scores, key)
    expected: dict[str, Any] = {
        "tokenizer": encoder.fingerprint,
        "chat_template": encoder.template.fingerprint,
        "max_length": config.data.max_length,
        "max_prompt_length": config.data.max_prompt_length or config.data.max_length - 1,
    }
    if path and is_rank_zero():  # reading all weights once is enough
        expected["weights"] = weights_fingerprint(find_checkpoint(path, f"{need}.path"))
    what = ["logprob"]
    if need == TEACHER_VALUE:
        shaping = config.algorithm.shaping
        what = ["value"]
        expected["value_kind"] = shaping.value
        if shaping.value == "soft_value":
            expected["temperature"] = soft_value_temperature(config.algorithm)
    store.check(what=what, key=key, **expected)
    return store


def soft_value_temperature(algorithm: Any) -> float:
    """tau: algorithm.shaping.temperature, or beta (Lemma 1)."""
    return float(algorithm.shaping.temperature or algorithm.beta)


def _with_scores(rows: list[Tokenized], stores: Stores) -> list[Item]:
    for need, store in stores.items():
        store.check_covers([r.pair_id for r in rows], [r.source for r in rows], f"{need}.scores")
    items = []
    for row in rows:
        item = Item(row)
        if TEACHER_VALUE in stores:
            found = stores[TEACHER_VALUE].get(row.pair_id)
            assert found.chosen_value is not None
            assert found.rejected_value is not None
            item.teacher_values = (found.chosen_value, found.rejected_value)
        if REFERENCE_LOGPS in stores:
            found = stores[REFERENCE_LOGPS].get(row.pair_id)
            assert found.chosen_logprob is not None
            assert found.rejected_logprob is not None
            item.reference_logps = (found.chosen_logprob, found.rejected_logprob)
        items.append(item)
    return items
