"""Words that a shell offers for commands, options, keys and their values; argcomplete talks with the shell.

Completion must answer at once: nothing heavy is imported, so the stages of a recipe are read from its file here.
"""

import argparse
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_tvkd.config.compose import GROUPS, OPEN, TRAINING, choices
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder
from nemo_tvkd.keys import leaves, values_of
from nemo_tvkd.losses.methods import METHODS

SHELLS = {
    "bash": 'eval "$(nemo-tvkd completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(nemo-tvkd completion zsh)"    # in ~/.zshrc, behind compinit',
    "fish": "nemo-tvkd completion fish | source    # in ~/.config/fish/config.fish",
}
TEXTUAL = (str, Any, Path, list[str], str | None)
"""Types of keys whose value may be a path."""


def main(words: Sequence[str]) -> int:
    """Print the script of a shell, to be sourced; returns the exit code.

    Raises:
        UserError: no shell, or an unknown one.
    """
    import argcomplete

    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(
            f"completion takes one of {', '.join(SHELLS)}, and prints a script: {'; '.join(SHELLS.values())}"
        )
    print(argcomplete.shellcode(["nemo-tvkd"], shell=words[0]), end="")
    return 0


def complete() -> None:
    """Answer a shell and exit: argcomplete reads the line from the environment and writes the words."""
    import argcomplete

    parser = argparse.ArgumentParser(add_help=False, prefix_chars="\0")  # every word is one of `words`
    action: Any = parser.add_argument("words", nargs="*")
    action.completer = lambda prefix, parsed_args, **_: candidates(parsed_args.words, prefix)
    argcomplete.autocomplete(parser)


def candidates(words: Sequence[str], word: str) -> list[str]:
    """What the last `word` behind the other `words` of a command line may become: whole words, sorted."""
    return sorted({each for each in _candidates(words, word) if each.startswith(word)})


def _candidates(words: Sequence[str], word: str) -> Iterable[str]:
    if not words:
        return [*COMMANDS, "--help", "--version"]
    name, *typed = words
    if (command := COMMANDS.get(name)) is None:
        return []
    if value := next((option.value for option in command.options if typed[-1:] == [option.flag]), ""):
        return ["job"] if value == "job" else _stages(typed) if value == "STAGE" else _paths("", word, folders=True)
    if word.startswith("-"):
        return ["--help", *(option.flag for option in command.options)]
    if command.takes == "words":
        return SHELLS
    if command.takes == "folder":
        return _paths("", word)
    if command.subcommand and not typed:
        return [command.subcommand]
    keys = _keys("submit" if name == "doctor" else name, typed)
    key, equals, value = word.partition("=")
    if equals:
        return _values(key, value, *keys.get(key, (None, ())))
    offered = _next_parts(keys, word, typed)
    if command.first and len(typed) == bool(command.subcommand):
        offered = itertools.chain(offered, keys[command.first][1] or _paths("", word))
    return offered


def _next_parts(keys: Iterable[str], word: str, typed: Sequence[str]) -> Iterable[str]:
    """Keys that begin as typed, up to the part in which they differ: all whole keys would be too many to read."""
    used = {each.partition("=")[0] for each in typed}
    names = [f"{name}=" for name in keys if name.startswith(word) and name not in used]
    parts = {word}
    while len(parts) == 1 and not (part := parts.pop()).endswith("="):
        parts = {re.split(r"(?<=[.=])", name[len(part) :], maxsplit=1)[0] for name in names}
        parts = {f"{part}{rest}" for rest in parts}
    return parts or names


def _keys(name: str, typed: Sequence[str]) -> dict[str, tuple[Any, Sequence[str]]]:
    """Key -> its type and choices, after those made so far."""
    keys: dict[str, tuple[Any, Sequence[str]]] = {}
    for group in GROUPS.get(name, ()):
        keys[group] = (str, list(METHODS) if group == "algorithm" else choices(group, _after("--config-dir", typed)))
    keys = _typed(COMMANDS[name].schema) | keys
    if name in TRAINING:
        method = METHODS.get(_chosen("algorithm", typed)) or next(iter(METHODS.values()))
        keys |= _typed(method.config, "algorithm.")
        del keys["algorithm.name"]
    if name == "submit":
        keys = {key: kind for key, kind in keys.items() if not key.startswith("recipe.") and key != OPEN[:-1]}
        cluster = {key: kind for key, kind in keys.items() if key.startswith("cluster.")}
        for stage, content in _stages(typed).items():
            own = content.get("command", "train")
            chosen = content.get("settings", {}).get("algorithm", "tvkd")
            inner = _keys(own, [f"algorithm={chosen}"]) if own in OWN_KEYS else {}
            keys |= {f"{stage}.{key}": kind for key, kind in (inner | cluster).items()}
            keys[stage] = (Path, ())
    return keys


def _typed(kind: Any, prefix: str = "") -> dict[str, tuple[Any, Sequence[str]]]:
    keys = {name: (field.type, values_of(field)) for name, field in leaves(kind, prefix)}
    flags = ("true", "false")
    return {key: (kind, flags if kind is bool else v.choices or v.suggested) for key, (kind, v) in keys.items()}


def _chosen(key: str, typed: Sequence[str]) -> str:
    return next((word.partition("=")[2] for word in reversed(typed) if word.startswith(f"{key}=")), "")


def _after(flag: str, typed: Sequence[str]) -> str:
    return next((word for option, word in itertools.pairwise(typed) if option == flag), "")


def _stages(typed: Sequence[str]) -> dict[str, Any]:
    """The stages of the recipe that is typed, as its files describe them."""
    return _stages_of(_chosen("recipe", typed), _after("--config-dir", typed))


def _stages_of(recipe: str, folder: str) -> dict[str, Any]:
    import yaml

    places = [Path(folder), package_folder("conf")] if folder else [package_folder("conf")]
    file = next((file for place in places if recipe and (file := place / "recipe" / f"{recipe}.yaml").is_file()), None)
    stages: dict[str, Any] = {}
    try:
        content = (yaml.safe_load(file.read_text()) if file else None) or {}
        for part in content.get("defaults", []):
            stages |= _stages_of(part, folder) if isinstance(part, str) and part != "_self_" else {}
        for name, stage in (content.get("stages") or {}).items():
            stages[name] = {**stages.get(name, {}), **(stage or {})}
    except (yaml.YAMLError, AttributeError, TypeError):  # `submit` says what is wrong with it
        return {}
    return stages


def _values(key: str, value: str, kind: Any, known: Sequence[str]) -> Iterator[str]:
    """Whole words key=value; of a list in brackets, or of several values, the last one is completed."""
    done = value[: max(value.rfind(","), 0 if value.startswith("[") else -1) + 1]
    yield from (f"{key}={done}{word}" for word in known)
    if kind in TEXTUAL and (not known or key.endswith("chat_template")):
        yield from _paths(f"{key}={done}", value[len(done) :])


def _paths(before: str, typed: str, folders: bool = False) -> Iterator[str]:
    """Files and folders (with a slash) that begin as typed; hidden ones where a dot is."""
    head, name = os.path.split(typed)
    try:
        for entry in os.scandir(Path(head or ".").expanduser()):
            if (entry.is_dir() or not folders) and (name or not entry.name.startswith(".")):
                yield f"{before}{typed[: len(typed) - len(name)]}{entry.name}{'/' if entry.is_dir() else ''}"
    except (OSError, RuntimeError):
        return
