"""From conf/ and `key=value` overrides to a resolved configuration, by Hydra; a mistake is one line with its key."""

import difflib
import re
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from nemo_tvkd.config.table import COMMANDS
from nemo_tvkd.errors import UserError, one_line
from nemo_tvkd.files import package_folder
from nemo_tvkd.losses.methods import METHODS

TRAINING = ("train", "bench")
"""Commands whose configuration has an algorithm."""
GROUPS = {"train": ("algorithm",), "bench": ("algorithm",), "submit": ("recipe", "cluster")}
"""Keys that choose a file of conf/."""
OPEN = "cluster.environment."
"""The section to which keys may be added."""

REMOVED = ("data.streaming",)
"""Keys of former versions that saved configurations may have, and that mean nothing any more."""


def compose(command: str, overrides: list[str], base: Path | None = None, folder: str = "") -> Any:
    """The resolved configuration of a command, from conf/ and `key=value` overrides.

    Args:
        base: a run's config.yaml to start from instead of the defaults (`train --from`).
        folder: a folder of the user's own, laid out as conf/ is, that is looked in as well.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or that cannot be parsed,
            an unknown algorithm, recipe or cluster.
    """
    from omegaconf import OmegaConf

    typed = _parsed(overrides)
    groups = [f"{key}={value}" for key, value in typed if _is_group(command, key, value)]
    saved: dict[str, Any] = {}
    if base is not None:
        method, saved = _saved(base, groups)
        groups = groups or [f"algorithm={method}"]
    _check_groups(groups, command, folder)
    defaults = _composed(command, tuple(groups), str(Path(folder).absolute()) if folder else "", _files(folder))
    config = deepcopy(defaults)
    for key, value in (*saved.items(), *typed):
        if _is_group(command, key, value):
            continue
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=key.startswith(OPEN))
        except Exception as error:
            _check_known([*saved, *(key for key, _ in typed)], defaults)
            raise UserError(_mistake(error)) from error
    if command in TRAINING and not _is_method(config.algorithm):
        raise UserError(f"algorithm.name={config.algorithm.name}: choose the method by algorithm={'|'.join(METHODS)}")
    _resolve(config)
    return config


def _files(folder: str) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a file of conf/ or of the user's own folder has changed."""
    places = [package_folder("conf"), *([Path(folder)] if folder else [])]
    files = [(file, file.stat()) for place in places for file in place.rglob("*.yaml")]
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in files)


@lru_cache(maxsize=64)
def _composed(command: str, groups: tuple[str, ...], folder: str, files: object) -> Any:
    """The configuration of a command after the choice of its groups; Hydra takes 0.1 s for it, so it is kept.

    Nothing is resolved yet: values may depend on the environment and on keys that are typed.

    Raises:
        UserError: a mistake in a file of these groups.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    _store_schemas(command)
    place = [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"] if folder else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
        try:
            return hydra_compose(command, overrides=[*place, *groups])
        except Exception as error:
            raise UserError(_mistake(error)) from error


def _is_method(section: Any) -> bool:
    """Whether the section's name is that of the method whose keys it has."""
    from omegaconf import OmegaConf

    return section.name in METHODS and OmegaConf.get_type(section) is METHODS[section.name].config


@cache
def _store_schemas(command: str) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name=f"{command}_schema", node=COMMANDS[command].schema)
    for name, method in METHODS.items() if command in TRAINING else ():
        store.store(group="algorithm", name=f"{name}_schema", node=method.config)


