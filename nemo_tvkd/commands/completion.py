"""`nemo-tvkd completion SHELL`: words that a shell offers for commands, options, keys and their values.

The script of each shell calls `nemo-tvkd __complete SHELL WORD ...` with the words after the command's name, the last
of them being typed. It prints what that word may become, whole words, a line each. Libraries for completion know
options, not `key=value`, so the words come from the dataclasses here; nothing heavy is imported.
"""

import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.config.algorithms import ALGORITHMS
from nemo_tvkd.config.commands import COMMANDS
from nemo_tvkd.config.compose import GROUPS, OPEN, TRAINING, choices
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder
from nemo_tvkd.keys import values_of

BASH = """\
_nemo_tvkd() {
    local word breaks="$COMP_WORDBREAKS" line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(COMP_WORDBREAKS="$breaks" "${1/#\\~/$HOME}" __complete bash "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/.,] ]]; then compopt -o nospace; fi
}
complete -F _nemo_tvkd nemo-tvkd
"""
ZSH = """\
#compdef nemo-tvkd
_nemo_tvkd() {
    local -a found open whole
    found=("${(@f)$(${~words[1]} __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    open=("${(@M)found:#*[=/.,]}")
    whole=("${(@)found:#*[=/.,]}")
    (( ${#open} )) && [[ -n $open[1] ]] && compadd -Q -S '' -- "${(@)open}"
    (( ${#whole} )) && [[ -n $whole[1] ]] && compadd -Q -- "${(@)whole}"
    return 0
}
if [[ $funcstack[1] == _nemo_tvkd ]]; then _nemo_tvkd "$@"; else compdef _nemo_tvkd nemo-tvkd; fi
"""
FISH = """\
function __nemo_tvkd
    set -l words (commandline -opc)
    nemo-tvkd __complete fish $words[2..] (commandline -ct | string collect --allow-empty) 2>/dev/null
end
complete -c nemo-tvkd -f -a '(__nemo_tvkd)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
SOURCED = {
    "bash": 'eval "$(nemo-tvkd completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(nemo-tvkd completion zsh)"    # in ~/.zshrc, behind compinit',
    "fish": "nemo-tvkd completion fish | source    # in ~/.config/fish/config.fish",
}
OPTIONS = {
    "train": ("--from",),
    "submit": ("--dry-run", "--from", "--here", "--config-dir"),
    "doctor": ("--config-dir",),
}
TEMPLATES = ("auto", "tokenizer", "plain", "llama3", "mistral")
PARTS = ("vocab", "score", "step")
UNQUOTED = re.compile(r"([^\w@%+=:,./~\[\]-])", re.ASCII)


def script(arguments: Sequence[str]) -> str:
    """The script of a shell, to be sourced.

    Raises:
        UserError: no shell, or an unknown one.
    """
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        lines = "; ".join(SOURCED.values())
        raise UserError(f"completion takes one of {', '.join(SCRIPTS)}, and prints what the shell is to read: {lines}")
    return SCRIPTS[arguments[0]]


def answer(arguments: Sequence[str], commands: Sequence[str]) -> str:
    """What `nemo-tvkd __complete` prints.

    Args:
        arguments: bash and the line up to the cursor; zsh or fish and the words after the command's name.
        commands: names of the commands.
    """
    if len(arguments) < 2:
        return ""
    shell, *words = arguments
    if shell == "bash":
        words = _split(words[0])[1:]
    found = sorted(set(_words(words, commands)))
    if shell == "bash":
        breaks = set("=:") & set(os.environ.get("COMP_WORDBREAKS", "=:"))
        last = max((words[-1].rfind(sign) for sign in breaks), default=-1) + 1
        found = [word[last:] for word in found]  # bash replaces what stands behind the last break
    if shell != "fish":
        found = [UNQUOTED.sub(r"\\\1", word) for word in found]
    return "".join(f"{word}\n" for word in found)


def _split(line: str) -> list[str]:
    """The words of a line whose last one may be unfinished."""
    for end in ("", '"', "'"):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        return words if line[-1:].strip() or end or line.endswith("\\ ") else [*words, ""]
    return [""]


def _words(words: Sequence[str], commands: Sequence[str]) -> Iterator[str]:
    *before, word = words
    starts: Callable[[Any], list[str]] = lambda candidates: [each for each in candidates if each.startswith(word)]  # noqa: E731
    if not before:
        yield from starts([*commands, "--help", "--version"])
        return
    command, typed = before[0], before[1:]
    last = typed[-1] if typed else ""
    if command == "completion":
        yield from starts(SCRIPTS)
    elif command in ("status", "report"):
        yield from _paths("", word)
    elif last == "--cfg":
        yield from starts(["job"])
    elif last in ("--from", "--here") and command == "submit":
        yield from starts(_stages(typed))
    elif last in ("--from", "--config-dir"):
        yield from _paths("", word, folders=True)
    elif word.startswith("-"):
        yield from starts(["--help", "--cfg", *OPTIONS.get(command, ())])
    elif command == "data" and not typed:
        yield from starts(["check"])
    elif command == "data" and len(typed) == 1 and "=" not in word:
        yield from _paths("", word)
        yield from _keys_and_values(command, typed, word)
    elif command in COMMANDS or command == "doctor":
        if command == "bench" and not typed:
            yield from starts(PARTS)
        yield from _keys_and_values(command, typed, word)


def _keys_and_values(command: str, typed: Sequence[str], word: str) -> Iterator[str]:
    key, equals, value = word.partition("=")
    known = _keys("submit" if command == "doctor" else command, typed)
    if equals:
        yield from _values(key, value, *known.get(key, (None, ())), typed)
        return
    used = {each.partition("=")[0] for each in typed}
    depth = key.count(".") + 1
    for name in known:
        if name.startswith(key) and name not in used:
            parts = name.split(".")  # the next part alone: whole keys are too many to read
            yield ".".join(parts[:depth]) + ("." if len(parts) > depth else "=")


def _keys(command: str, typed: Sequence[str]) -> dict[str, tuple[Any, Sequence[str]]]:
    """Key -> type and choices, after those made so far."""
    found: dict[str, tuple[Any, Sequence[str]]] = dict.fromkeys(GROUPS.get(command, ()), (str, ()))
    algorithm = _chosen("algorithm", typed)
    found |= _leaves(COMMANDS[command])
    if command in TRAINING:
        found |= _leaves(ALGORITHMS.get(algorithm or "tvkd", ALGORITHMS["tvkd"]), "algorithm.")
        found["algorithm"] = (str, list(ALGORITHMS))
        found.pop("algorithm.name", None)
    if command == "submit":
        found = {key: kind for key, kind in found.items() if not key.startswith("recipe.") and key != OPEN[:-1]}
        cluster = {key: kind for key, kind in found.items() if key.startswith("cluster.")}
        for name, stage in _stages(typed).items():
            own = stage.get("command", "train")
            chosen = stage.get("settings", {}).get("algorithm", "tvkd")
            keys = _keys(own, [f"algorithm={chosen}"]) if own in COMMANDS else {}
            found |= {f"{name}.{key}": kind for key, kind in (keys | cluster).items()}
            found[name] = (Path, ())
    return found


def _leaves(kind: Any, prefix: str = "") -> dict[str, tuple[Any, Sequence[str]]]:
    found: dict[str, tuple[Any, Sequence[str]]] = {}
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and is_dataclass(field.type):
            found |= _leaves(field.type, f"{name}.")
        else:
            found[name] = (field.type, values_of(field).choices)
    return found


def _chosen(key: str, typed: Sequence[str]) -> str:
    return next((word.partition("=")[2] for word in reversed(typed) if word.startswith(f"{key}=")), "")


def _folder(typed: Sequence[str]) -> str:
    """Of --config-dir."""
    return next((word for option, word in itertools.pairwise(typed) if option == "--config-dir"), "")


def _stages(typed: Sequence[str]) -> dict[str, Any]:
    """The stages of the recipe that is typed, with what its files say of them."""
    return _stages_of(_chosen("recipe", typed), _folder(typed))


def _stages_of(recipe: str, folder: str) -> dict[str, Any]:
    import yaml

    places = [Path(folder), package_folder("conf")] if folder else [package_folder("conf")]
    file = next((file for place in places if recipe and (file := place / "recipe" / f"{recipe}.yaml").is_file()), None)
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text()) or {}
        found: dict[str, Any] = {}
        for part in content.get("defaults", []):
            if isinstance(part, str) and part != "_self_":
                found |= _stages_of(part, folder)
        for name, stage in (content.get("stages") or {}).items():
            found[name] = {**found.get(name, {}), **(stage or {})}
    except (yaml.YAMLError, AttributeError, TypeError):  # `submit` says what is wrong with it
        return {}
    return found


def _values(key: str, value: str, kind: Any, listed_choices: Sequence[str], typed: Sequence[str]) -> Iterator[str]:
    """Whole words key=value; of a list in brackets, or of several values, the last one is completed."""
    listed = re.match(r"(\[(?:.*,)?|.*,)?(.*)", value, re.DOTALL)
    assert listed is not None
    done, last = listed[1] or "", listed[2]
    stage = key.partition(".")[0] if key.partition(".")[0] in _stages(typed) else ""
    words = listed_choices or _choices(key, key.removeprefix(f"{stage}.") if stage else key, kind, typed)
    yield from (f"{key}={done}{word}" for word in words if word.startswith(last))
    textual = kind in (str, Any, Path, list[str], str | None)
    if textual and (not words or key.endswith("chat_template")):
        yield from _paths(f"{key}={done}", last)


def _choices(key: str, plain: str, kind: Any, typed: Sequence[str]) -> Sequence[str]:
    if key in GROUPS["submit"]:
        return choices(key, _folder(typed))
    if plain.endswith("chat_template"):
        return TEMPLATES
    if plain == "bench.part":
        return PARTS
    return ("true", "false") if kind is bool else ()


def _paths(before: str, typed: str, folders: bool = False) -> Iterator[str]:
    """Files and folders (with a slash) that begin as typed; hidden ones where a dot is."""
    head, slash, name = typed.rpartition("/")
    try:
        place = Path(f"{head}{slash}" or ".").expanduser()
        for entry in os.scandir(place):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                if entry.is_dir():
                    yield f"{before}{head}{slash}{entry.name}/"
                elif not folders:
                    yield f"{before}{head}{slash}{entry.name}"
    except (OSError, RuntimeError):
        return
