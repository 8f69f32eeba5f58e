"""The sections that the configurations of commands are made of: every key, its default and its meaning."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.config.places import TEMPLATE_NAMES
from nemo_tvkd.keys import key


@dataclass
class StudentConfig:
    path: str = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or output directory of a run."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the student's own when empty."""


@dataclass
class FrozenConfig:
    """A model that judges: teacher or reference."""

    path: str = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or output directory of a run. The reference is the student's
    initial weights when this is empty."""
    mode: str = key("online", choices=("online", "cached"))
    """Source of the model's numbers: online (computed in this job) | cached (read from a score store)."""
    scores: str = ""
    """Score store to read with mode=cached."""


@dataclass
class OwnTokenizer:
    """A model that may read the pairs with another tokenizer than the student."""

    tokenizer: str = ""
    """Tokenizer directory or .model file; this model's own when empty. It may differ from the student's."""
    chat_template: str = key("", suggested=TEMPLATE_NAMES)
    """Chat template of this model, by the values of data.chat_template. Empty: the template of its tokenizer if that
    differs from the student's, else the student's template."""


@dataclass
class TeacherConfig(OwnTokenizer, FrozenConfig):
    """The teacher of a training run."""


@dataclass
class Source:
    """A model, or the score store that holds its numbers."""

    path: str = ""
    """Hugging Face directory or hub id, NeMo checkpoint, or output directory of a run."""
    scores: str = ""
    """Score store with values, instead of a model."""


@dataclass
class TeacherSource(OwnTokenizer, Source):
    """A model with soft values."""


@dataclass
class RewardSource(OwnTokenizer, Source):
    """A model with a reward head."""

    path: Any = ""
    """Hugging Face directory or hub id (also of a sequence-classification model with one label), NeMo checkpoint, or
    output directory of a run. A list of several for edpo."""
    scores: Any = ""
    """Score store with rewards, read with oracle.mode=cached. A list of several for edpo."""


@dataclass
class OracleConfig(RewardSource):
    mode: str = key("online", choices=("online", "cached", "columns"))
    """Source of the rewards: online (computed in this job) | cached (read from a score store) | columns (the data's
    chosen_reward and rejected_reward)."""
    normalize: str = key("none", choices=("none", "zscore"))
    """Scale of the rewards: none | zscore (divided by their standard deviation in the score store, or in the columns of
    the training data)."""


@dataclass
class DataConfig:
    train: Any = ""
    """Path, or list of paths: JSON lines or JSON (.gz, .zst), Parquet, a saved Hugging Face dataset, a copy of a hub
    dataset's folder; or a dataset's hub id. A dataset may name its split and configuration, as in ORG/NAME:SPLIT or
    ORG/NAME@CONFIG:SPLIT. Without a name the split is train (for data.validation: validation or test; for
    UltraFeedback's kind train_prefs and test_prefs, for sft train_sft and test_sft). All paths of a list may have
    weights, as in [a:0.7,b:0.3]: a training epoch then has as many rows as all of them together, drawn from each in
    these shares; no row of a source comes again before all of its rows have come."""
    validation: Any = ""
    """Data to measure on without training, given as in data.train."""
    max_length: int = key(1024, above=0)
    """Longest sequence in tokens, prompt and response together."""
    max_prompt_length: int | None = key(None, above=0)
    """Longest prompt in tokens; a longer one keeps its end. null: no prompt is cut, and a row whose prompt fills
    max_length is a bad row."""
    shuffle: bool = True
    """Whether training reads its rows in a new order in every epoch; false: in the order of the file."""
    chat_template: str = key("auto", suggested=TEMPLATE_NAMES)
    """Chat template: auto (the tokenizer's, else a plain transcript) | tokenizer | plain | llama3 | mistral | a jinja
    file. Checkpoints of a run carry a template that was given by name or file, and the two tokens below."""
    end_token: str = ""
    """Token that ends a response, a word of the vocabulary; the tokenizer's own when empty. Models with the same
    vocabulary share it; a teacher with another tokenizer has its own."""
    pad_token: str = ""
    """Padding token that checkpoints name, a word of the vocabulary; the tokenizer's own when empty. No model reads
    what training pads with."""
    on_bad_row: str = key("error", choices=("error", "skip"))
    """Treatment of rows that cannot be used: error (stop) | skip (count and report them)."""


