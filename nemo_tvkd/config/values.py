"""Values of configuration keys: one by one as their fields say, and together."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.keys import values_of
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic


def check_values(config: Any) -> None:
    """Whether each key has one of its values, and the values go together.

    Raises:
        UserError: names the key and its admissible values.
    """
    from omegaconf import OmegaConf

    _check_section(config)
    betas = OmegaConf.select(config, "optim.betas")
    if betas is not None and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"optim.betas={betas} must be two numbers of at least 0 and less than 1")
    longest, prompt = (OmegaConf.select(config, f"data.{name}") for name in ("max_length", "max_prompt_length"))
    if longest and prompt and prompt >= longest:
        raise UserError(f"data.max_prompt_length={prompt} leaves no room for a response in data.max_length={longest}")
    rate, least = (OmegaConf.select(config, f"optim.{name}") for name in ("lr", "min_lr"))
    if rate is not None and least > rate:
        raise UserError(f"optim.min_lr={least} is more than optim.lr={rate}")
    if "parallel" in config:
        _check_parallel(config.parallel)
    if "score" in config:
        _check_wanted_values(config.score)


def _check_section(section: Any, prefix: str = "") -> None:
    from omegaconf import DictConfig, OmegaConf

    kind = OmegaConf.get_type(section)
    assert is_dataclass(kind), f"{prefix or 'the configuration'} has no types"
    for field in fields(kind):
        value = section[field.name]
        if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
            _check_section(value, f"{prefix}{field.name}.")
        else:
            values_of(field).check(f"{prefix}{field.name}", value)


def _check_parallel(parallel: Any) -> None:
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        raise UserError("parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size > 1")
    if parallel.context_parallel_size > 1:
        raise UserError("parallel.context_parallel_size > 1 is not supported yet: use tensor and sequence parallelism")


def as_list(value: Any) -> list[Any]:
    """The value of a key that takes one or a list of them, as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def wanted_values(score_options: Any) -> tuple[Statistic, ...]:
    """score.value_kind x score.temperature: soft_value once per temperature, the other kinds once."""
    temperatures = [float(tau) for tau in as_list(score_options.temperature)]
    return tuple(
        Statistic(kind, tau)
        for kind in as_list(score_options.value_kind)
        for tau in (temperatures if kind == "soft_value" else [1.0])
    )


def _check_wanted_values(score_options: Any) -> None:
    wanted = set(wanted_values(score_options))
    actions = [value.kind for value in wanted if value.kind in ACTION_KINDS]
    if score_options.value_storage == "ends" and actions:
        raise UserError(
            f"score.value_storage=ends keeps values of states, and score.value_kind={min(actions)} is one of actions: "
            "use score.value_storage=all"
        )
    if len({value.name for value in wanted}) < len(wanted):
        raise UserError(f"score.temperature={score_options.temperature}: two of them agree in their first 6 digits")
