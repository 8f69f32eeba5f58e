"""The command line: `nemo-tvkd COMMAND key=value ...`. Nothing heavy is imported before a command runs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_tvkd import __version__
from nemo_tvkd.commands.help import HELP, ON_A_FOLDER, ON_A_RECIPE, command_usage, usage
from nemo_tvkd.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    from nemo_tvkd.runtime.exits import guarded

    return guarded(_dispatch, list(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "__complete":
        from nemo_tvkd.commands.completion import answer

        print(answer(rest, list(HELP)), end="")
        return 0
    if command not in HELP:
        import difflib

        near = difflib.get_close_matches(command, HELP, n=1)
        raise UserError(f"unknown command {command}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    if "-h" in rest or "--help" in rest:
        print(command_usage(command))
        return 0
    if command in ON_A_FOLDER:
        return _run_on_folder(command, rest)
    if command == "completion":
        from nemo_tvkd.commands.completion import script

        print(script(rest), end="")
        return 0
    if command in ON_A_RECIPE:
        return _run_on_recipe(command, rest)
    return _run(command, rest)


def _run_on_folder(command: str, rest: list[str]) -> int:
    if len(rest) != 1 or "=" in rest[0]:
        raise UserError(f"{command} takes the folder of a submitted recipe: {HELP[command][1]}")
    if command == "status":
        from nemo_tvkd.commands.status import main as run
    else:
        from nemo_tvkd.commands.report import main as run
    return run(rest[0])


def _run_on_recipe(command: str, rest: list[str]) -> int:
    folder, rest = _take_option(rest, "--config-dir")
    if folder and not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder} is no folder: it has recipe/NAME.yaml or cluster/NAME.yaml")
    show, rest = _take_option(rest, "--cfg")
    if show:
        from omegaconf import OmegaConf

        from nemo_tvkd.cluster.recipe import load_recipe

        print(OmegaConf.to_yaml(load_recipe(rest, folder).config), end="")
        return 0
    if command == "doctor":
        from nemo_tvkd.commands.doctor import main as examine

        return examine(rest, folder)
    from nemo_tvkd.commands.submit import main as submit

    start, rest = _take_option(rest, "--from")
    here, rest = _take_option(rest, "--here")
    dry_run = "--dry-run" in rest
    outcome = submit([w for w in rest if w != "--dry-run"], folder=folder, dry_run=dry_run, start=start, here=here)
    if isinstance(outcome, int):
        return outcome
    command, config = outcome
    return RUNNERS[command](config)


def _run(command: str, rest: list[str]) -> int:
    from nemo_tvkd.config.compose import compose

    base, rest = _take_option(rest, "--from")
    show, rest = _take_option(rest, "--cfg")
    if show not in ("", "job"):
        raise UserError(f"--cfg {show} is not known: --cfg job prints the resolved configuration")
    if base and command != "train":
        raise UserError(f"--from repeats a training run; {command} has none")
    if command == "bench" and rest and "=" not in rest[0]:
        rest = [f"bench.part={rest[0]}", *rest[1:]]
    if command == "data":
        rest = _checked_path(rest)
    config = compose(command, rest, Path(base) / "config.yaml" if base else None)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return 0
    from nemo_tvkd.config.paths import expand_homes

    expand_homes(config)
    return RUNNERS[command](config)


def _checked_path(rest: list[str]) -> list[str]:
    """`data check PATH key=value ...` as overrides."""
    from nemo_tvkd.config.compose import quoted

    if not rest or rest[0] != "check":
        raise UserError(f"data {rest[0] if rest else ''}".rstrip() + f" is no command: {HELP['data'][1]}")
    if len(rest) > 1 and not re.match(r"[\w.+~]+=", rest[1]):
        return [f"data.train={rest[1] if rest[1].startswith('[') else quoted(rest[1])}", *rest[2:]]
    return rest[1:]


def _take_option(arguments: list[str], name: str) -> tuple[str, list[str]]:
    """Remove `name VALUE` or `name=VALUE` from the arguments."""
    arguments = [part for word in arguments for part in (word.split("=", 1) if word.startswith(name + "=") else [word])]
    if name not in arguments:
        return "", arguments
    at = arguments.index(name)
    if at + 1 == len(arguments) or not arguments[at + 1]:
        raise UserError(f"{name} needs a value")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def _train(config: Any) -> int:
    from nemo_tvkd.commands.train import main

    return main(config)


def _score(config: Any) -> int:
    from nemo_tvkd.commands.score import main

    return main(config)


def _evaluate(config: Any) -> int:
    from nemo_tvkd.commands.evaluate import main

    return main(config)


def _inspect(config: Any) -> int:
    from nemo_tvkd.commands.inspect import main

    return main(config)


def _data(config: Any) -> int:
    from nemo_tvkd.commands.data_check import main

    return main(config)


def _import_hf(config: Any) -> int:
    from nemo_tvkd.commands.convert import import_main

    return import_main(config)


def _export_hf(config: Any) -> int:
    from nemo_tvkd.commands.convert import export_main

    return export_main(config)


def _benchmark(config: Any) -> int:
    from nemo_tvkd.commands.benchmark import main

    return main(config)


def _bench(config: Any) -> int:
    from nemo_tvkd.commands.bench import main

    return main(config)


RUNNERS: dict[str, Callable[[Any], int]] = {
    "train": _train,
    "score": _score,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "data": _data,
    "import-hf": _import_hf,
    "export-hf": _export_hf,
    "benchmark": _benchmark,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
