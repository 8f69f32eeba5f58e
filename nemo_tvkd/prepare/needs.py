"""What a method needs of frozen models: the online ones, the score stores, and pairs joined with what they say.

A teacher or an oracle may have another tokenizer and chat template than the student. It then reads the pairs its own
way. Rewards are numbers of responses, but a teacher's values live at its own states: sums that telescope need their
ends alone; others take, at each of the student's states, the value of the teacher's state that has read as many
characters (:mod:`nemo_tvkd.data.align`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_tvkd.checkpoints.hf import (
    Checkpoint,
    check_architecture,
    check_heads,
    check_layout,
    find_checkpoint,
    weights_fingerprint,
)
from nemo_tvkd.data.align import align_states
from nemo_tvkd.data.batch import Item, OtherReading
from nemo_tvkd.data.lazy import Lazy, Mapped
from nemo_tvkd.data.readings import count_truncated, pair_ids, read_by_all, sources
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.data.tokenizer import TOKENIZER_FILES
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses import ORACLE_REWARDS, REFERENCE_LOGPS, TEACHER_VALUE
from nemo_tvkd.losses.tvkd import ends_suffice
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic
from nemo_tvkd.prepare.encoder import Encoder, check_vocabulary
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.scores.store import ScoreStore

Say = Callable[[str], None]
STORED = {TEACHER_VALUE: "value", REFERENCE_LOGPS: "logprob", ORACLE_REWARDS: "reward"}
"""What a store must hold to provide something."""


def provides(name: str) -> str:
    """What a frozen model provides, from its name: a further oracle's is oracle/1, and so on."""
    return name.partition("/")[0]


def title(name: str) -> str:
    """What a frozen model is called in a sentence."""
    return name.replace("/", " ")


def option(name: str, entry: str) -> str:
    """The configuration key of a frozen model: teacher.path, or oracle.path[1] of a further oracle."""
    need, _, index = name.partition("/")
    return f"{need}.{entry}[{index}]" if index else f"{need}.{entry}"


@dataclass
class Needs:
    """Everything that a training job reads pairs with."""

    encoder: Encoder
    pairs: bool
    """Whether the method trains on pairs (else on examples)."""
    frozen: dict[str, Checkpoint] = field(default_factory=dict)
    """Models that run online, by name: what they provide; of a further oracle oracle/1, and so on."""
    stores: dict[str, tuple[ScoreStore, str]] = field(default_factory=dict)
    """By name: the store and the stem of its scores that are read."""
    readers: dict[str, Encoder] = field(default_factory=dict)
    """By name, how models read the pairs that do not read them as the student does."""
    aligned: bool = False
    """Whether the teacher's states must be aligned to the student's."""
    require: dict[str, str] = field(default_factory=dict)
    """Columns that every row must have, and why."""
    columns: bool = False
    """Whether the oracle's rewards are those of the data."""

    def read(self, paths: list[str], key: str, say: Say) -> Lazy[Item]:
        """The rows of `paths` as items, with what the stores say about them; each is made when it is asked for."""
        rows = self.encoder.read(paths, key, self.pairs, say, self.aligned, self.require)
        theirs = {name: self._read_as(name, paths, key, say) for name in self.readers}
        rows, views = read_by_all(rows, theirs)
        if not rows:
            who = " and ".join(f"the {title(name)}'s" for name in theirs)
            raise UserError(f"{key}: no pair is usable with the student's and {who} tokenizer alike")
        for name, view in views.items():
            if cut := count_truncated(rows, view):
                kinds = {ORACLE_REWARDS: "reward", TEACHER_VALUE: "last value"}
                who, what = title(name), kinds.get(provides(name), "log-probability")
                say(
                    f"warning: {key}: {cut} of {len(rows)} pairs are cut to length by the student's tokens or the "
                    f"{who}'s; where they end at different characters the {who}'s {what} is of another text"
                )
        return self.join(rows, views)

    def _read_as(self, name: str, paths: list[str], key: str, say: Say) -> Lazy[Tokenized]:
        """The rows as a model reads them."""
        aligned = self.aligned and name == TEACHER_VALUE
        told = lambda line: say(f"for the {title(name)}: {line}")  # noqa: E731
        return self.readers[name].read(paths, key, self.pairs, told, aligned)

    def join(self, rows: Sequence[Tokenized], views: Mapping[str, Sequence[Tokenized]] | None = None) -> Lazy[Item]:
        """Items of `rows`; `views` are the same rows as models read them that do not read as the student does."""
        views = views or {}
        for name, (store, _) in self.stores.items():
            store.check_covers(pair_ids(views.get(name, rows)), sources(rows), option(name, "scores"))
        joiner = Joiner(self.stores, tuple(views), self.columns, self.aligned)
        return Mapped(joiner, rows, *views.values())


