"""Typed configuration of the commands: every key, its default, its meaning. YAML in conf/ holds only what differs."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.config.algorithms import ShapingConfig
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
from nemo_tvkd.keys import key
from nemo_tvkd.parallel.statistic import VALUE_KINDS

SCORABLE = ("value", "logprob", "reward")
STORAGE = ("all", "ends")
CHECKPOINT_KINDS = ("auto", "causal_lm", "reward_model")


@dataclass
class TrainConfig:
    """`nemo-tvkd train`."""

    algorithm: Any = key({})
    student: StudentConfig = key(StudentConfig)
    teacher: TeacherConfig = key(TeacherConfig)
    reference: FrozenConfig = key(FrozenConfig)
    oracle: OracleConfig = key(OracleConfig)
    data: TrainingDataConfig = key(TrainingDataConfig)
    parallel: ParallelConfig = key(ParallelConfig)
    trainer: TrainerConfig = key(TrainerConfig)
    optim: OptimConfig = key(OptimConfig)
    logger: LoggerConfig = key(LoggerConfig)


@dataclass
class ScoringConfig:
    model: str = ""
    """The frozen model: as student.path."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the model's own when empty."""
    what: list[str] = key(["value"], choices=SCORABLE)
    """value | logprob | reward (of a model with a reward head), one or several."""
    value_kind: Any = key("soft_value", choices=VALUE_KINDS, one_or_more=True)
    """As algorithm.shaping.value, or a list: every kind asked for, soft_value at every temperature asked for."""
    temperature: Any = key(0.01, above=0, one_or_more=True)
    """tau of the soft value, or a list: the student's algorithm.beta unless algorithm.shaping.temperature is set."""
    value_storage: str = key("all", choices=STORAGE)
    """all | ends (V(s_1) and V(s_{T+1}): enough for gamma = 1 and form=potential_difference)."""
    output: str = ""
    """Directory of the score store; the same command finishes one that was interrupted."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """bf16 | fp32."""
    part_size: int = key(1024, above=0)
    """Pairs per Parquet shard: what a killed job loses at most, for each replica."""


@dataclass
class ScoreConfig:
    """`nemo-tvkd score`."""

    score: ScoringConfig = key(ScoringConfig)
    data: DataConfig = key(DataConfig)
    parallel: ParallelConfig = key(ParallelConfig)


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
    beta: float = key(0.1, above=0)
    """Of rewards, beta (log pi - log ref), and tau of the soft value where shaping.temperature is null."""
    oracle: RewardSource = key(RewardSource)
    """Whose |reward difference| is a preference's strength: a model, a score store, or else the data's columns."""
    teacher: TeacherSource = key(TeacherSource)
    """Whose shaping (by the keys of `shaping`) the rewards are compared with."""
    shaping: ShapingConfig = key(ShapingConfig)
    strength_bins: int = key(4, above=0)
    """Parts of equal size that pairs are reported in, by the strength of their preference."""
    calibration_bins: int = key(10, above=0)
    """Parts of equal size that pairs are reported in, by the margin's own confidence sigmoid(|margin|)."""
    confidence: float = 0.95
    """Of the intervals."""
    resamples: int = key(2000, at_least=0)
    """Of the pairs, for the bootstrap; 0: no intervals."""
    seed: int = key(0, at_least=0)
    """Of the bootstrap."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    pairs_output: str = ""
    """JSONL file to write: each pair's numbers."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """bf16 | fp32."""
    data: DataConfig = key(DataConfig)
    parallel: ParallelConfig = key(ParallelConfig)


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
    beta: float = key(0.01, above=0)
    """tau of the soft value when shaping.temperature is null, and of the implicit reward beta (log pi - log ref)."""
    shaping: ShapingConfig = key(ShapingConfig)
    pairs: list[int] = key([])
    """Which pairs to show, by number from 1; else as `order` and `limit` say."""
    order: str = key("file", choices=("file", "margin", "disagreement"))
    """file | margin (the greatest |shaping margin| first) | disagreement (the teacher's worst first)."""
    limit: int = key(20, above=0)
    """How many pairs to show at most."""
    output: str = "inspect.html"
    """The page to write; it needs nothing else."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """bf16 | fp32."""
    data: DataConfig = key(DataConfig)
    parallel: ParallelConfig = key(ParallelConfig)


@dataclass
class DataCheckConfig:
    """`nemo-tvkd data check PATH`."""

    data: ExampleDataConfig = key(ExampleDataConfig)
    """data.train is PATH."""
    rows: str = key("auto", choices=("auto", "pairs", "examples"))
    """auto (pairs where there is one among the first rows) | pairs | examples."""
    tokenizer: str = ""
    """Tokenizer directory, .model file or checkpoint; without it lengths are in characters, and examples are text."""
    examples: int = key(3, at_least=0)
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
    kind: str = key("auto", choices=CHECKPOINT_KINDS)
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
    part: str = key("", suggested=("vocab", "score", "step"))
    """vocab | score | step; the word after `bench`."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    repeats: int = key(9, above=0)
    """Timed rounds, of which medians are taken."""
    tokens: int = key(0, at_least=0)
    """vocab: rows of logits; 0: 8192 on a GPU, 512 on a CPU."""
    vocab_sizes: Any = key([32000, 128256], above=0, one_or_more=True)
    """vocab: columns of logits over all tensor-parallel ranks; one or a list."""
    hidden_size: int = key(2048, above=0)
    """vocab: of the hidden states that the output layer reads."""
    prompt_length: int = key(64, above=0)
    """score, step: tokens of every prompt."""
    response_length: int = key(64, above=0)
    """score, step: tokens of every response."""
    pairs: int = key(32, above=0)
    """score: pairs of the smallest run."""
    growth: Any = key([1, 2, 4, 8], above=0, one_or_more=True)
    """score: multiples of it; one or a list."""
    full_logits: bool = True
    """step: also make the step through full fp32 logits, as other tools do."""
    student: SizeConfig = key(SizeConfig)
    """The architecture where student.path is empty; with a path, its config.json's. Weights are random either way."""
    teacher: SizeConfig = key(SizeConfig(hidden_size=384, num_layers=6, num_heads=6))
    """As student: of teacher.path, and of score.model."""


@dataclass
class BenchConfig(TrainConfig):
    """`nemo-tvkd bench vocab|score|step`: a training configuration, of which the layout, precision, batch sizes and
    the algorithm are measured."""

    bench: MeasuringConfig = key(MeasuringConfig)
    trainer: TrainerConfig = key(TrainerConfig(global_batch_size=4, micro_batch_size=4))
    score: ScoringConfig = key(ScoringConfig)
