"""The command line: `nemo-tvkd COMMAND key=value ...`. Nothing heavy is imported before a command runs."""

import difflib
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_tvkd import __version__
from nemo_tvkd.config.table import COMMANDS, Command
from nemo_tvkd.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what a word may become
        from nemo_tvkd.commands.completion import complete

        complete()
    from nemo_tvkd.runtime.exits import guarded

    return guarded(_dispatch, list(sys.argv[1:] if arguments is None else arguments))


def run(name: str, *arguments: Any, **options: Any) -> Any:
    """Call the main function of a command."""
    module, function = COMMANDS[name].main.split(":")
    return getattr(import_module(f"nemo_tvkd.commands.{module}"), function)(*arguments, **options)


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name == "--version":
        print(__version__)
        return 0
    if name in ("-h", "--help", "help") or (name in COMMANDS and {"-h", "--help"} & {*rest}):
        from nemo_tvkd.commands.help import command_usage, usage

        print(command_usage(name) if name in COMMANDS else usage())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"unknown command {name}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    command = COMMANDS[name]
    options, words = take_options(name, rest)
    if command.takes == "words":
        return run(name, words)
    if command.takes == "folder":
        if len(words) != 1 or "=" in words[0]:
            raise UserError(f"{name} takes the folder of a submitted recipe: {command.example}")
        return run(name, words[0])
    show = options.pop("--cfg", "")
    if show not in ("", "job"):
        raise UserError(f"--cfg {show} is not known: --cfg job prints the resolved configuration")
    if command.takes == "recipe":
        return _run_on_recipe(name, words, options, bool(show))
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.config.paths import expand_homes

    base = options.get("--from", "")
    config = compose(name, as_keys(command, words), Path(base) / "config.yaml" if base else None)
    if show:
        return _show(config)
    expand_homes(config)
    return run(name, config)


def _run_on_recipe(name: str, words: list[str], options: dict[str, Any], show: bool) -> int:
    folder = options.get("--config-dir", "")
    if folder and not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder} is not a folder: it has recipe/NAME.yaml or cluster/NAME.yaml")
    if show:
        from nemo_tvkd.cluster.recipe import load_recipe

        return _show(load_recipe(words, folder).config)
    own = [option for option in COMMANDS[name].options if option.keyword]
    outcome = run(name, words, **{each.keyword: options.get(each.flag, "" if each.value else False) for each in own})
    return outcome if isinstance(outcome, int) else run(*outcome)  # submit --here: the command and its configuration


def take_options(name: str, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of a command (flag -> value, or True) and the other words.

    Raises:
        UserError: an option that the command does not have, or one without its value.
    """
    known = {option.flag: option for option in COMMANDS[name].options}
    options: dict[str, Any] = {}
    rest: list[str] = []
    ahead = list(words)
    while ahead:
        word = ahead.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
        elif flag not in known:
            raise UserError(f"{word} is not an option of nemo-tvkd {name}: see nemo-tvkd {name} --help")
        elif not known[flag].value:
            options[flag] = True
        elif not (value := value if equals else ahead.pop(0) if ahead else ""):
            raise UserError(f"{flag} needs a value")
        else:
            options[flag] = value
    return options, rest


def as_keys(command: Command, words: list[str]) -> list[str]:
    """Words as overrides: the first one may stand for a key (`bench step`, `data check PATH`)."""
    from nemo_tvkd.config.compose import quoted

    if command.subcommand:
        if words[:1] != [command.subcommand]:
            typed = f"data {words[0] if words else ''}".rstrip()
            raise UserError(f"{typed} is not a command: {command.example}")
        words = words[1:]
    if command.first and words and not re.match(r"[\w.+~]+=", words[0]):
        return [f"{command.first}={words[0] if words[0].startswith('[') else quoted(words[0])}", *words[1:]]
    return words


def _show(config: Any) -> int:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(config), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
