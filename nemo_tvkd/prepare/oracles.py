"""The scale of rewards that several oracles, or none but the data, give (normalize=zscore)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from nemo_tvkd.data.batch import Item
from nemo_tvkd.data.lazy import Lazy, Mapped
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.reads import source
from nemo_tvkd.prepare.needs import Needs, Say, option, title


def standardized(
    needs: Needs, section: str, train: Sequence[Item], validation: Sequence[Item], say: Say
) -> tuple[Sequence[Item], Sequence[Item]]:
    """The items with the numbers of each model of a section divided by their standard deviation (normalize=zscore).

    It is that of all responses in the score store, or of the training pairs' columns. The mean is left where it is:
    only differences of rewards are used.

    Raises:
        UserError: rewards that do not differ.
    """
    spreads = {}
    for name in needs.of_section(section):
        number = source(name, needs.quantities[name][0])
        by_columns = name in needs.columns
        key = "data.train: the columns chosen_reward and rejected_reward" if by_columns else option(name, "scores")
        numbers = _of_columns(train) if by_columns else _of_store(needs, name)
        if min(numbers) == max(numbers) or not (spread := _standard_deviation(numbers)):
            raise UserError(
                f"{key}: all {len(numbers)} rewards are {numbers[0]}: {section}.normalize=zscore divides by 0"
            )
        say(f"{section}.normalize=zscore: rewards of {title(name)} are divided by their deviation {spread:.6g}")
        spreads[number] = spread
    scale = partial(_divided, spreads)
    return Mapped(scale, train), Mapped(scale, validation)


def _divided(spreads: Mapping[str, float], item: Item) -> Item:
    numbers = dict(item.numbers)
    for number, spread in spreads.items():
        chosen, rejected = numbers[number]
        numbers[number] = (float(chosen) / spread, float(rejected) / spread)
    return replace(item, numbers=numbers)


def _of_columns(train: Sequence[Item]) -> list[float]:
    assert isinstance(train, Lazy), "rows that were read from a file"
    sides = [train.column(f"{side}_reward") for side in ("chosen", "rejected")]
    return np.concatenate(sides).tolist()


def _of_store(needs: Needs, name: str) -> list[float]:
    store, stems = needs.stores[name]
    return store.numbers(next(iter(stems.values()))).tolist()


def _standard_deviation(values: Sequence[float]) -> float:
    """The population's, of values that are not all 0."""
    largest = max(map(abs, values))  # squares of what is of its size neither overflow nor vanish
    mean = math.fsum(value / largest for value in values) / len(values)
    variance = math.fsum((value / largest - mean) ** 2 for value in values) / len(values)
    return largest * math.sqrt(variance)
