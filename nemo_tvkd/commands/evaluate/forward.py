"""What models say of each pair: one model after the other runs over the pairs in this job's ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.data.batch import Batch, Item
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses import TEACHER_VALUE
from nemo_tvkd.losses.tvkd import ends_suffice, potential_shaping
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic

LOGPS, REWARDS, SHAPING = "logps", "rewards", "shaping"
Read = Callable[[Batch, Any], Any]
"""(micro-batch, readout) -> [N] float64, on the last pipeline stage."""


def pair_numbers(
    config: Any, checkpoint: Checkpoint, key: str, items: Sequence[Item], read: dict[str, Read]
) -> dict[str, np.ndarray]:
    """What a model says of each pair, in the data's order, on every rank (collective); [P, 2] float64 by name.

    The model's memory is free again afterwards.

    Args:
        checkpoint: of kind "nemo".
        key: configuration key to name in errors.
        items: the pairs as this model reads them.
        read: what to ask of it, by name.

    Raises:
        UserError: a number that is not finite; names the pair.
    """
    import torch

    from nemo_tvkd.models.frozen import load_frozen, measure, release_memory

    def asked(batch: Batch, readout: Any) -> list[list[float]]:
        return torch.stack([ask(batch, readout) for ask in read.values()], dim=1).tolist()

    memory = config.parallel.lm_head_memory_mib * 2**20
    module = load_frozen(checkpoint, key, config.precision, memory, lm_head=set(read) != {REWARDS})
    ordered = np.array(measure(module, items, config.micro_batch_size, asked), dtype=np.float64)
    del module
    release_memory()
    found = {name: ordered[:, :, i] for i, name in enumerate(read)}
    for name, numbers in found.items():
        _check_finite(numbers, name, items, f"{key}: {checkpoint.path}")
    return found


def _check_finite(numbers: np.ndarray, name: str, items: Sequence[Item], who: str) -> None:
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        pair, side = bad[0]
        what = {LOGPS: "log-probability", REWARDS: "reward", SHAPING: "shaping"}[name]
        count = len(np.unique(bad[:, 0]))
        raise UserError(
            f"{who} says {numbers[pair, side]} for the {what} of the {('chosen', 'rejected')[side]} response of "
            f"{items[pair].tokens.source} ({count} of {len(items)} pairs have such numbers): its weights are broken"
        )


def read_logps(batch: Batch, readout: Any) -> Any:
    """log pi(y|x) summed over each response's tokens (nats)."""
    return readout.response_logps(batch)


def read_rewards(batch: Batch, readout: Any) -> Any:
    """The reward head's (reward units)."""
    return readout.response_rewards(batch)


def read_shaping(value: Statistic, shaping: Any) -> Read:
    """Psi of each response (nats, without alpha) from a teacher's values, at the student's states where they differ.

    Args:
        value: of the teacher's states or actions.
        shaping: the section of the configuration.
    """
    ends = ends_suffice(kind=shaping.value, form=shaping.form, gamma=shaping.gamma)

    def read(batch: Batch, readout: Any) -> Any:
        import torch

        from nemo_tvkd.models.online import value_statistics

        values = value_statistics(value, ends)(batch, readout)
        readings, half = batch.get("readings", {}).get(TEACHER_VALUE, []), batch["count"]
        for i, reading in enumerate(readings):
            values[i], values[half + i] = reading.at_students_states((values[i], values[half + i]))
        return torch.stack([response_shaping(states, shaping) for states in values])

    return read


def response_shaping(values: Any, shaping: Any) -> Any:
    """Psi of one response, float64, from a tensor of its values."""
    if shaping.value in ACTION_KINDS:
        return values.double().sum()
    return potential_shaping(values, form=shaping.form, terminal=shaping.terminal, gamma=shaping.gamma)


def stored_shaping(items: Sequence[Item], shaping: Any) -> np.ndarray:
    """[P, 2] Psi of each pair from the values of a score store."""
    import torch

    both = [item.teacher_values for item in items]
    return np.array(
        [[float(response_shaping(torch.as_tensor(v), shaping)) for v in values] for values in both if values]
    )