@dataclass
class Joiner:
    """Makes an item of a row and of the same row as other models read it."""

    stores: dict[str, tuple[ScoreStore, str]]
    names: tuple[str, ...]
    """Of the other models, in their order."""
    columns: bool
    aligned: bool

    def __call__(self, row: Tokenized, *others: Tokenized) -> Item:
        views = dict(zip(self.names, others, strict=True))
        found = {name: s.get(views.get(name, row).pair_id).scores[stem] for name, (s, stem) in self.stores.items()}
        item = Item(row, found.get(TEACHER_VALUE), found.get(REFERENCE_LOGPS))
        if self.columns:
            assert row.chosen_reward is not None
            assert row.rejected_reward is not None
            item.oracle_rewards = ((row.chosen_reward, row.rejected_reward),)
        elif rewards := [found[name] for name in found if provides(name) == ORACLE_REWARDS]:
            item.oracle_rewards = tuple((float(chosen), float(rejected)) for chosen, rejected in rewards)
        for name, other in views.items():
            aligned = self.aligned and name == TEACHER_VALUE
            reading = OtherReading(other, _states(row, other) if aligned else None)
            if name not in self.stores:
                item.readings[name] = reading
            elif name == TEACHER_VALUE and item.teacher_values is not None:
                item.teacher_values = reading.at_students_states(item.teacher_values)
        return item


def _states(row: Tokenized, other: Tokenized) -> tuple[Any, Any]:
    """For each of the student's states, the index of the teacher's, of both responses."""
    sides = ((row.chosen_positions, other.chosen_positions), (row.rejected_positions, other.rejected_positions))
    chosen, rejected = (align_states(own, theirs) for own, theirs in sides if own is not None and theirs is not None)
    return chosen, rejected


def resolve_needs(config: Any, method: Any, encoder: Encoder, say: Say) -> Needs:
    """The online models and score stores that a method needs, checked against the student and its encoder.

    Raises:
        UserError: anything about them that a user can get wrong.
    """
    from nemo_tvkd.prepare.oracles import resolve_oracles

    found = Needs(encoder, method.pairs)
    if config.algorithm.get("use_margin"):
        found.require["margin"] = "algorithm.use_margin=true"
    needs = method.needs(config.algorithm)
    for need in (TEACHER_VALUE, REFERENCE_LOGPS):
        if need not in needs:
            continue
        section = config[need]
        path = section.path or (config.student.path if need == REFERENCE_LOGPS else "")
        if need == TEACHER_VALUE:
            _set_teacher(config, found, say)
        resolve(config, found, need, path, section.scores)
    if ORACLE_REWARDS in needs:
        resolve_oracles(config, found, say)
    return found


def resolve(config: Any, found: Needs, name: str, path: str, scores: str) -> None:
    """Add a model that runs online, or a store, to what was `found`; how it reads pairs is known by now."""
    need = provides(name)
    mode = config[need].mode
    reader = found.readers.get(name)
    if mode == "online" and scores:
        raise UserError(
            f"{option(name, 'scores')} is set but {need}.mode=online would not read it: set {need}.mode=cached"
        )
    if mode == "online":
        found.frozen[name] = _online(config, name, path, None if reader else found.encoder)
    else:
        found.stores[name] = _open_store(config, name, path, scores, reader or found.encoder)


def _set_teacher(config: Any, found: Needs, say: Say) -> None:
    """How the teacher reads pairs, where it is not the student's way."""
    shaping = config.algorithm.shaping
    if not set_reader(config, found, TEACHER_VALUE, config.teacher.path, say):
        return
    telescopes = ends_suffice(kind=shaping.value, form=shaping.form, gamma=shaping.gamma)
    found.aligned = shaping.value not in ACTION_KINDS and not telescopes
    name = found.readers[TEACHER_VALUE].template.name
    how = "aligned to the student's states by characters" if found.aligned else "read at its own states"
    say(f"teacher.path reads pairs its own way (template {name}): its values are {how}")


