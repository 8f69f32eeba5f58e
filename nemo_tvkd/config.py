"""Typed configuration: every key, its default and its meaning, in one place. YAML in conf/ holds only what differs."""

import difflib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError


@dataclass
class ShapingConfig:
    """TVKD's shaping term (gamma lives here only)."""

    value: str = "soft_value"
    """soft_value | max | margin | expectation (of the state), logit | logprob (of the action)."""
    form: str = "potential_difference"
    """potential_difference (the paper) | next_value (the released code)."""
    terminal: str = "bootstrap"
    """V after the last response token: the teacher's (bootstrap) or 0 (zero)."""
    gamma: float = 1.0
    temperature: float | None = None
    """tau of the soft value; algorithm.beta when null (Lemma 1)."""


@dataclass
class TvkdConfig:
    """Kwon et al. 2025, arXiv 2509.16965."""

    name: str = "tvkd"
    beta: float = 0.01
    alpha: float = 0.7
    use_reference: bool = False
    """Add DPO's reference term; the paper has none."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)


@dataclass
class DpoConfig:
    """Rafailov et al. 2023, arXiv 2305.18290."""

    name: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0


@dataclass
class SftConfig:
    """Supervised fine-tuning on responses."""

    name: str = "sft"


@dataclass
class StudentConfig:
    path: str = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or a run's output directory."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the student's own when empty."""


@dataclass
class FrozenConfig:
    """A model that judges: teacher or reference."""

    path: str = ""
    """As student.path; for `reference`, the student's initial weights when empty."""
    mode: str = "online"
    """online (in this job) | cached (from a score store)."""
    scores: str = ""
    """The score store, for mode=cached."""


@dataclass
class DataConfig:
    train: Any = ""
    """Path, or list of paths: JSONL (.gz), Parquet, a saved Hugging Face dataset."""
    validation: Any = ""
    max_length: int = 1024
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = None
    """Longer prompts keep their end; null: no prompt is cut, and one that fills max_length is a bad row."""
    shuffle: bool = True
    chat_template: str = "auto"
    """auto (the tokenizer's, else a plain transcript) | tokenizer | plain | a jinja file."""
    on_bad_row: str = "error"
    """error | skip (counted and reported)."""


@dataclass
class ParallelConfig:
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    data_parallel_size: int = 0
    """Model replicas when the command starts its own ranks; 0: as many as there are GPUs for, 1 on a CPU."""


@dataclass
class TrainerConfig:
    max_steps: int | None = None
    """Optimizer steps; from max_epochs when null."""
    max_epochs: int = 1
    global_batch_size: int = 64
    """Pairs per step (for sft: examples)."""
    micro_batch_size: int = 1
    """Pairs per forward pass and model replica (for sft: examples)."""
    precision: str = "bf16"
    """bf16 (fp32 master weights) | fp32."""
    recompute: bool = False
    """Keep only each layer's input and compute its activations again in the backward pass."""
    seed: int = 42
    output_dir: str = "runs/${algorithm.name}"
    val_interval: int = 0
    """Steps between validations; 0: at the end only."""
    save_interval: int = 0
    """Steps between checkpoints; 0: at the end only."""
    keep_checkpoints: int = 2
    log_interval: int = 1
    resume: str = "auto"
    """auto (continue from the newest complete checkpoint in output_dir) | never (refuse a used output_dir)."""


@dataclass
class OptimConfig:
    """AdamW; the learning rate warms up linearly, then follows the schedule down to min_lr."""

    lr: float = 5e-7
    min_lr: float = 0.0
    warmup_ratio: float = 0.1
    schedule: str = "cosine"
    """constant | linear | cosine."""
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_grad: float = 1.0
    """Global gradient norm; 0: no clipping."""


@dataclass
class LoggerConfig:
    tensorboard: bool = True


