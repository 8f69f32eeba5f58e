"""Choices and ranges of single configuration keys."""

import math
from collections.abc import Sequence
from typing import Any

from nemo_tvkd.config.choices import CHOICES
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import ACTION_KINDS, Statistic

POSITIVE = (
    "trainer.global_batch_size",
    "trainer.micro_batch_size",
    "trainer.log_interval",
    "trainer.keep_checkpoints",
    "data.max_length",
    "parallel.tensor_model_parallel_size",
    "parallel.pipeline_model_parallel_size",
    "parallel.context_parallel_size",
    "algorithm.beta",
    "algorithm.shaping.temperature",
    "shaping.temperature",
    "score.temperature",
    "score.micro_batch_size",
    "score.part_size",
    "trainer.max_steps",
    "trainer.max_epochs",
    "micro_batch_size",
    "strength_bins",
    "calibration_bins",
    "limit",
    "beta",
    "data.max_prompt_length",
    *(f"bench.{name}" for name in ("repeats", "vocab_sizes", "hidden_size", "pairs", "growth")),
    *("bench.prompt_length", "bench.response_length"),
    *(f"cluster.{name}" for name in ("nodes", "ranks_per_node", "cpus_per_rank", "gpu_memory_gib", "gpu_tflops")),
    "cluster.signal_seconds",
    *(f"benchmark.{name}" for name in ("batch_size", "max_new_tokens", "limit")),
)
NOT_NEGATIVE = (
    "parallel.lm_head_memory_mib",
    "bench.tokens",
    "parallel.data_parallel_size",
    "trainer.seed",
    "trainer.val_interval",
    "trainer.save_interval",
    "optim.lr",
    "optim.min_lr",
    "optim.weight_decay",
    "optim.eps",
    "optim.clip_grad",
    "algorithm.alpha",
    "algorithm.alpha_sft",
    "algorithm.center_rewards_coefficient",
    "algorithm.gamma",
    "algorithm.shaping.gamma",
    "shaping.gamma",
    "resamples",
    "seed",
    "examples",
    "data.label_noise_seed",
    *(f"cluster.{name}" for name in ("gpus_per_node", "max_restarts", "max_failures")),
)
RANGES: dict[str, tuple[float, float]] = {
    "optim.warmup_ratio": (0, 1),
    "algorithm.label_smoothing": (0, 0.5),
    "data.label_noise": (0, 1),
}
"""Both ends included."""
ONE_OR_MORE = ("score.value_kind", "score.temperature", "bench.vocab_sizes", "bench.growth")
"""Keys that take a value or a list of values, each of which is checked."""


def admissible(key: str) -> str:
    """The choices or the range of a key in words; empty where every value of its type will do."""
    if key in CHOICES:
        return "one of " + ", ".join(CHOICES[key])
    if key in RANGES:
        return "from {:g} to {:g}".format(*RANGES[key])
    return "more than 0" if key in POSITIVE else "0 or more" if key in NOT_NEGATIVE else ""


def check_values(config: Any) -> None:
    """Choices and ranges of single keys.

    Raises:
        UserError: names the key and its admissible values.
    """
    from omegaconf import OmegaConf

    for key, choices in CHOICES.items():
        for value in _values_of(config, key):
            if value not in choices:
                raise UserError(f"{key}={value} is none of {', '.join(choices)}")
    for key in POSITIVE:
        for value in _values_of(config, key):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{key}={value} is not a number")
            if not 0 < value < math.inf:
                raise UserError(f"{key}={value} must be positive")
    for key in NOT_NEGATIVE:
        value = OmegaConf.select(config, key)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{key}={value} must be 0 or positive")
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(config, key)
        if value is not None and not low <= value <= high:
            raise UserError(f"{key}={value} must lie between {low} and {high}")
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


def _check_parallel(parallel: Any) -> None:
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        raise UserError("parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size > 1")
    if parallel.context_parallel_size > 1:
        raise UserError("parallel.context_parallel_size > 1 is not supported yet: use tensor and sequence parallelism")


def _values_of(config: Any, key: str) -> list[Any]:
    """The values of a key that are to be checked: none where the command has no such key, or it may be null."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(config, key)
    if key in ONE_OR_MORE and key.split(".")[0] in config:
        if not (values := as_list(value)):
            raise UserError(f"{key}=[] is empty: give one value, or a list of some")
        return values
    return [] if value is None else [value]


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
