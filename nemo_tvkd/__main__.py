"""The command line: `nemo-tvkd COMMAND key=value ...`. Nothing heavy is imported before a command runs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_tvkd import __version__
from nemo_tvkd.errors import UserError

ON_A_FOLDER = ("status", "report")
"""Commands that take a folder, and no keys."""
ON_A_RECIPE = ("submit", "doctor")
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
    "inspect": (
        "a picture of shaping, values and rewards by token for chosen pairs, as one HTML file",
        "nemo-tvkd inspect checkpoint=TEACHER data.validation=pairs.jsonl output=shaping.html",
    ),
    "data": (
        "data check PATH: what was recognised in a data file: counts, lengths, bad rows, rendered examples",
        "nemo-tvkd data check pairs.jsonl tokenizer=MODEL data.max_length=1024",
    ),
    "benchmark": (
        "lm-eval tasks, generations for AlpacaEval and MT-Bench, a reward model's scores of a Hugging Face checkpoint",
        "nemo-tvkd benchmark checkpoint=HF_DIR output=DIR",
    ),
    "submit": (
        "composes a recipe into Slurm jobs with dependencies and submits them; --dry-run prints them",
        "nemo-tvkd submit recipe=tvkd-llama-8b-1b cluster=example_pyxis train.trainer.seed=1,2,3 teacher_dpo=RUN",
    ),
    "doctor": (
        "checks paths, tokenizers, layouts, memory and time of a recipe, and this machine, before anything starts",
        "nemo-tvkd doctor recipe=tvkd-llama-8b-1b cluster=example_pyxis",
    ),
    "status": ("shows where a submitted recipe stands", "nemo-tvkd status RUN_DIR"),
    "report": ("puts all results of a recipe (or of one run) in one page", "nemo-tvkd report RUN_DIR"),
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


OPTIONS = {
    "train": "--from RUN_DIR trainer.output_dir=NEW repeats a run (its config.yaml), with overrides.\n",
    "submit": (
        "STAGE.KEY=VALUE sets a key of one stage's command, STAGE.cluster.KEY=VALUE one of its job. Several values\n"
        "(train.trainer.seed=1,2,3) make array jobs of the stage and of those after it. STAGE=PATH takes PATH for the\n"
        "stage's output. Stages whose output is there are skipped.\n\n"
        "--dry-run           print the scripts; write and submit nothing\n"
        "--from STAGE        do this stage and those after it again; what they wrote is set aside\n"
        "--here STAGE        run one stage on this machine, without Slurm\n"
        "--config-dir DIR    look for DIR/recipe/NAME.yaml and DIR/cluster/NAME.yaml as well\n"
    ),
    "doctor": (
        "Arguments as of submit; without a recipe this machine alone is checked. Under srun all ranks take part in an\n"
        "all-reduce.\n"
    ),
}


def command_usage(command: str) -> str:
    """The text of `nemo-tvkd COMMAND --help`."""
    what, example = HELP[command]
    head = f"nemo-tvkd {command}: {what}\n\nexample: {example}\n"
    if command in ON_A_FOLDER:
        return head
    return f"{head}\n{OPTIONS.get(command, '')}\n{_keys(command)}".replace("\n\n\n", "\n\n")


def _keys(command: str) -> str:
    from nemo_tvkd.compose import choices, compose
    from nemo_tvkd.config import COMMANDS
    from nemo_tvkd.documented import documented

    if command not in ON_A_RECIPE:
        return f"keys and defaults:\n{documented(compose(command, []), COMMANDS[command])}"
    from omegaconf import OmegaConf

    from nemo_tvkd.cluster.config import SubmitConfig

    named = "\n".join(f"{group}={'|'.join(choices(group))}" for group in ("recipe", "cluster"))
    return f"{named}\n\nkeys and defaults:\n{documented(OmegaConf.structured(SubmitConfig), SubmitConfig)}"


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
    if command in ON_A_FOLDER:
        return _run_on_folder(command, rest)
    if command in ON_A_RECIPE:
        return _run_on_recipe(command, rest)
    return _run(command, rest)


def _run_on_folder(command: str, rest: list[str]) -> int:
    if len(rest) != 1 or "=" in rest[0]:
        raise UserError(f"{command} takes the folder of a submitted recipe: {HELP[command][1]}")
    if command == "status":
        from nemo_tvkd.cluster.status import main as run
    else:
        from nemo_tvkd.report import main as run
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
        from nemo_tvkd.doctor import main as examine

        return examine(rest, folder)
    from nemo_tvkd.cluster.submit import main as submit

    start, rest = _take_option(rest, "--from")
    here, rest = _take_option(rest, "--here")
    dry_run = "--dry-run" in rest
    return submit([w for w in rest if w != "--dry-run"], folder=folder, dry_run=dry_run, start=start, here=here)


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
    if command == "data":
        rest = _checked_path(rest)
    config = compose(command, rest, Path(base) / "config.yaml" if base else None)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return 0
    return RUNNERS[command](config)


def _checked_path(rest: list[str]) -> list[str]:
    """`data check PATH key=value ...` as overrides."""
    from nemo_tvkd.compose import quoted

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
    from nemo_tvkd.train import main

    return main(config)


def _score(config: Any) -> int:
    from nemo_tvkd.scores.job import main

    return main(config)


def _evaluate(config: Any) -> int:
    from nemo_tvkd.evaluate import main

    return main(config)


def _inspect(config: Any) -> int:
    from nemo_tvkd.inspect import main

    return main(config)


def _data(config: Any) -> int:
    from nemo_tvkd.data_check import main

    return main(config)


def _import_hf(config: Any) -> int:
    from nemo_tvkd.runtime.convert import import_main

    return import_main(config)


def _export_hf(config: Any) -> int:
    from nemo_tvkd.runtime.convert import export_main

    return export_main(config)


def _benchmark(config: Any) -> int:
    from nemo_tvkd.benchmark import main

    return main(config)


def _bench(config: Any) -> int:
    from nemo_tvkd.bench import main

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
