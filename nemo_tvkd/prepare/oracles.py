"""Where the oracle's rewards come from: models in the job, score stores or the data's columns; and their scale."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nemo_tvkd.config.paths import given_paths
from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Lazy, Mapped
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses import ORACLE_REWARDS
from nemo_tvkd.prepare.needs import Needs, Say, option, resolve, set_reader, title


def resolve_oracles(config: Any, found: Needs, say: Say) -> None:
    """Add the oracles of a configuration to what was `found`; only algorithm=edpo may have several.

    Raises:
        UserError: anything about them that a user can get wrong.
    """
    section = config.oracle
    paths, scores = (given_paths(section[name], f"oracle.{name}") for name in ("path", "scores"))
    if section.mode == "columns":
        of_models = {"path": paths, "scores": scores} | {name: section[name] for name in ("tokenizer", "chat_template")}
        if given := [name for name, value in of_models.items() if value]:
            raise UserError(
                f"oracle.{given[0]} is set but oracle.mode=columns reads the data's: choose online or cached"
            )
        found.columns = True
        found.require["rewards"] = "oracle.mode=columns"
        return
    if section.mode == "online" and section.get("normalize") == "zscore":
        raise UserError(
            "oracle.normalize=zscore needs the spread of all rewards before the first step, and oracle.mode=online "
            "has them after the last: score the pairs, then use oracle.mode=cached"
        )
    count = len(scores if section.mode == "cached" else paths)
    if section.mode == "cached" and count and paths and len(paths) != count:
        raise UserError(f"oracle.path has {len(paths)} models and oracle.scores {count} stores: give one for each")
    if section.mode == "online" and scores and not paths:
        raise UserError("oracle.scores is set but oracle.mode=online would not read it: set oracle.mode=cached")
    if count > 1 and ("algorithm" not in config or config.algorithm.name != "edpo"):
        key = "scores" if section.mode == "cached" else "path"
        raise UserError(f"oracle.{key} names {count} oracles: one is taken here, several by algorithm=edpo alone")
    if count > 1 and (given := [name for name in ("tokenizer", "chat_template") if section[name]]):
        raise UserError(f"oracle.{given[0]} is set for {count} oracles: several read pairs each by its own")
    for index in range(max(count, 1)):  # none at all is told by the one that is not there
        name = f"{ORACLE_REWARDS}/{index}" if index else ORACLE_REWARDS
        path, store = (entries[index] if index < len(entries) else "" for entries in (paths, scores))
        if set_reader(config, found, name, path, say):
            template = found.readers[name].template.name
            say(f"{option(name, 'path')} reads pairs its own way (template {template})")
        resolve(config, found, name, path, store)


def standardized(
    needs: Needs, train: Sequence[Item], validation: Sequence[Item], say: Say
) -> tuple[Sequence[Item], Sequence[Item]]:
    """The items with each oracle's rewards divided by their standard deviation (oracle.normalize=zscore).

    It is that of all responses in the score store, or of the training pairs' columns. The mean is left where it is:
    only differences of rewards are used.

    Raises:
        UserError: rewards that do not differ.
    """
    spreads = []
    for name, source in _sources(needs, train):
        key = "data.train: the columns chosen_reward and rejected_reward" if needs.columns else option(name, "scores")
        if min(source) == max(source) or not (spread := _standard_deviation(source)):
            raise UserError(f"{key}: all {len(source)} rewards are {source[0]}: oracle.normalize=zscore divides by 0")
        say(f"oracle.normalize=zscore: rewards of the {title(name)} are divided by their deviation {spread:.6g}")
        spreads.append(spread)
    scale = partial(_divided, spreads)
    return Mapped(scale, train), Mapped(scale, validation)


def _divided(spreads: Sequence[float], item: Item) -> Item:
    assert item.oracle_rewards is not None
    both = zip(item.oracle_rewards, spreads, strict=True)
    return replace(
        item, oracle_rewards=tuple((chosen / spread, rejected / spread) for (chosen, rejected), spread in both)
    )


def _sources(needs: Needs, train: Sequence[Item]) -> list[tuple[str, Sequence[float]]]:
    """Each oracle's name and the rewards whose spread counts."""
    if needs.columns:
        assert isinstance(train, Lazy), "rows that were read from a file"
        sides = [train.column(f"{side}_reward") for side in ("chosen", "rejected")]
        return [(ORACLE_REWARDS, np.concatenate(sides).tolist())]
    stores = {name: store for name, (store, stem) in needs.stores.items() if stem == "reward"}
    return [(name, store.numbers("reward").tolist()) for name, store in stores.items()]


def _standard_deviation(values: Sequence[float]) -> float:
    """The population's, of values that are not all 0."""
    largest = max(map(abs, values))  # squares of what is of its size neither overflow nor vanish
    mean = math.fsum(value / largest for value in values) / len(values)
    variance = math.fsum((value / largest - mean) ** 2 for value in values) / len(values)
    return largest * math.sqrt(variance)
