"""What `--help` says: the commands, and the keys of each."""

from nemo_tvkd import __version__

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
    "completion": (
        "prints what a shell (bash, zsh, fish) reads to complete commands, keys and values",
        'eval "$(nemo-tvkd completion bash)"',
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
    if command in (*ON_A_FOLDER, "completion"):
        return head
    return f"{head}\n{OPTIONS.get(command, '')}\n{_keys(command)}".replace("\n\n\n", "\n\n")


def _keys(command: str) -> str:
    from nemo_tvkd.config.commands import COMMANDS
    from nemo_tvkd.config.compose import choices, compose
    from nemo_tvkd.config.documented import documented

    if command not in ON_A_RECIPE:
        return f"keys and defaults:\n{documented(compose(command, []), COMMANDS[command])}"
    from omegaconf import OmegaConf

    from nemo_tvkd.config.cluster import SubmitConfig

    named = "\n".join(f"{group}={'|'.join(choices(group))}" for group in ("recipe", "cluster"))
    return f"{named}\n\nkeys and defaults:\n{documented(OmegaConf.structured(SubmitConfig), SubmitConfig)}"
