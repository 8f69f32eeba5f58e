"""The frozen models of a job: from their sections of the configuration to online models, score stores and columns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tvkd.checkpoints.hf import (
    Checkpoint,
    check_architecture,
    check_heads,
    check_layout,
    find_checkpoint,
    weights_fingerprint,
)
from nemo_tvkd.config.paths import given_paths
from nemo_tvkd.data.tokenizer import TOKENIZER_FILES
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.method import Method
from nemo_tvkd.losses.methods import DEFAULT_PATHS
from nemo_tvkd.losses.reads import Psi, Quantity, base, source
from nemo_tvkd.prepare.encoder import Encoder, check_vocabulary
from nemo_tvkd.prepare.needs import Needs, Say, option, title
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.scores.store import ScoreStore


@dataclass
class Source:
    """One frozen model: what is asked of it and where its numbers come from."""

    name: str
    quantities: list[Quantity]
    mode: str
    """online | cached | columns."""
    path: str = ""
    scores: str = ""
    tokenizer: str = ""
    chat_template: str = ""

    @property
    def aligns(self) -> bool:
        """Whether its numbers belong to single states, which another tokenizer does not have."""
        return any(quantity.statistic and quantity.states == "all" for quantity in self.quantities)


def sources_of(
    name: str, section: Any, quantities: list[Quantity], several: bool, reader: str, mode: str = "", default: str = ""
) -> list[Source]:
    """The frozen models of one section of the configuration.

    Args:
        name: the section's.
        several: whether it may name more than one model.
        reader: who reads one alone, for the message, as in algorithm=drdo.
        mode: in place of the section's own.
        default: the path where it names none.

    Raises:
        UserError: settings that contradict each other.
    """
    mode = mode or section.mode
    paths, scores = (given_paths(section[entry], f"{name}.{entry}") for entry in ("path", "scores"))
    reading = {entry: section.get(entry) or "" for entry in ("tokenizer", "chat_template")}
    if mode == "columns":
        if filled := [entry for entry, value in {"path": paths, "scores": scores, **reading}.items() if value]:
            raise UserError(
                f"{name}.{filled[0]} is set but {name}.mode=columns reads the data's: choose online or cached"
            )
        return [Source(name, quantities, mode)]
    if mode == "online" and section.get("normalize") == "zscore":
        raise UserError(
            f"{name}.normalize=zscore needs the spread of all rewards before the first step, and {name}.mode=online "
            f"has them after the last: score the pairs, then use {name}.mode=cached"
        )
    count = len(scores if mode == "cached" else paths)
    if mode == "cached" and count and paths and len(paths) != count:
        raise UserError(f"{name}.path has {len(paths)} models and {name}.scores {count} stores: give one for each")
    if mode == "online" and scores:
        raise UserError(f"{name}.scores is set but {name}.mode=online would not read it: set {name}.mode=cached")
    if count > 1 and not several:
        entry = "scores" if mode == "cached" else "path"
        raise UserError(f"{name}.{entry} names {count} models: {reader} reads one")
    if count > 1 and (filled := [entry for entry, value in reading.items() if value]):
        raise UserError(f"{name}.{filled[0]} is set for {count} models: several read pairs each by its own")
    return [
        Source(
            f"{name}/{index}" if index else name,
            quantities,
            mode,
            paths[index] if index < len(paths) else default,
            scores[index] if index < len(scores) else "",
            **reading,
        )
        for index in range(max(count, 1))  # the error of an empty entry names it
    ]


def training_sources(config: Any, method: Method) -> list[Source]:
    """The frozen models that a training configuration's method reads.

    Raises:
        UserError: settings that contradict each other.
    """
    several, found = method.several(config.algorithm), []
    for name, quantities in method.frozen(config.algorithm).items():
        default = _default(config, name)
        reader = f"algorithm={config.algorithm.name}"
        found += sources_of(name, config[name], quantities, name in several, reader, default=default)
    return found


def _default(config: Any, name: str) -> str:
    section, _, entry = DEFAULT_PATHS.get(name, "").partition(".")
    return config[section][entry] if entry else ""


def resolve(needs: Needs, sources: Sequence[Source], config: Any, say: Say) -> None:
    """Add frozen models to what a job reads pairs with, checked against its owner's encoder.

    Args:
        config: with the sections `data` and `parallel`.

    Raises:
        UserError: anything about them that a user can get wrong.
    """
    for each in sources:
        needs.quantities[each.name] = each.quantities
        if each.mode == "columns":
            needs.columns[each.name] = source(each.name, each.quantities[0])
            needs.require["rewards"] = f"{each.name}.mode=columns"
            continue
        if set_reader(needs, each, config.data, say):
            _report_reading(needs, each, say)
        if each.mode == "online":
            needs.frozen[each.name] = _online(needs, each, config.parallel)
        else:
            needs.stores[each.name] = _open_store(needs, each, config.data)


def _report_reading(needs: Needs, each: Source, say: Say) -> None:
    how = ""
    if any(quantity.statistic for quantity in each.quantities):
        if each.aligns:
            needs.aligned.add(each.name)
        place = f"aligned to {needs.owner}'s states by characters" if each.aligns else "read at its own states"
        how = f": its values are {place}"
    template = needs.readers[each.name].template.name
    say(f"{option(each.name, 'path')} reads pairs its own way (template {template}){how}")


def set_reader(needs: Needs, each: Source, data: Any, say: Say) -> bool:
    """Whether a model reads pairs in another way than the owner; then `needs` knows how."""
    section, key, owner = base(each.name), option(each.name, "path"), needs.encoder
    if not each.path:
        if each.tokenizer or each.chat_template:
            raise UserError(f"{key} is not set: {section}.tokenizer and {section}.chat_template say how it reads pairs")
        return False
    checkpoint = find_checkpoint(each.path, key)
    if section in DEFAULT_PATHS:
        return False  # it reads what the owner reads
    if not each.tokenizer and not any((checkpoint.hf_dir / file).exists() for file in TOKENIZER_FILES):
        if each.chat_template:
            raise UserError(f"{section}.tokenizer is not set, and {key} has none for {section}.chat_template")
        return False
    template = (f"{section}.chat_template", each.chat_template or "auto")
    own = Encoder.build(
        checkpoint, each.tokenizer, data, f"{section}.tokenizer" if each.tokenizer else key, template, owner
    )
    same_template = own.template.fingerprint == owner.template.fingerprint
    if own.fingerprint == owner.fingerprint and (same_template or not each.chat_template):
        if not same_template and own.template.name == "tokenizer":
            say(
                f"warning: {key} has a chat template of its own but reads pairs by {needs.owner}'s, as it shares its "
                f"tokenizer: {section}.chat_template=tokenizer makes it read by its own"
            )
        return False
    needs.readers[each.name] = own
    return True


def _online(needs: Needs, each: Source, parallel: Any) -> Checkpoint:
    """The checkpoint of a model that runs in the job."""
    key = option(each.name, "path")
    checkpoint = find_checkpoint(each.path, key)
    check_architecture(checkpoint.config, key)
    heads = {quantity.head for quantity in each.quantities}
    check_heads(checkpoint, key, lm="lm" in heads, reward="reward" in heads)
    check_layout(checkpoint.config, key, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size)
    if each.name not in needs.readers:
        check_vocabulary(checkpoint, needs.encoder, key, needs.key, each.tokenizer)
    return checkpoint


def _open_store(needs: Needs, each: Source, data: Any) -> tuple[ScoreStore, dict[str, str]]:
    key, encoder = option(each.name, "scores"), needs.readers.get(each.name, needs.encoder)
    if not each.scores:
        raise UserError(
            f"{key} is not set: {base(each.name)}.mode=cached reads a score store that `nemo-tvkd score` wrote"
        )
    store = ScoreStore.open(each.scores, key)
    if not each.path and store.identity.tokenizer != encoder.fingerprint:
        raise UserError(
            f"{key}: the score store {store.path} was made with another tokenizer than {needs.key}'s: set "
            f"{option(each.name, 'path')} to the model that scored; its tokenizer and template then read the pairs too"
        )
    expected: dict[str, Any] = {
        "tokenizer": encoder.fingerprint,
        "chat_template": encoder.template.fingerprint,
        "max_length": data.max_length,
        "max_prompt_length": data.max_prompt_length or data.max_length - 1,
    }
    if each.path and is_rank_zero():  # reading all weights once is enough
        expected["weights"] = weights_fingerprint(find_checkpoint(each.path, option(each.name, "path")))
    store.check(what=[quantity.name for quantity in each.quantities], key=key, **expected)
    return store, {quantity.name: _stem(quantity, store, key) for quantity in each.quantities}


def _stem(quantity: Quantity, store: ScoreStore, key: str) -> str:
    """Where the store has the scores that are read, and enough of them."""
    if quantity.statistic is None:
        return quantity.name
    stem = store.value_stem(quantity.statistic, key)
    if store.identity.value_storage == "ends" and quantity.states != "ends":
        rule = f"gamma={quantity.rule.gamma:g} and form={quantity.rule.form}" if isinstance(quantity, Psi) else "this"
        raise UserError(
            f"{key}: the score store {store.path} holds V(s_1) and V(s_{{T+1}}) alone, enough for shaping.gamma=1 with "
            f"shaping.form=potential_difference, not for {rule}: score the data again with score.value_storage=all"
        )
    return stem


def unused(config: Any, read: Collection[str], reader: str) -> list[str]:
    """Warnings of sections of frozen models that are filled in but not read.

    Args:
        read: the sections that are.
    """
    return [
        f"{name}.{entry} is set but {reader} does not read {title(name)}"
        for name in frozen_sections(config)
        for entry in ("path", "scores", "tokenizer", "chat_template")
        if name not in read and config[name].get(entry)
    ]


def frozen_sections(config: Any) -> list[str]:
    """The sections of a configuration that say where frozen models come from."""
    sections = {name: section.keys() for name, section in config.items() if hasattr(section, "keys")}
    return [name for name, entries in sections.items() if {"path", "scores", "mode"} <= set(entries)]
