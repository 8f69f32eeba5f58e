"""Typed configuration of the commands: every key, its default, its meaning. YAML in conf/ holds only what differs."""

from dataclasses import dataclass
from typing import Any

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
from nemo_tvkd.losses.methods import ShapingConfig
from nemo_tvkd.parallel.statistic import VALUE_KINDS

SCORABLE = ("value", "logprob", "reward")
STORAGE = ("all", "ends")
CHECKPOINT_KINDS = ("auto", "causal_lm", "reward_model")


@dataclass
class TrainConfig:
    """`nemo-tvkd train`."""

    algorithm: Any = key({})
    """Method with its keys, chosen by algorithm=NAME."""
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
    """Frozen model: Hugging Face directory or hub id, NeMo checkpoint, or output directory of a run."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the model's own when empty."""
    what: list[str] = key(["value"], choices=SCORABLE)
    """Numbers to store, one or several: value | logprob | reward (of a model with a reward head)."""
    value_kind: Any = key("soft_value", choices=VALUE_KINDS, one_or_more=True)
    """Kind of value V, one or a list; soft_value is stored at every temperature."""
    temperature: Any = key(0.01, above=0, one_or_more=True)
    """Temperature tau of the soft value, one or a list: the student's algorithm.beta unless
    algorithm.shaping.temperature is set."""
    value_storage: str = key("all", choices=STORAGE)
    """Values to keep: all | ends (V(s_1) and V(s_{T+1}): enough for gamma = 1 and form=potential_difference)."""
    output: str = ""
    """Directory of the score store; the same command finishes an interrupted one."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """Number format of the computation: bf16 | fp32."""
    part_size: int = key(1024, above=0)
    """Pairs per Parquet shard, which is the most that a killed job loses for each replica."""


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
    """Hugging Face directory or hub id, NeMo checkpoint, or output directory of a run. Several in a list are compared
    with the first."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the checkpoint's own when empty."""
    reference: str = ""
    """Checkpoint whose log-probabilities rewards are measured against; empty: reward = beta log pi."""
    beta: float = key(0.1, above=0)
    """Factor of the rewards beta (log pi - log ref), and temperature tau of the soft value where shaping.temperature is
    null."""
    oracle: RewardSource = key(RewardSource)
    """Source of |reward difference|, a preference's strength: a model, a score store, or else the data's columns."""
    teacher: TeacherSource = key(TeacherSource)
    """Model whose shaping (by the keys of `shaping`) the rewards are compared with."""
    shaping: ShapingConfig = key(ShapingConfig)
    strength_bins: int = key(4, above=0)
    """Number of bins of equal size that pairs are reported in, by the strength of their preference."""
    calibration_bins: int = key(10, above=0)
    """Number of bins of equal size that pairs are reported in, by the margin's own confidence sigmoid(|margin|)."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    resamples: int = key(2000, at_least=0)
    """Bootstrap resamples of the pairs; 0: no intervals."""
    seed: int = key(0, at_least=0)
    """Random seed of the bootstrap."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    pairs_output: str = ""
    """JSONL file to write with the numbers of each pair."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """Number format of the computation: bf16 | fp32."""
    data: DataConfig = key(DataConfig)
    parallel: ParallelConfig = key(ParallelConfig)


@dataclass
class InspectConfig:
    """`nemo-tvkd inspect`."""

    checkpoint: str = ""
    """Model whose values, shaping and log-probabilities are shown, mostly the teacher: Hugging Face directory or hub
    id, NeMo checkpoint, or output directory of a run."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the checkpoint's own when empty."""
    reference: str = ""
    """Checkpoint whose log-probabilities are subtracted from the model's."""
    reward_model: str = ""
    """Model with a reward head, read at every token; the checkpoint's own head when empty."""
    beta: float = key(0.01, above=0)
    """Temperature tau of the soft value where shaping.temperature is null, and factor of the implicit reward beta (log
    pi - log ref)."""
    shaping: ShapingConfig = key(ShapingConfig)
    pairs: list[int] = key([])
    """Numbers of the pairs to show, from 1; empty: `order` and `limit` choose them."""
    order: str = key("file", choices=("file", "margin", "disagreement"))
    """Order of the pairs: file | margin (the greatest |shaping margin| first) | disagreement (the teacher's worst
    first)."""
    limit: int = key(20, above=0)
    """Largest number of pairs to show."""
    output: str = "inspect.html"
    """HTML page to write; it needs no other file."""
    micro_batch_size: int = key(8, above=0)
    """Pairs per forward pass and model replica."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """Number format of the computation: bf16 | fp32."""
    data: DataConfig = key(DataConfig)
    parallel: ParallelConfig = key(ParallelConfig)


@dataclass
class DataCheckConfig:
    """`nemo-tvkd data check PATH`."""

    data: ExampleDataConfig = key(ExampleDataConfig)
    """data.train is PATH."""
    rows: str = key("auto", choices=("auto", "pairs", "examples"))
    """Kind of rows: auto (pairs where there is one among the first rows) | pairs | examples."""
    tokenizer: str = ""
    """Tokenizer directory or .model file or checkpoint. Without one, lengths are in characters and examples are
    text."""
    examples: int = key(3, at_least=0)
    """Number of rows to show."""
    output: str = ""
    """JSON file to write; the tables are printed either way."""


@dataclass
class ImportConfig:
    """`nemo-tvkd import-hf`."""

    source: str = ""
    """Hugging Face directory or hub id."""
    output: str = ""
    """Directory to create."""
    tokenizer: str = ""
    """Tokenizer to keep in the checkpoint instead of the source's own."""