def set_reader(config: Any, found: Needs, name: str, path: str, say: Say) -> bool:
    """Whether a model reads pairs in another way than the student; then `found` knows how."""
    need = provides(name)
    section, key = config[need], option(name, "path")
    if not path:
        if section.tokenizer or section.chat_template:
            raise UserError(f"{key} is not set: {need}.tokenizer and {need}.chat_template say how it reads pairs")
        return False
    checkpoint = find_checkpoint(path, key)
    if not section.tokenizer and not any((checkpoint.hf_dir / file).exists() for file in TOKENIZER_FILES):
        if section.chat_template:
            raise UserError(f"{need}.tokenizer is not set, and {key} has none for {need}.chat_template")
        return False  # it reads what the student reads
    template = (f"{need}.chat_template", section.chat_template or "auto")
    named = f"{need}.tokenizer" if section.tokenizer else key
    own = Encoder.build(checkpoint, section.tokenizer, config.data, named, template, found.encoder)
    same_template = own.template.fingerprint == found.encoder.template.fingerprint
    if own.fingerprint == found.encoder.fingerprint and (same_template or not section.chat_template):
        if not same_template and own.template.name == "tokenizer":
            say(
                f"warning: {key} has a chat template of its own but reads pairs by the student's, as it shares its "
                f"tokenizer: {need}.chat_template=tokenizer makes it read by its own"
            )
        return False
    found.readers[name] = own
    return True


def _online(config: Any, name: str, path: str, shared: Encoder | None) -> Checkpoint:
    """The checkpoint of a model that runs in the job; `shared` encodes what it reads, unless that is its own affair."""
    key, parallel = option(name, "path"), config.parallel
    checkpoint = find_checkpoint(path, key)
    check_architecture(checkpoint.config, key)
    judges = provides(name) == ORACLE_REWARDS
    check_heads(checkpoint, key, lm=not judges, reward=judges)
    check_layout(checkpoint.config, key, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size)
    if shared is not None:
        check_vocabulary(checkpoint, shared, key, "student.path", config[provides(name)].get("tokenizer", ""))
    return checkpoint


def _open_store(config: Any, name: str, path: str, scores: str, encoder: Encoder) -> tuple[ScoreStore, str]:
    need, key = provides(name), option(name, "scores")
    if not scores:
        raise UserError(f"{key} is not set: {need}.mode=cached reads a score store that `nemo-tvkd score` wrote")
    store = ScoreStore.open(scores, key)
    if need != REFERENCE_LOGPS and not path and store.identity.tokenizer != encoder.fingerprint:
        raise UserError(
            f"{key}: the score store {store.path} was made with another tokenizer than student.path's: set "
            f"{option(name, 'path')} to the model that scored; its tokenizer and template then read the pairs too"
        )
    expected: dict[str, Any] = {
        "tokenizer": encoder.fingerprint,
        "chat_template": encoder.template.fingerprint,
        "max_length": config.data.max_length,
        "max_prompt_length": config.data.max_prompt_length or config.data.max_length - 1,
    }
    if path and is_rank_zero():  # reading all weights once is enough
        expected["weights"] = weights_fingerprint(find_checkpoint(path, option(name, "path")))
    store.check(what=[STORED[need]], key=key, **expected)
    return store, _value_stem(config.algorithm, store, key) if need == TEACHER_VALUE else STORED[need]


def _value_stem(algorithm: Any, store: ScoreStore, key: str) -> str:
    """Where the store has the value that the algorithm reads, and enough of it."""
    kind, form, gamma = algorithm.shaping.value, algorithm.shaping.form, algorithm.shaping.gamma
    stem = store.value_stem(teacher_value(algorithm), key)
    if store.identity.value_storage == "ends" and not ends_suffice(kind=kind, form=form, gamma=gamma):
        raise UserError(
            f"{key}: the score store {store.path} holds V(s_1) and V(s_{{T+1}}) alone, which is enough for "
            "algorithm.shaping.gamma=1 with algorithm.shaping.form=potential_difference, but they are "
            f"{gamma} and {form}: score the data again with score.value_storage=all"
        )
    return stem


def teacher_value(section: Any) -> Statistic:
    """What TVKD asks of the teacher's logits, of a section with `shaping` and `beta`; tau is shaping.temperature, or
    beta (Lemma 1)."""
    shaping = section.shaping
    tau = float(shaping.temperature or section.beta) if shaping.value == "soft_value" else 1.0
    return Statistic(shaping.value, tau)
