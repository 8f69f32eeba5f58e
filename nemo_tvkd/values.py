"""Choices and ranges of single configuration keys."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_tvkd.choices import CHOICES
from nemo_tvkd.compose import flatten
from nemo_tvkd.data.chat_template import NAMED
from nemo_tvkd.data.hub import parse
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.vocab import ACTION_KINDS, Statistic

PATH_KEYS = frozenset(
    {
        *("path", "scores", "tokenizer", "chat_template", "train", "validation", "output_dir", "model", "checkpoint"),
        *("reference", "prompts", "questions", "task_folder", "reward_model"),
    }
)
"""Last parts of the keys that hold paths (or hub ids and names of templates)."""
OUTPUT_KEYS = ("output", "pairs_output", "source")
"""Those of further keys with paths: what is written in one place, and `import-hf`'s."""
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


def expand_homes(config: Any) -> None:
    """Put home folders in the place of ~ and ~USER where paths begin with them, in place.

    Raises:
        UserError: there is no such user.
    """
    from omegaconf import OmegaConf

    for key, value in flatten(OmegaConf.to_container(config)).items():
        paths = as_list(value)
        if key.rsplit(".", 1)[-1] not in (*PATH_KEYS, *OUTPUT_KEYS):
            continue
        expanded = [os.path.expanduser(path) if isinstance(path, str) else path for path in paths]
        for path in expanded:
            if isinstance(path, str) and path.startswith("~"):
                raise UserError(f"{key}: {path} does not exist: there is no user {path[1:].partition('/')[0]}")
        if expanded != paths:
            OmegaConf.update(config, key, expanded if isinstance(value, list) else expanded[0])


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


def check_writable(path: str, key: str) -> None:
    """Whether something can be made at `path`; changes nothing.

    Raises:
        UserError: a file is in the way, or the nearest existing folder is not writable.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() and (place != Path(path).absolute()):
        raise UserError(f"{key}: {path} cannot be made: {place} is a file")
    if not os.access(place, os.W_OK):
        raise UserError(f"{key}: {path} cannot be written: no permission in {place}")


def check_result(path: str, key: str, kind: str, read: Sequence[str] = ()) -> None:
    """Whether the file of a result can be made at `path`; changes nothing.

    Args:
        kind: of file, as in "a JSON file".
        read: paths of the data, which nothing is written over.

    Raises:
        UserError: as `check_writable`; or a folder, or one of `read`, is there.
    """
    check_writable(path, key)
    if Path(path).is_dir():
        raise UserError(f"{key}: {path} is a directory: give the name of {kind} file")
    if any(Path(os.path.expanduser(one)).resolve() == Path(path).resolve() for one in read):
        raise UserError(f"{key}: {path} is the data, which would be written over: give {kind} file another name")


def absolute(value: Any) -> Any:
    """A local path (or DIR:SPLIT, DIR@CONFIG), or a list of some, made absolute; hub ids, names and weights stay."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [absolute(each) for each in value]
    if not isinstance(value, str) or not value or value in NAMED:
        return value
    if Path(os.path.expanduser(value)).exists():
        return str(Path(os.path.expanduser(value)).absolute())
    if weighted := WEIGHTED.fullmatch(value):
        return f"{absolute(weighted[1])}:{weighted[2]}"
    folder = parse(value).name
    there = folder and Path(os.path.expanduser(folder)).is_dir()
    return f"{Path(os.path.expanduser(folder)).absolute()}{value[len(folder) :]}" if there else value


def path_list(value: Any, key: str) -> list[str]:
    """`data.train` and `data.validation` as a list of paths, without the weights that data.train's may have.

    Raises:
        UserError: as `weighted_paths`.
    """
    return weighted_paths(value, key)[0]


WEIGHTED = re.compile(r"(.+):([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan))", re.IGNORECASE | re.DOTALL)
"""PATH:WEIGHT."""


def weighted_paths(value: Any, key: str) -> tuple[list[str], list[float] | None]:
    """A list of paths, each with its weight, as in [a:0.7,b:0.3]; None if they have none, or there is one path.

    What ends like a weight is none where there is a file of that name.

    Raises:
        UserError: nothing is set, some entries have weights and others have not, a weight is no positive number, or
            `key` (data.validation) takes none; names `key` and the entry.
    """
    if not (entries := given_paths(value, key)):
        raise UserError(f"{key} is not set: give a JSONL or Parquet file, or a saved Hugging Face dataset")
    split = [None if Path(os.path.expanduser(entry)).exists() else WEIGHTED.fullmatch(entry) for entry in entries]
    paths = [found[1] if found else entry for entry, found in zip(entries, split, strict=True)]
    weighted = [entry for entry, found in zip(entries, split, strict=True) if found]
    if not weighted:
        return paths, None
    if key.endswith("validation"):
        raise UserError(f"{key}: {weighted[0]} ends with a weight, but validation takes each row once: give its path")
    if bare := [entry for entry, found in zip(entries, split, strict=True) if not found]:
        raise UserError(f"{key}: {bare[0]} has no weight but {weighted[0]} has: give all of them one, or none")
    weights = [float(found[2]) for found in split if found]
    for entry, weight in zip(entries, weights, strict=True):
        if not 0 < weight < math.inf:
            raise UserError(f"{key}: {entry}: the weight {weight} must be positive and finite")
    return paths, weights if len(paths) > 1 else None


def held_out(config: Any) -> list[str]:
    """`data.validation` of a command that reads nothing else; data.train would be read by nobody."""
    if given_paths(config.data.train, "data.train"):
        raise UserError("data.train is set, but this command reads data.validation: give the pairs there")
    return path_list(config.data.validation, "data.validation")


def given_paths(value: Any, key: str) -> list[str]:
    """A key that takes a path or a list of them, as the list of those that are set.

    Raises:
        UserError: it holds something else; names `key`.
    """
    paths = as_list(value)
    if not all(isinstance(path, str | None) for path in paths):
        raise UserError(f"{key}={value} must be a path or a list of paths")
    return [path for path in paths if path]
