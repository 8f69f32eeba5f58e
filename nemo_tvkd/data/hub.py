"""Datasets of the Hugging Face hub, by id or from a copy of their folder: which path is one, and its split."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NAMED_SPLIT = re.compile(r"(.+):([\w.-]+)")


def find_dataset(path: Path, key: str, extensions: Collection[str]) -> tuple[str, str] | None:
    """(hub id or folder, split) if `path` says either; None if it is to be read as the file or folder that it is.

    Args:
        path: ORG/NAME, where there is neither such a path nor a folder ORG, or a folder; both may be followed by
            ":SPLIT". The split is else train, or test for data.validation.
        extensions: of the files that are read without `datasets`.
    """
    name, split = str(path), ""
    if not path.exists() and (match := NAMED_SPLIT.fullmatch(name)):
        name, split = match.groups()
    place = Path(name)
    default = "test" if key.endswith("validation") else "train"
    if place.is_dir():
        return (str(place.resolve()), split or default) if split or _is_copy(place, extensions) else None
    # a mistyped path is told at once: the hub's client tries for half a minute
    if place.parent.is_dir() or not HUB_ID.fullmatch(name) or name.endswith(tuple(extensions)):
        return None
    return name, split or default


def _is_copy(folder: Path, extensions: Collection[str]) -> bool:
    """Whether a folder is laid out as on the hub: its rows lie deeper, in one file or several for each split."""
    kinds = tuple(extensions)
    here = any(file.name.endswith(kinds) for file in folder.iterdir() if file.is_file())
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    return not (here or saved) and any(file.name.endswith(kinds) for file in folder.glob("*/**/*") if file.is_file())


def load(name: str, split: str, key: str) -> Any:
    """A split as a `datasets.Dataset`: of a hub dataset from the hub, or its cache where that cannot be reached.

    Raises:
        UserError: it cannot be had, or there is no such split; names `key`.
    """
    import datasets

    try:
        if (Path(name) / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(name)
            if split not in splits:
                raise ValueError(f"its splits are {', '.join(splits)}")
            return splits[split]
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever the hub's client, the cache or the first reader of a file raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if Path(name).is_dir() or re.search(r"(?i)split", reason):
            raise UserError(f"{key}: {name} cannot be read as {name}:{split}: {reason}") from error
        command = f"python -c \"import datasets; datasets.load_dataset('{name}')\""
        raise UserError(
            f"{key}: {name} does not exist, and as a dataset of the hub it can neither be reached nor is it cached "
            f"({reason}); for a hub id run this where there is a network, with the same HF_HOME: {command}"
        ) from error