@dataclass
class ExampleDataConfig(DataConfig):
    assistant_turns: str = key("last", choices=("last", "all"))
    """Answers of a conversation that are trained: last | all (algorithm=sft; pairs differ in the last one alone). With
    all, the prompt is what comes before the first answer, and a conversation longer than max_length loses its end."""


@dataclass
class TrainingDataConfig(ExampleDataConfig):
    label_noise: float = key(0.0, at_least=0, at_most=1)
    """Share of the training pairs whose chosen and rejected response are exchanged; the pair ids decide which."""
    label_noise_seed: int = key(0, at_least=0)
    """Random seed of the choice of exchanged pairs."""


@dataclass
class ParallelConfig:
    tensor_model_parallel_size: int = key(1, above=0)
    """Ranks that each layer is split over (TP); best kept within a node."""
    pipeline_model_parallel_size: int = key(1, above=0)
    """Ranks that the layers are distributed over (PP)."""
    context_parallel_size: int = key(1, above=0)
    """Ranks that a sequence is split over (CP); only 1 is supported."""
    sequence_parallel: bool = False
    """Whether activations between tensor-parallel layers are split over tokens: less memory, needs TP > 1."""
    data_parallel_size: int = key(0, at_least=0)
    """Model replicas when the command starts its own ranks; 0: as many as there are GPUs for, 1 on a CPU."""
    lm_head_memory_mib: int = key(0, at_least=0)
    """Memory in MiB for logits, which are computed in chunks; 0: 512 on a GPU, 64 on a CPU."""


@dataclass
class TrainerConfig:
    max_steps: int | None = key(None, above=0)
    """Optimizer steps; null: max_epochs decides."""
    max_epochs: int = key(1, above=0)
    """Passes over data.train where max_steps is null."""
    global_batch_size: int = key(64, above=0)
    """Pairs per step (examples for algorithm=sft)."""
    micro_batch_size: int = key(1, above=0)
    """Pairs per forward pass and model replica (examples for algorithm=sft)."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """Number format of the computation: bf16 (with fp32 master weights) | fp32."""
    recompute: bool = False
    """Whether each layer keeps only its input and computes its activations again in the backward pass."""
    seed: int = key(42, at_least=0)
    """Random seed of the order of rows and of new weights, such as a reward head."""
    output_dir: str = "runs/${algorithm.name}"
    """Folder of the run: configuration, metrics, checkpoints."""
    val_interval: int = key(0, at_least=0)
    """Steps between validations; 0: only at the end."""
    save_interval: int = key(0, at_least=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = key(2, above=0)
    """Number of newest checkpoints to keep."""
    log_interval: int = key(1, above=0)
    """Steps between rows of metrics.jsonl and lines of progress."""
    resume: str = key("auto", choices=("auto", "never"))
    """Start of a run: auto (continue from the newest complete checkpoint in output_dir) | never (refuse a used
    output_dir)."""


@dataclass
class OptimConfig:
    """AdamW; the learning rate warms up linearly, then follows the schedule down to min_lr."""

    lr: float = key(5e-7, at_least=0)
    """Highest learning rate. The default is the paper's for preferences; algorithm=sft needs another (2e-5)."""
    min_lr: float = key(0.0, at_least=0)
    """Learning rate at the end of the schedule."""
    warmup_ratio: float = key(0.1, at_least=0, at_most=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: str = key("cosine", choices=("constant", "linear", "cosine"))
    """Learning rate after the warm-up: constant | linear | cosine."""
    weight_decay: float = key(0.0, at_least=0)
    """Weight decay of AdamW."""
    betas: list[float] = key([0.9, 0.999])
    """Decay rates of AdamW's running means: of the gradient and of its square."""
    eps: float = key(1e-8, at_least=0)
    """Term in AdamW's denominator that avoids a division by 0."""
    clip_grad: float = key(1.0, at_least=0)
    """Largest norm of the whole gradient; 0: no clipping."""


@dataclass
class WandbConfig:
    """Weights & Biases (pip install wandb); off without a project."""

    project: str = ""
    """Project of Weights & Biases that runs go to; empty: nothing is sent."""
    entity: str = ""
    """User or team; the account's default when empty."""
    name: str = ""
    """Name of the run; the last part of trainer.output_dir when empty."""
    group: str = ""
    """Group of runs that this one belongs to."""
    mode: str = key("online", choices=("online", "offline"))
    """Time of sending: online (at once) | offline (later, by `wandb sync` where there is a network)."""


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    """Whether the figures of metrics.jsonl are also written to output_dir/tensorboard."""
    wandb: WandbConfig = key(WandbConfig)