@dataclass
class ExportConfig:
    """`nemo-tvkd export-hf`."""

    checkpoint: str = ""
    """NeMo checkpoint, or output directory of a run (its newest checkpoint)."""
    output: str = ""
    """Directory to create."""
    kind: str = key("auto", choices=CHECKPOINT_KINDS)
    """Kind of model to write: causal_lm | reward_model (a sequence-classification model with one label) | auto (as the
    checkpoint is)."""


@dataclass
class SizeConfig:
    """A Llama with random weights."""

    hidden_size: int = 256
    """Width of the model."""
    num_layers: int = 4
    """Number of layers."""
    num_heads: int = 4
    """Attention heads; a divisor of hidden_size."""
    vocab_size: int = 32000
    """Rows of the embedding."""


@dataclass
class MeasuringConfig:
    part: str = key("", suggested=("vocab", "score", "step"))
    """Part to measure, the word after `bench`: vocab | score | step."""
    output: str = ""
    """JSON file to write; the table is printed either way."""
    repeats: int = key(9, above=0)
    """Timed rounds, of which the median is reported."""
    tokens: int = key(0, at_least=0)
    """Rows of logits (vocab); 0: 8192 on a GPU, 512 on a CPU."""
    vocab_sizes: Any = key([32000, 128256], above=0, one_or_more=True)
    """Columns of logits over all tensor-parallel ranks (vocab), one or a list."""
    hidden_size: int = key(2048, above=0)
    """Width of the hidden states that the output layer reads (vocab)."""
    prompt_length: int = key(64, above=0)
    """Tokens of every prompt (score, step)."""
    response_length: int = key(64, above=0)
    """Tokens of every response (score, step)."""
    pairs: int = key(32, above=0)
    """Pairs of the smallest run (score)."""
    growth: Any = key([1, 2, 4, 8], above=0, one_or_more=True)
    """Multiples of `pairs` to measure (score), one or a list."""
    full_logits: bool = True
    """Whether the step is also measured with full fp32 logits, as other tools compute it (step)."""
    student: SizeConfig = key(SizeConfig)
    """The architecture where student.path is empty; with a path, its config.json's. Weights are random either way."""
    teacher: SizeConfig = key(SizeConfig(hidden_size=384, num_layers=6, num_heads=6))
    """The same for teacher.path and score.model."""


@dataclass
class BenchConfig(TrainConfig):
    """`nemo-tvkd bench vocab|score|step`: a training configuration, of which the layout, precision, batch sizes and
    the algorithm are measured."""

    bench: MeasuringConfig = key(MeasuringConfig)
    trainer: TrainerConfig = key(TrainerConfig(global_batch_size=4, micro_batch_size=4))
    score: ScoringConfig = key(ScoringConfig)
