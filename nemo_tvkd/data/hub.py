"""Datasets with splits and configurations: by hub id, from a copy of their folder, or saved by `datasets`."""

import ast
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from nemo_tvkd.config.places import Named
from nemo_tvkd.errors import UserError, one_line

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SYNONYMS = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}
IN_FILE_NAME = re.compile(r"(?:^|[._-])(train|training|validation|valid|val|dev|test|eval)(?=[._-])")


def is_hub_id(named: Named, extensions: Collection[str]) -> bool:
    """ORG/NAME, where there is no folder ORG: a mistyped path fails at once, the hub's client tries for a while."""
    name = named.name
    return bool(HUB_ID.fullmatch(name)) and not Path(name).parent.is_dir() and not name.endswith(tuple(extensions))


def split_files(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names tell, "" for none: train-00000-of-00002.parquet, dev.jsonl."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        match = IN_FILE_NAME.search(file.name)
        name = match[1] if match else ""
        by_split.setdefault(SYNONYMS.get(name, name), []).append(file)
    return by_split


def choose_split(splits: Sequence[str], named: Named, key: str, pairs: bool) -> str:
    """The split that is named, else the one that `key` is about: train for data.train, validation or test for
    data.validation, and of UltraFeedback's kind (train_prefs, train_sft) that of `pairs` or of examples.

    Raises:
        UserError: there is no such split; names those that there are.
    """
    kind = "prefs" if pairs else "sft"
    validating = ("validation", "valid", "val", "dev", "test", "eval", f"test_{kind}")
    names: Sequence[str] = validating if key.endswith("validation") else ("train", "training", f"train_{kind}")
    if named.split:
        names = (named.split,)
    if matching := [split for split in names if split in splits]:
        return matching[0]
    if len(splits) == 1 and not named.split:
        return splits[0]
    there = f"its splits are {', '.join(splits)}"
    if named.split:
        raise UserError(f"{key}: {named.place} cannot be read as {named.place}:{named.split}: {there}")
    raise UserError(f"{key}: {named.place}: {there}: name one, for example {named.place}:{splits[0]}")


def load_saved(named: Named, key: str, pairs: bool) -> tuple[Any, str]:
    """(`datasets.Dataset`, its split or "") of a folder that `save_to_disk` wrote.

    Raises:
        UserError: it is damaged, or there is no such split; names `key`.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(named.name)
    except Exception as error:  # a damaged directory surfaces as whatever the first reader of it happens to raise
        raise UserError(f"{key}: {named.name} cannot be read: {one_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        split = choose_split(list(loaded), named, key, pairs)
        return loaded[split], split
    if not named.whole:
        raise UserError(f"{key}: {named.name} is a saved dataset without splits: give it without what follows it")
    return loaded, ""


def load(named: Named, key: str, pairs: bool) -> tuple[Any, str]:
    """(`datasets.Dataset`, its split), from the hub or its cache, or from a copy of a hub dataset's folder.

    HF_HOME, HF_DATASETS_CACHE and HF_HUB_OFFLINE mean what they mean to `datasets`.

    Raises:
        UserError: it cannot be had, or there is no such split or configuration; names `key`.
    """
    import datasets

    name = str(Path(named.name).resolve()) if Path(named.name).is_dir() else named.name
    config = named.config or None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # a log would be full of them
    try:
        builder = datasets.load_dataset_builder(name, config)
        splits = [str(split) for split in builder.config.data_files or builder.info.splits or ()]
        split = choose_split(splits or [named.split or "train"], named, key, pairs)
        return datasets.load_dataset(name, config, split=split), split
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client, the cache or the first reader of a file raises
        raise UserError(f"{key}: {_why(named, error)}") from error


def _why(named: Named, error: Exception) -> str:
    reason = one_line(error)
    if listed := re.search(r"available configs: (\[.*?\])", reason):
        configs = ast.literal_eval(listed[1])
        return f"{named.name} has the configurations {', '.join(configs)}: name one, as in {named.name}@{configs[0]}"
    if "scripts are no longer supported" in reason:
        return (
            f"{named.name} is made by a script, which `datasets` does not run any more: give a copy of its Parquet "
            "files (on the hub in its branch refs/convert/parquet)"
        )
    if "BuilderConfig" in reason:  # '...' not found. Available: [...]
        return f"{named.name} cannot be read as {named.place}: {reason}"
    if Path(named.name).is_dir():
        return f"{named.name} cannot be read: {reason}"
    config = f", '{named.config}'" if named.config else ""
    command = f"python -c \"import datasets; datasets.load_dataset('{named.name}'{config})\""
    return (
        f"{named.name} does not exist, and as a dataset of the hub it can neither be reached nor is it cached "
        f"({reason}); for a hub id run this where there is a network, with the same HF_HOME: {command}"
    )