def _resolve(config: Any) -> None:
    """Put values in the place of ${...}; one that stays would fail wherever it is read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key, raw in flatten(OmegaConf.to_container(config)).items():
        if "${" not in str(raw) and "???" not in str(raw):
            continue
        try:
            value = OmegaConf.select(config, key, throw_on_missing=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
        if "${" in str(value):
            raise UserError(f"{key}={value}: a value cannot hold ${{")
    OmegaConf.resolve(config)


def _is_group(command: str, key: str, value: Any) -> bool:
    """Whether key=value chooses a file of conf/, and does not set keys, as algorithm={beta:0.2} does."""
    return key in GROUPS.get(command, ()) and not isinstance(value, dict)


def _check_groups(chosen: list[str], command: str, folder: str) -> None:
    for override in chosen:
        group, value = override.split("=", 1)
        known = list(METHODS) if group == "algorithm" else choices(group, folder)
        if value not in known:
            near = difflib.get_close_matches(value, known, 1)
            hint = f"; did you mean {near[0]}?" if near and group != "algorithm" else ""
            raise UserError(f"{override} is none of the known {group}s: {', '.join(known)}{hint}")
    if missing := {"submit": {"recipe", "cluster"}}.get(command, set()) - {
        choice.split("=", 1)[0] for choice in chosen
    }:
        group = max(missing)
        raise UserError(f"{group} is not set: {group}={'|'.join(choices(group, folder))}")


def choices(group: str, folder: str = "") -> list[str]:
    """The files of a group of conf/ that can be chosen; those that begin with _ are parts of others."""
    places = [package_folder("conf"), *([Path(folder)] if folder else [])]
    names = {file.stem for place in places for file in (place / group).glob("*.yaml")}
    return sorted(name for name in names if not name.startswith("_"))


def _saved(base: Path, groups: list[str]) -> tuple[str, dict[str, Any]]:
    """The method of a saved configuration, and its values by dotted key, which pass the same checks as typed ones.

    Where the typed `groups` choose another method, the saved one's keys are left out.
    """
    from omegaconf import OmegaConf

    if not base.is_file():
        raise UserError(f"--from: {base} does not exist; give the output directory of a run")
    try:
        saved = OmegaConf.to_container(OmegaConf.load(base))
        name = saved["algorithm"].pop("name")
    except Exception as error:  # no YAML, no mapping, or a mapping of something else
        raise UserError(f"--from: {base} is not the config.yaml of a run") from error
    if groups and groups[-1] != f"algorithm={name}":
        del saved["algorithm"]
    return name, {key: value for key, value in flatten(saved).items() if key not in REMOVED}


def quoted(value: Any) -> str:
    """A value in Hydra's grammar, where a backslash is one unless it stands before a quote."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, list):
        return "[" + ",".join(quoted(v) for v in value) + "]"
    return str(value)


def written(value: Any) -> str:
    """A value in Hydra's grammar, without quotes where it reads the same without."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][\w/.:-]*", value, re.ASCII)
    return str(value) if plain and value.lower() not in ("true", "false", "null", "nan", "inf") else quoted(value)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parsed(overrides: list[str]) -> list[tuple[str, Any]]:
    """The key and the value of each override, by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    values: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key or key[0] in "+~":
            raise UserError(f"{override!r} is no override: write key=value, for example trainer.max_steps=100")
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            listed = value.startswith("[") and value.endswith("]")
            written_so = quoted(value[1:-1].split(",")) if listed else quoted(value)
            hint = f'text is quoted twice, as in "{key}={written_so}"'
            raise UserError(f"{key}: {value!r} cannot be read: {hint}") from error
        if parsed.is_sweep_override():
            hint = f'a list is written [a,b], text as "{key}={quoted(value)}"'
            raise UserError(f"{key}: {value!r} is several values: {hint}")
        values.append((key, parsed.value()))
    return values


def _check_known(typed: list[str], known: Any) -> None:
    from omegaconf import OmegaConf

    keys = flatten(OmegaConf.to_container(known, resolve=False))
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    for key in typed:
        if key not in keys and key not in sections:
            raise UserError(_unknown(key, list(keys), sections))


def _unknown(key: str, keys: list[str], sections: set[str]) -> str:
    """The same name in another section is nearer than a similar name in this one."""
    last = key.rsplit(".", 1)[-1]
    same = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    similar = keys if "." in key else [*keys, *sections]
    near = difflib.get_close_matches(key, same, 1, cutoff=0) or difflib.get_close_matches(key, similar, 1, cutoff=0.5)
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else "see --cfg job for all keys")


def _mistake(error: Exception) -> str:
    """Hydra's and OmegaConf's messages span lines; the first one with the key says it."""
    from yaml import MarkedYAMLError

    if isinstance(error, MarkedYAMLError):  # the file stands in its second line
        return one_line(error)
    lines: list[str] = []
    key = ""
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or lines
        key = str(getattr(cause, "full_key", None) or key)
        cause = cause.__cause__
    if lines[0].endswith("raised while composing config:"):  # In 'cluster/mine': ...
        return f"{lines[0].split(':')[0]}: {' '.join(lines[1:])}"
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]
