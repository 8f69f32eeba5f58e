"""What a user typed of a recipe: keys of the whole, keys of single stages, and paths in the place of stages."""

import difflib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tvkd.config.compose import quoted, written
from nemo_tvkd.config.paths import PATH_KEYS, absolute
from nemo_tvkd.errors import UserError


@dataclass(frozen=True)
class Typed:
    """What was typed of one stage."""

    path: Path | None
    """In the place of the stage."""
    choices: list[dict[str, str]]
    """Settings of each task of a sweep; []: no sweep."""
    fixed: dict[str, str]
    """Settings of all of them, in Hydra's grammar."""


def first(word: str) -> str:
    """The first name of a dotted key."""
    return word.split("=", 1)[0].split(".", 1)[0]


def check_first(words: Sequence[str], stages: Sequence[str], keys: Sequence[str]) -> None:
    """Whether each word is about a stage or about a key of the whole.

    Raises:
        UserError: it is about neither; names what is near.
    """
    for word in words:
        name = first(word)
        if "=" in word and name.isidentifier() and name not in (*stages, *keys):
            near = difflib.get_close_matches(name, [*stages, *keys], 1)
            hint = f"did you mean {near[0]}{word[len(name) :]}?" if near else f"stages: {', '.join(stages)}"
            raise UserError(f"{word}: {name} is no stage of the recipe and no key; {hint}")


def check_choice(words: Sequence[str], key: str, known: Sequence[str]) -> None:
    """Whether a key, where it is typed, is one of the values that the recipe knows."""
    for word in words:
        name, _, value = word.partition("=")
        if name == key and value not in known:
            raise UserError(f"{word} is none of {key}s: {', '.join(known)}")


def typed_of(stage: str, words: Sequence[str]) -> Typed:
    """What the words that begin with a stage's name say of it; those of its cluster are left out.

    Raises:
        UserError: a word that cannot be read, or a path that does not exist.
    """
    path, fixed, swept = None, {}, {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.partition(".")[2]
        if not equals or (not key and "." in word.split("=")[0]):
            raise UserError(f"{word!r} is no override: write {stage}.KEY=VALUE, or {stage}=PATH for what replaces it")
        if not key:
            path = _existing(word, value, stage)
        elif key.startswith("cluster."):
            continue
        elif (values := _several(word, key, value)) is not None:
            swept[key] = [_from_anywhere(key, each) for each in values]
        else:
            fixed[key] = _from_anywhere(key, value)
    if path is not None and (fixed or swept):
        key = next(iter(fixed | swept))
        raise UserError(f"{stage}.{key} is about a command that does not run: {stage}={path} takes the stage's place")
    choices = [dict(zip(swept, chosen, strict=True)) for chosen in itertools.product(*swept.values())]
    return Typed(path, choices if swept else [], fixed)


def _existing(word: str, value: str, stage: str) -> Path:
    if not value:
        raise UserError(f"{word} names no path: write {stage}=PATH for what takes the place of stage {stage}")
    path = Path(os.path.expanduser(value)).absolute()
    if not path.exists():
        raise UserError(f"{word}: {path} does not exist, so it cannot take the place of stage {stage}")
    return path


def _from_anywhere(key: str, value: str) -> str:
    """A value in Hydra's grammar, whose paths do not depend on the current directory: jobs have another one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString

    if key.rpartition(".")[2] not in PATH_KEYS:
        return value
    parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
    listed = parsed if isinstance(parsed, list) else [parsed]
    plain = [each.text if isinstance(each, QuotedString) else each for each in listed]
    found = absolute(plain)
    return value if found == plain else written(found if isinstance(parsed, list) else found[0])


def _several(word: str, key: str, value: str) -> list[str] | None:
    """The values of a sweep (a,b,c or range(1,4), as Hydra writes them); None for one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException as error:
        whole = word.partition("=")[0]
        raise UserError(
            f'{whole}: {value!r} cannot be read: quote text twice, as in "{whole}={quoted(value)}"'
        ) from error
    if not override.is_sweep_override():
        return None
    try:
        values = list(override.sweep_string_iterator())
    except HydraException as error:  # glob(...) and interval(...) are for other sweepers
        raise UserError(f"{word}: {value} cannot be listed: write a,b,c or range(1,4)") from error
    if not values:
        raise UserError(f"{word}: {value} has no values")
    return values
