"""Typed configuration: every key, its default and its meaning, in one place. YAML in conf/ holds only what differs."""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nemo_tvkd.algorithms import ALGORITHMS
from nemo_tvkd.benchmark.config import BenchmarkConfig
from nemo_tvkd.cluster.config import SubmitConfig

__all__ = ["ALGORITHMS", "COMMANDS", "package_folder"]


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
class TeacherConfig(FrozenConfig):
    tokenizer: str = ""
    """Tokenizer directory or .model file; the teacher's own when empty. It may be another one than the student's."""
    chat_template: str = ""
    """For a teacher that reads pairs its own way: as data.chat_template. Empty: its tokenizer's own if it has another
    tokenizer than the student, else the student's."""


@dataclass
class RewardSource:
    """A model with a reward head, or what it said."""

    path: Any = ""
    """As student.path; a Hugging Face sequence-classification model with one label, too. For edpo a list of several."""
    scores: Any = ""
    """Score store, with oracle.mode=cached; for edpo a list of several."""
    tokenizer: str = ""
    """As teacher.tokenizer."""
    chat_template: str = ""
    """As teacher.chat_template."""


@dataclass
class OracleConfig(RewardSource):
    mode: str = "online"
    """online (in this job) | cached (from a score store) | columns (the data's chosen_reward and rejected_reward)."""
    normalize: str = "none"
    """none | zscore (rewards over their standard deviation in the score store, or in the training data's columns)."""


@dataclass
class DataConfig:
    train: Any = ""
    """Path, or list of paths: JSONL (.gz), Parquet, a saved Hugging Face dataset, a copy of a hub dataset's folder; or
    a dataset's hub id. The last two may name their split, as in ORG/NAME:SPLIT; else it is train, or test for
    data.validation."""
    validation: Any = ""
    max_length: int = 1024
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = None
    """Longer prompts keep their end; null: no prompt is cut, and one that fills max_length is a bad row."""
    shuffle: bool = True
    chat_template: str = "auto"
    """auto (the tokenizer's, else a plain transcript) | tokenizer | plain | llama3 | mistral | a jinja file. The
    checkpoints of a run carry a template that was given by name or file, and the two tokens below."""
    end_token: str = ""
    """The token that ends a response, a word of the vocabulary; the tokenizer's own when empty. It is also that of
    models with the same vocabulary; others (a teacher with another tokenizer) have their own."""
    pad_token: str = ""
    """The padding token that checkpoints name (training pads with nothing that a model reads); as data.end_token."""
    on_bad_row: str = "error"
    """error | skip (counted and reported)."""


@dataclass
class TrainingDataConfig(DataConfig):
    label_noise: float = 0.0
    """Share of the training pairs whose chosen and rejected response are exchanged, by their pair id; 0 to 1."""
    label_noise_seed: int = 0
    """Which pairs these are."""


@dataclass
class ParallelConfig:
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    data_parallel_size: int = 0
    """Model replicas when the command starts its own ranks; 0: as many as there are GPUs for, 1 on a CPU."""
    lm_head_memory_mib: int = 0
    """MiB that logits may take at a time (they are made a chunk at a time); 0: 512 on a GPU, 64 on a CPU."""


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
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    reference: FrozenConfig = field(default_factory=FrozenConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
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
    """value | logprob | reward (of a model with a reward head), one or several."""
    value_kind: Any = "soft_value"
    """As algorithm.shaping.value, or a list: every kind asked for, soft_value at every temperature asked for."""
    temperature: Any = 0.01
    """tau of the soft value, or a list: the student's algorithm.beta unless algorithm.shaping.temperature is set."""
    value_storage: str = "all"
    """all | ends (V(s_1) and V(s_{T+1}): enough for gamma = 1 and form=potential_difference)."""
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
    oracle: RewardSource = field(default_factory=RewardSource)
    """Whose |reward difference| is a preference's strength: a model, a score store, or else the data's columns."""
    strength_bins: int = 4
    """Parts of equal size that pairs are reported in, by the strength of their preference."""
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
    kind: str = "auto"
    """causal_lm | reward_model (a sequence-classification model with one label) | auto (what the checkpoint is)."""


@dataclass
class SizeConfig:
    """A Llama with random weights."""

    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 32000


@dataclass
class MeasuringConfig:
    part: str = ""
    """vocab | score | step; the word after `bench`."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    repeats: int = 9
    """Timed rounds, of which medians are taken."""
    tokens: int = 0
    """vocab: rows of logits; 0: 8192 on a GPU, 512 on a CPU."""
    vocab_sizes: Any = field(default_factory=lambda: [32000, 128256])
    """vocab: columns of logits over all tensor-parallel ranks; one or a list."""
    hidden_size: int = 2048
    """vocab: of the hidden states that the output layer reads."""
    prompt_length: int = 64
    """score, step: tokens of every prompt."""
    response_length: int = 64
    """score, step: tokens of every response."""
    pairs: int = 32
    """score: pairs of the smallest run."""
    growth: Any = field(default_factory=lambda: [1, 2, 4, 8])
    """score: multiples of it; one or a list."""
    full_logits: bool = True
    """step: also make the step through full fp32 logits, as other tools do."""
    student: SizeConfig = field(default_factory=SizeConfig)
    """The architecture where student.path is empty; with a path, its config.json's. Weights are random either way."""
    teacher: SizeConfig = field(default_factory=lambda: SizeConfig(hidden_size=384, num_layers=6, num_heads=6))
    """As student: of teacher.path, and of score.model."""


@dataclass
class BenchConfig(TrainConfig):
    """`nemo-tvkd bench vocab|score|step`: a training configuration, of which the layout, precision, batch sizes and
    the algorithm are measured."""

    bench: MeasuringConfig = field(default_factory=MeasuringConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(global_batch_size=4, micro_batch_size=4))
    score: ScoringConfig = field(default_factory=ScoringConfig)


COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
    "import-hf": ImportConfig,
    "export-hf": ExportConfig,
    "bench": BenchConfig,
    "benchmark": BenchmarkConfig,
    "submit": SubmitConfig,
}


def package_folder(name: str) -> Path:
    """`conf` or `slurm`: inside the installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("nemo_tvkd"))) / name
    return inside if inside.is_dir() else Path(str(resources.files("nemo_tvkd"))).parent / name
