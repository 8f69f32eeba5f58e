"""The command line: `nemo-tvkd COMMAND key=value ...`. Nothing heavy is imported before a command runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_tvkd import __version__
from nemo_tvkd.errors import UserError

HELP = {
    "train": (
        "trains any method: algorithm=tvkd|dpo|sft|reward|drdo|edpo",
        "nemo-tvkd train algorithm=tvkd student.path=STUDENT teacher.path=TEACHER data.train=pairs.jsonl",
    ),
    "score": (
        "runs a frozen model over pairs and writes a score store",
        "nemo-tvkd score score.model=TEACHER data.train=pairs.jsonl score.what=[value] score.output=scores",
    ),
    "import-hf": (
        "Hugging Face checkpoint to NeMo checkpoint",
        "nemo-tvkd import-hf source=DIR_OR_ID output=DIR",
    ),
    "export-hf": (
        "NeMo checkpoint to Hugging Face (safetensors, config, tokenizer, chat template, generation config)",
        "nemo-tvkd export-hf checkpoint=RUN_OR_CHECKPOINT output=DIR",
    ),
    "evaluate": (
        "preference accuracy, margins and rewards of a checkpoint (HF or NeMo) on pairs",
        "nemo-tvkd evaluate checkpoint=C data.validation=pairs.jsonl output=E.json",
    ),
    "bench": (
        "measures the parts on this machine: vocab (reductions), score, step; prints a table, writes JSON",
        "nemo-tvkd bench step parallel.tensor_model_parallel_size=2 bench.output=bench.json",
    ),
}


def usage() -> str:
    """The text of `nemo-tvkd --help`."""
    width = max(map(len, HELP))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, (what, _) in HELP.items())
    return (
        f"nemo-tvkd {__version__}: preference distillation on NeMo and Megatron-Core\n\n"
        f"usage: nemo-tvkd COMMAND [key=value ...] [--cfg job] [--help]\n\ncommands:\n{commands}\n\n"
        "exit codes: 0 done; 2 a mistake in configuration, data or path (one line says which);\n"
        "85 stopped by a signal with a checkpoint saved, run the same command again; else a crash\n"
        "(NEMO_TVKD_DEBUG=1 shows tracebacks and the libraries' own logs)"
    )


def command_usage(command: str) -> str:
    """The text of `nemo-tvkd COMMAND --help`."""
    from omegaconf import OmegaConf

    from nemo_tvkd.compose import compose

    what, example = HELP[command]
    keys = OmegaConf.to_yaml(compose(command, []))
    more = (
        "\n--from RUN_DIR trainer.output_dir=NEW repeats a run (its config.yaml), with overrides.\n"
        if command == "train"
        else "\n"
    )
    return f"nemo-tvkd {command}: {what}\n\nexample: {example}\n{more}\nkeys and defaults:\n{keys}"


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
    if command not in HELP:
        import difflib

        near = difflib.get_close_matches(command, HELP, n=1)
        raise UserError(f"unknown command {command}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    if "-h" in rest or "--help" in rest:
        print(command_usage(command))
        return 0
    return _run(command, rest)


def _run(command: str, rest: list[str]) -> int:
    from nemo_tvkd.compose import compose

    base, rest = _take_option(rest, "--from")
    show, rest = _take_option(rest, "--cfg")
    if show not in ("", "job"):
        raise UserError(f"--cfg {show} is not known: --cfg job prints the resolved configuration")
    if base and command != "train":
        raise UserError(f"--from repeats a training run; {command} has none")
    if command == "bench" and rest and "=" not in rest[0]:
        rest = [f"bench.part={rest[0]}", *rest[1:]]
    config = compose(command, rest, Path(base) / "config.yaml" if base else None)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return 0
    return RUNNERS[command](config)


def _take_option(arguments: list[str], name: str) -> tuple[str, list[str]]:
    """Remove `name VALUE` or `name=VALUE` from the arguments."""
    arguments = [part for word in arguments for part in (word.split("=", 1) if word.startswith(name + "=") else [word])]
    if name not in arguments:
        return "", arguments
    at = arguments.index(name)
    if at + 1 == len(arguments):
        raise UserError(f"{name} needs a value")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def _train(config: Any) -> int:
    from nemo_tvkd.train import main

    return main(config)


def _score(config: Any) -> int:
    from nemo_tvkd.scores.job import main

    return main(config)


def _evaluate(config: Any) -> int:
    from nemo_tvkd.evaluate import main

    return main(config)


def _import_hf(config: Any) -> int:
    from nemo_tvkd.runtime.convert import import_main

    return import_main(config)


def _export_hf(config: Any) -> int:
    from nemo_tvkd.runtime.convert import export_main

    return export_main(config)


def _bench(config: Any) -> int:
    from nemo_tvkd.bench import main

    return main(config)


RUNNERS: dict[str, Callable[[Any], int]] = {
    "train": _train,
    "score": _score,
    "evaluate": _evaluate,
    "import-hf": _import_hf,
    "export-hf": _export_hf,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