@dataclass
class TrainConfig:
    """`nemo-tvkd train`."""

    algorithm: Any = field(default_factory=dict)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: FrozenConfig = field(default_factory=FrozenConfig)
    reference: FrozenConfig = field(default_factory=FrozenConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class ScoringConfig:
    model: str = ""
    """The frozen model: as student.path."""
    tokenizer: str = ""
    what: list[str] = field(default_factory=lambda: ["value"])
    """value | logprob, or both."""
    value_kind: str = "soft_value"
    temperature: float = 0.01
    """tau of the soft value: the student's algorithm.beta unless algorithm.shaping.temperature is set."""
    output: str = ""
    micro_batch_size: int = 8
    """Pairs per forward pass and model replica."""
    precision: str = "bf16"
    part_size: int = 1024
    """Pairs per Parquet shard: what a killed job loses at most, for each replica."""


@dataclass
class ScoreConfig:
    """`nemo-tvkd score`."""

    score: ScoringConfig = field(default_factory=ScoringConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class EvaluateConfig:
    """`nemo-tvkd evaluate`."""

    checkpoint: str = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or a run's output directory."""
    tokenizer: str = ""
    reference: str = ""
    """Checkpoint whose log-probabilities rewards are measured against; none: reward = beta log pi."""
    beta: float = 0.1
    output: str = ""
    """JSON file to write; the table is printed either way."""
    micro_batch_size: int = 8
    precision: str = "bf16"
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class ImportConfig:
    """`nemo-tvkd import-hf`."""

    source: str = ""
    output: str = ""
    tokenizer: str = ""
    """Tokenizer to keep in the checkpoint instead of the source's own."""


@dataclass
class ExportConfig:
    """`nemo-tvkd export-hf`."""

    checkpoint: str = ""
    output: str = ""


COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
    "import-hf": ImportConfig,
    "export-hf": ExportConfig,
}
ALGORITHMS: dict[str, type] = {"tvkd": TvkdConfig, "dpo": DpoConfig, "sft": SftConfig}


def package_folder(name: str) -> Path:
    """`conf` or `slurm`: inside the installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("nemo_tvkd"))) / name
    return inside if inside.is_dir() else Path(str(resources.files("nemo_tvkd"))).parent / name


def compose(command: str, overrides: list[str], base: Path | None = None) -> Any:
    """The resolved configuration of a command, from conf/ and `key=value` overrides.

    Args:
        base: a run's config.yaml to start from instead of the defaults (`train --from`).

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or that cannot be parsed,
            an unknown algorithm.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    store.store(name=f"{command}_schema", node=COMMANDS[command])
    for name, node in ALGORITHMS.items():
        store.store(group="algorithm", name=f"{name}_schema", node=node)
    if base is not None:
        overrides = _as_overrides(base, overrides) + overrides
    _check_override_syntax(overrides)
    groups = [o for o in overrides if _key(o) == "algorithm"] if command == "train" else []
    _check_algorithm(groups)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(package_folder("conf")), version_base="1.3"):
        try:
            config = hydra_compose(command, overrides=overrides)
        except Exception as error:
            _check_known(overrides, hydra_compose(command, overrides=groups))
            raise UserError(_one_line(error)) from error
    if command == "train" and OmegaConf.get_type(config.algorithm) is not ALGORITHMS.get(config.algorithm.name):
        raise UserError(
            f"algorithm.name={config.algorithm.name}: choose the method by algorithm={'|'.join(ALGORITHMS)}"
        )
    _resolve(config)
    return config


def _resolve(config: Any) -> None:
    """Put values in the place of ${...}; one that stays would fail wherever it is read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key in _flatten(OmegaConf.to_container(config)):
        try:
            value = OmegaConf.select(config, key, throw_on_missing=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
        if "${" in str(value):
            raise UserError(f"{key}={value}: a value cannot hold ${{")
    OmegaConf.resolve(config)


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def _check_algorithm(groups: list[str]) -> None:
    for override in groups:
        value = override.split("=", 1)[1]
        if value not in ALGORITHMS and not value.startswith("{"):
            raise UserError(f"{override} is none of the known algorithms: {', '.join(ALGORITHMS)}")


def _as_overrides(base: Path, overrides: list[str]) -> list[str]:
    """A saved configuration as overrides, so that it passes the same checks as typed ones.

    Where the typed `overrides` choose another algorithm, the saved one's keys are left out.
    """
    from omegaconf import OmegaConf

    if not base.is_file():
        raise UserError(f"--from: {base} does not exist; give the output directory of a run")
    try:
        saved = OmegaConf.to_container(OmegaConf.load(base))
        name = saved["algorithm"]["name"]
    except Exception as error:  # no YAML, no mapping, or a mapping of something else
        raise UserError(f"--from: {base} is not the config.yaml of a run") from error
    chosen = [o.split("=", 1)[1] for o in overrides if _key(o) == "algorithm"]
    if chosen and chosen[-1] != name:
        del saved["algorithm"]
    flat = _flatten(saved)
    flat.pop("algorithm.name", None)
    return [f"algorithm={name}"] * (not chosen) + [f"{key}={_quoted(value)}" for key, value in flat.items()]


def _quoted(value: Any) -> str:
    """A value in Hydra's grammar, where a backslash is one unless it stands before a quote."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, list):
        return "[" + ",".join(_quoted(v) for v in value) + "]"
    return str(value)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _check_override_syntax(overrides: list[str]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key or key[0] in "+~":
            raise UserError(f"{override!r} is no override: write key=value, for example trainer.max_steps=100")
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            hint = f'text is quoted twice, as in "{key}={_quoted(value)}"'
            raise UserError(f"{key}: {value!r} cannot be read: {hint}") from error
        if parsed.is_sweep_override():
            hint = f'a list is written [a,b], text as "{key}={_quoted(value)}"'
            raise UserError(f"{key}: {value!r} is several values: {hint}")


def _check_known(overrides: list[str], known: Any) -> None:
    from omegaconf import OmegaConf

    keys = _flatten(OmegaConf.to_container(known, resolve=False))
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    for override in overrides:
        key = _key(override)
        if key not in keys and key not in sections:
            raise UserError(_unknown(key, list(keys), sections))


def _unknown(key: str, keys: list[str], sections: set[str]) -> str:
    """The same name in another section is nearer than a similar name in this one."""
    last = key.rsplit(".", 1)[-1]
    same = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    similar = keys if "." in key else [*keys, *sections]
    near = difflib.get_close_matches(key, same, 1, cutoff=0) or difflib.get_close_matches(key, similar, 1, cutoff=0.5)
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else "see --cfg job for all keys")


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages span lines; the first one with the key says it."""
    lines: list[str] = []
    key = ""
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or lines
        key = str(getattr(cause, "full_key", None) or key)
        cause = cause.__cause__
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]
