"""What models say of each pair: one model after the other runs over the pairs in this job's ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.data.batch import Batch, Item
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.reads import Psi, Quantity, source

LOGPS, REWARDS, SHAPING = "logps", "rewards", "shaping"


def pair_numbers(
    config: Any, checkpoint: Checkpoint, key: str, items: Sequence[Item], asked: Mapping[str, Quantity]
) -> dict[str, np.ndarray]:
    """What a model says of each pair, in the data's order, on every rank (collective); [P, 2] float64 by name (nats or
    reward units).

    The model's memory is free again afterwards.

    Args:
        checkpoint: of kind "nemo".
        key: configuration key to name in errors.
        items: the pairs as this model reads them.
        asked: the quantities, by name; of values by state, at the first checkpoint's states where theirs differ.

    Raises:
        UserError: a number that is not finite; names the pair.
    """
    import torch

    from nemo_tvkd.models.frozen import load_frozen, measure, release_memory

    def answers(batch: Batch, readout: Any) -> list[list[float]]:
        return torch.stack([_answer(what, batch, readout) for what in asked.values()], dim=1).tolist()

    memory = config.parallel.lm_head_memory_mib * 2**20
    lm_head = any(what.head == "lm" for what in asked.values())
    module = load_frozen(checkpoint, key, config.precision, memory, lm_head)
    ordered = np.array(measure(module, items, config.micro_batch_size, answers), dtype=np.float64)
    del module
    release_memory()
    numbers = {name: ordered[:, :, i] for i, name in enumerate(asked)}
    for name, what in asked.items():
        _check_finite(numbers[name], what, items, f"{key}: {checkpoint.path}")
    return numbers


def _answer(what: Quantity, batch: Batch, readout: Any) -> Any:
    """[N] float64 of a micro-batch, on the last pipeline stage."""
    from nemo_tvkd.models.online import statistics_of

    numbers, half = statistics_of(what)(batch, readout), batch["count"]
    if isinstance(numbers, list):
        for readings in batch.get("readings", {}).values():
            for i, reading in enumerate(readings):
                numbers[i], numbers[half + i] = reading.at_students_states((numbers[i], numbers[half + i]))
    return what.reduce(numbers)


def _check_finite(numbers: np.ndarray, what: Quantity, items: Sequence[Item], who: str) -> None:
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        pair, side = bad[0]
        count = len(np.unique(bad[:, 0]))
        raise UserError(
            f"{who} says {numbers[pair, side]} for the {what.title} of the {('chosen', 'rejected')[side]} response of "
            f"{items[pair].tokens.source} ({count} of {len(items)} pairs have such numbers): its weights are broken"
        )


def stored_shaping(items: Sequence[Item], what: Psi) -> np.ndarray:
    """[P, 2] Psi of each pair from the teacher's values in a score store."""
    import torch

    name = source("teacher", what)
    return np.array(
        [[float(what.rule.total(torch.as_tensor(values))) for values in item.numbers[name]] for item in items]
    )
