"""Typed configuration of the commands: every key, its default, its meaning. YAML in conf/ holds only what differs."""

from dataclasses import dataclass, field
from typing import Any

from nemo_tvkd.config.algorithms import ALGORITHMS, ShapingConfig
from nemo_tvkd.config.benchmark import BenchmarkConfig
from nemo_tvkd.config.cluster import SubmitConfig
from nemo_tvkd.config.sections import (
    DataConfig,
    ExampleDataConfig,
    FrozenConfig,
    LoggerConfig,
    OptimConfig,
    OracleConfig,
    ParallelConfig,
    RewardSource,
    StudentConfig,
    TeacherConfig,
    TeacherSource,
    TrainerConfig,
    TrainingDataConfig,
)

__all__ = ["ALGORITHMS", "COMMANDS", "ParallelConfig"]


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
    """Tokenizer directory or .model file; the model's own when empty."""
    what: list[str] = field(default_factory=lambda: ["value"])
    """value | logprob | reward (of a model with a reward head), one or several."""
    value_kind: Any = "soft_value"
    """As algorithm.shaping.value, or a list: every kind asked for, soft_value at every temperature asked for."""
    temperature: Any = 0.01
    """tau of the soft value, or a list: the student's algorithm.beta unless algorithm.shaping.temperature is set."""
    value_storage: str = "all"
    """all | ends (V(s_1) and V(s_{T+1}): enough for gamma = 1 and form=potential_difference)."""
    output: str = ""
    """Directory of the score store; the same command finishes one that was interrupted."""
    micro_batch_size: int = 8
    """Pairs per forward pass and model replica."""
    precision: str = "bf16"
    """bf16 | fp32."""
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

    checkpoint: Any = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or a run's output directory; a list of several is compared
    with its first."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the checkpoint's own when empty."""
    reference: str = ""
    """Checkpoint whose log-probabilities rewards are measured against; none: reward = beta log pi."""
    beta: float = 0.1
    """Of rewards, beta (log pi - log ref), and tau of the soft value where shaping.temperature is null."""
    oracle: RewardSource = field(default_factory=RewardSource)
    """Whose |reward difference| is a preference's strength: a model, a score store, or else the data's columns."""
    teacher: TeacherSource = field(default_factory=TeacherSource)
    """Whose shaping (by the keys of `shaping`) the rewards are compared with."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    strength_bins: int = 4
    """Parts of equal size that pairs are reported in, by the strength of their preference."""
    calibration_bins: int = 10
    """Parts of equal size that pairs are reported in, by the margin's own confidence sigmoid(|margin|)."""
    confidence: float = 0.95
    """Of the intervals."""
    resamples: int = 2000
    """Of the pairs, for the bootstrap; 0: no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    pairs_output: str = ""
    """JSONL file to write: each pair's numbers."""
    micro_batch_size: int = 8
    """Pairs per forward pass and model replica."""
    precision: str = "bf16"
    """bf16 | fp32."""
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class InspectConfig:
    """`nemo-tvkd inspect`."""

    checkpoint: str = ""
    """The model whose values, shaping and log-probabilities are shown (the teacher, mostly): as student.path."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the checkpoint's own when empty."""
    reference: str = ""
    """Another checkpoint, whose log-probabilities are taken from the checkpoint's."""
    reward_model: str = ""
    """A model with a reward head, read at every token; the checkpoint's own head when empty."""
    beta: float = 0.01
    """tau of the soft value when shaping.temperature is null, and of the implicit reward beta (log pi - log ref)."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    pairs: list[int] = field(default_factory=list)
    """Which pairs to show, by number from 1; else as `order` and `limit` say."""
    order: str = "file"
    """file | margin (the greatest |shaping margin| first) | disagreement (the teacher's worst first)."""
    limit: int = 20
    """How many pairs to show at most."""
    output: str = "inspect.html"
    """The page to write; it needs nothing else."""
    micro_batch_size: int = 8
    """Pairs per forward pass and model replica."""
    precision: str = "bf16"
    """bf16 | fp32."""
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class DataCheckConfig:
    """`nemo-tvkd data check PATH`."""

    data: ExampleDataConfig = field(default_factory=ExampleDataConfig)
    """data.train is PATH."""
    rows: str = "auto"
    """auto (pairs where there is one among the first rows) | pairs | examples."""
    tokenizer: str = ""
    """Tokenizer directory, .model file or checkpoint; without it lengths are in characters, and examples are text."""
    examples: int = 3
    """How many rows to show."""
    output: str = ""
    """JSON file to write; the tables are printed either way."""


@dataclass
class ImportConfig:
    """`nemo-tvkd import-hf`."""

    source: str = ""
    """Hugging Face directory or hub id."""
    output: str = ""
    """Directory to make."""
    tokenizer: str = ""
    """Tokenizer to keep in the checkpoint instead of the source's own."""


@dataclass
class ExportConfig:
    """`nemo-tvkd export-hf`."""

    checkpoint: str = ""
    """NeMo checkpoint, or a run's output directory (its newest checkpoint)."""
    output: str = ""
    """Directory to make."""
    kind: str = "auto"
    """causal_lm | reward_model (a sequence-classification model with one label) | auto (what the checkpoint is)."""


@dataclass
class SizeConfig:
    """A Llama with random weights."""

    hidden_size: int = 256
    """Width."""
    num_layers: int = 4
    """Depth."""
    num_heads: int = 4
    """Attention heads; divides hidden_size."""
    vocab_size: int = 32000
    """Rows of the embedding."""


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
    "inspect": InspectConfig,
    "data": DataCheckConfig,
    "import-hf": ImportConfig,
    "export-hf": ExportConfig,
    "bench": BenchConfig,
    "benchmark": BenchmarkConfig,
    "submit": SubmitConfig,
}
