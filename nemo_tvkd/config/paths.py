"""Keys that hold paths: lists of them, weights, home folders, what may be written."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_tvkd.config.compose import flatten
from nemo_tvkd.config.places import TEMPLATE_NAMES, parse
from nemo_tvkd.config.values import as_list
from nemo_tvkd.errors import UserError

PATH_KEYS = frozenset(
    {
        *("path", "scores", "tokenizer", "chat_template", "train", "validation", "output_dir", "model", "checkpoint"),
        *("reference", "prompts", "questions", "task_folder", "reward_model"),
    }
)
"""Last parts of the keys that hold paths (or hub ids and names of templates)."""
OUTPUT_KEYS = ("output", "pairs_output", "source")
"""Those of further keys with paths: what is written in one place, and `import-hf`'s."""
WEIGHTED = re.compile(r"(.+):([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan))", re.IGNORECASE | re.DOTALL)
"""PATH:WEIGHT."""


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
    if not isinstance(value, str) or not value or value in TEMPLATE_NAMES:
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


def weighted_paths(value: Any, key: str) -> tuple[list[str], list[float] | None]:
    """A list of paths, each with its weight, as in [a:0.7,b:0.3]; None if they have none, or there is one path.

    What ends like a weight is none where there is a file of that name.

    Raises:
        UserError: nothing is set, some entries have weights and others have not, a weight is no positive number, or
            `key` (data.validation) takes none; names `key` and the entry.
    """
    if not (entries := given_paths(value, key)):
        raise UserError(f"{key} is not set: give a JSONL or Parquet file, or a saved Hugging Face dataset")
    matches = [None if Path(os.path.expanduser(entry)).exists() else WEIGHTED.fullmatch(entry) for entry in entries]
    bare = [entry for entry, match in zip(entries, matches, strict=True) if not match]
    if len(bare) == len(entries):
        return entries, None
    weighted = [entry for entry in entries if entry not in bare]
    if key.endswith("validation"):
        raise UserError(f"{key}: {weighted[0]} ends with a weight, but validation takes each row once: give its path")
    if bare:
        raise UserError(f"{key}: {bare[0]} has no weight but {weighted[0]} has: give all of them one, or none")
    paths, weights = [match[1] for match in matches if match], [float(match[2]) for match in matches if match]
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
