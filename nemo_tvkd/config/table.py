"""The commands of `nemo-tvkd`: one row each. The command line, --help, completion and the documentation read them."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of a command: --flag, or --flag VALUE.

    Attributes:
        keyword: the argument of the command's main that it becomes; empty for those of the command line itself.
    """

    flag: str
    value: str
    text: str
    keyword: str = ""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        what: what it does, for `nemo-tvkd --help`.
        main: "module:function" below nemo_tvkd.commands; its first argument is what the command takes.
        takes: keys (key=value, composed) | recipe (key=value, composed by itself) | folder | words.
        config: "module:class" below nemo_tvkd.config, the dataclass of its keys; empty: it has none.
        subcommand: a word that has to follow the command's name.
        first: the key that a first word without = sets.
    """

    what: str
    example: str
    main: str
    takes: str = "keys"
    config: str = ""
    options: tuple[Option, ...] = ()
    notes: str = ""
    subcommand: str = ""
    first: str = ""

    def __post_init__(self) -> None:
        if self.config:
            cfg = Option("--cfg", "job", "print the resolved configuration and do nothing else")
            object.__setattr__(self, "options", (*self.options, cfg))

    @property
    def schema(self) -> Any:
        """The dataclass of its keys, imported only when it is needed: `nemo-tvkd --help` is to be quick."""
        module, name = self.config.split(":")
        return getattr(import_module(f"nemo_tvkd.config.{module}"), name)


CONFIG_DIR = Option("--config-dir", "DIR", "look for DIR/recipe/NAME.yaml and DIR/cluster/NAME.yaml as well", "folder")

COMMANDS = {
    "train": Command(
        "trains a student; algorithm=NAME chooses the method (nemo-tvkd train --help lists them)",
        "nemo-tvkd train algorithm=tvkd student.path=STUDENT teacher.path=TEACHER data.train=pairs.jsonl",
        "train:main",
        config="commands:TrainConfig",
        options=(
            Option("--from", "RUN_DIR", "repeat a run (its config.yaml); with trainer.output_dir=NEW and other keys"),
        ),
    ),
    "score": Command(
        "runs a frozen model over pairs and writes a score store",
        "nemo-tvkd score score.model=TEACHER data.train=pairs.jsonl score.what=[value] score.output=scores",
        "score:main",
        config="commands:ScoreConfig",
    ),
    "import-hf": Command(
        "converts a Hugging Face checkpoint to a NeMo checkpoint",
        "nemo-tvkd import-hf source=DIR_OR_ID output=DIR",
        "convert:import_main",
        config="commands:ImportConfig",
    ),
    "export-hf": Command(
        "converts a NeMo checkpoint to Hugging Face (safetensors, tokenizer, chat template, generation config)",
        "nemo-tvkd export-hf checkpoint=RUN_OR_CHECKPOINT output=DIR",
        "convert:export_main",
        config="commands:ExportConfig",
    ),
    "evaluate": Command(
        "measures preference accuracy, margins and rewards of a checkpoint (HF or NeMo) on pairs",
        "nemo-tvkd evaluate checkpoint=C data.validation=pairs.jsonl output=E.json",
        "evaluate:main",
        config="commands:EvaluateConfig",
    ),
    "inspect": Command(
        "draws shaping, values and rewards by token for chosen pairs, as one HTML file",
        "nemo-tvkd inspect checkpoint=TEACHER data.validation=pairs.jsonl output=shaping.html",
        "inspect:main",
        config="commands:InspectConfig",
    ),
    "data": Command(
        "data check PATH: shows what was recognised in a data file: counts, lengths, bad rows, rendered examples",
        "nemo-tvkd data check pairs.jsonl tokenizer=MODEL data.max_length=1024",
        "data_check:main",
        config="commands:DataCheckConfig",
        subcommand="check",
        first="data.train",
    ),
    "benchmark": Command(
        "runs lm-eval tasks on a Hugging Face checkpoint, answers AlpacaEval and MT-Bench, scores the answers",
        "nemo-tvkd benchmark checkpoint=HF_DIR output=DIR",
        "benchmark:main",
        config="benchmark:BenchmarkConfig",
    ),
    "submit": Command(
        "composes a recipe into Slurm jobs with dependencies and submits them; --dry-run prints them",
        "nemo-tvkd submit recipe=tvkd-llama-8b-1b cluster=example_pyxis train.trainer.seed=1,2,3 teacher_dpo=RUN",
        "submit:main",
        takes="recipe",
        config="cluster:SubmitConfig",
        options=(
            Option("--dry-run", "", "print the scripts; write and submit nothing", "dry_run"),
            Option("--from", "STAGE", "do this stage and those after it again; what they wrote is set aside", "start"),
            Option("--here", "STAGE", "run one stage on this machine, without Slurm", "here"),
            CONFIG_DIR,
        ),
        notes=(
            "STAGE.KEY=VALUE sets a key of one stage's command, STAGE.cluster.KEY=VALUE one of its job. Several\n"
            "values (train.trainer.seed=1,2,3) make array jobs of the stage and of those after it. STAGE=PATH takes\n"
            "PATH for the stage's output. Stages whose output is there are skipped.\n"
        ),
    ),
    "doctor": Command(
        "checks paths, tokenizers, layouts, memory and time of a recipe, and this machine, before anything starts",
        "nemo-tvkd doctor recipe=tvkd-llama-8b-1b cluster=example_pyxis",
        "doctor:main",
        takes="recipe",
        config="cluster:SubmitConfig",
        options=(CONFIG_DIR,),
        notes=(
            "It takes the arguments of submit; without a recipe it checks this machine alone. Under srun all ranks\n"
            "take part in an all-reduce.\n"
        ),
    ),
    "status": Command(
        "shows where a submitted recipe stands", "nemo-tvkd status RUN_DIR", "status:main", takes="folder"
    ),
    "report": Command(
        "puts all results of a recipe (or of one run) in one page",
        "nemo-tvkd report RUN_DIR",
        "report:main",
        takes="folder",
    ),
    "completion": Command(
        "prints what a shell (bash, zsh, fish) reads to complete commands, keys and values",
        'eval "$(nemo-tvkd completion bash)"',
        "completion:main",
        takes="words",
    ),
    "bench": Command(
        "measures the parts on this machine: vocab (reductions), score, step; prints a table, writes JSON",
        "nemo-tvkd bench step parallel.tensor_model_parallel_size=2 bench.output=bench.json",
        "bench:main",
        config="commands:BenchConfig",
        first="bench.part",
    ),
}
OWN_KEYS = tuple(name for name, row in COMMANDS.items() if row.config and name != "doctor")
"""The commands with a file in conf/: `doctor` reads submit's."""
