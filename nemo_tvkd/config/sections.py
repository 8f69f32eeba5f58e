"""The sections that the configurations of commands are made of: every key, its default and its meaning."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.config.places import TEMPLATE_NAMES
from nemo_tvkd.keys import key


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
    mode: str = key("online", choices=("online", "cached"))
    """online (in this job) | cached (from a score store)."""
    scores: str = ""
    """The score store, for mode=cached."""


@dataclass
class TeacherConfig(FrozenConfig):
    tokenizer: str = ""
    """Tokenizer directory or .model file; the teacher's own when empty. It may be another one than the student's."""
    chat_template: str = key("", suggested=TEMPLATE_NAMES)
    """For a teacher that reads pairs its own way: as data.chat_template. Empty: its tokenizer's own if it has another
    tokenizer than the student, else the student's."""


@dataclass
class TeacherSource:
    """A model with soft values, or what it said."""

    path: str = ""
    """As student.path."""
    scores: str = ""
    """Score store with values."""
    tokenizer: str = ""
    """As teacher.tokenizer."""
    chat_template: str = key("", suggested=TEMPLATE_NAMES)
    """As teacher.chat_template."""


@dataclass
class RewardSource:
    """A model with a reward head, or what it said."""

    path: Any = ""
    """As student.path; a Hugging Face sequence-classification model with one label, too. For edpo a list of several."""
    scores: Any = ""
    """Score store, with oracle.mode=cached; for edpo a list of several."""
    tokenizer: str = ""
    """As teacher.tokenizer."""
    chat_template: str = key("", suggested=TEMPLATE_NAMES)
    """As teacher.chat_template."""


@dataclass
class OracleConfig(RewardSource):
    mode: str = key("online", choices=("online", "cached", "columns"))
    """online (in this job) | cached (from a score store) | columns (the data's chosen_reward and rejected_reward)."""
    normalize: str = key("none", choices=("none", "zscore"))
    """none | zscore (rewards over their standard deviation in the score store, or in the training data's columns)."""


@dataclass
class DataConfig:
    train: Any = ""
    """Path, or list of paths: JSON lines or JSON (.gz, .zst), Parquet, a saved Hugging Face dataset, a copy of a hub
    dataset's folder; or a dataset's hub id. Datasets may name their split and, where they have several, their
    configuration, as in ORG/NAME:SPLIT or ORG/NAME@CONFIG:SPLIT; else the split is train, for data.validation
    validation or test (of UltraFeedback's kind train_prefs and test_prefs, for sft train_sft and test_sft). Of a list
    all may have weights, as in [a:0.7,b:0.3]: in training, an epoch then has as many rows as all of them together,
    drawn from each in these shares; none of a source's rows comes again before all of them have come."""
    validation: Any = ""
    """As data.train; what is measured and not trained on."""
    max_length: int = key(1024, above=0)
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = key(None, above=0)
    """Longer prompts keep their end; null: no prompt is cut, and one that fills max_length is a bad row."""
    shuffle: bool = True
    """Training reads its rows in a new order in every epoch; false: in the file's."""
    chat_template: str = key("auto", suggested=TEMPLATE_NAMES)
    """auto (the tokenizer's, else a plain transcript) | tokenizer | plain | llama3 | mistral | a jinja file. The
    checkpoints of a run carry a template that was given by name or file, and the two tokens below."""
    end_token: str = ""
    """The token that ends a response, a word of the vocabulary; the tokenizer's own when empty. It is also that of
    models with the same vocabulary; others (a teacher with another tokenizer) have their own."""
    pad_token: str = ""
    """The padding token that checkpoints name (training pads with nothing that a model reads); as data.end_token."""
    on_bad_row: str = key("error", choices=("error", "skip"))
    """error | skip (counted and reported)."""
    streaming: bool = False
    """For data larger than memory: rows are tokenised once, into memory-mapped files ($NEMO_TVKD_CACHE/tokens, or
    runs/tokens), and read from there; a second start finds them, whatever runs. Score stores are unpacked once, beside
    them in scores. Both folders may be deleted when nothing runs. false: rows are held in memory."""


@dataclass
class ExampleDataConfig(DataConfig):
    assistant_turns: str = key("last", choices=("last", "all"))
    """last | all: which of a conversation's answers are trained (algorithm=sft; pairs differ in the last one alone).
    With all, the prompt is what stands before the first answer, and a conversation longer than max_length loses its
    end."""


@dataclass
class TrainingDataConfig(ExampleDataConfig):
    label_noise: float = key(0.0, at_least=0, at_most=1)
    """Share of the training pairs whose chosen and rejected response are exchanged, by their pair id; 0 to 1."""
    label_noise_seed: int = key(0, at_least=0)
    """Which pairs these are."""


@dataclass
class ParallelConfig:
    tensor_model_parallel_size: int = key(1, above=0)
    """Ranks that each layer is split over (TP): best kept within a node."""
    pipeline_model_parallel_size: int = key(1, above=0)
    """Ranks that the layers are dealt out to (PP)."""
    context_parallel_size: int = key(1, above=0)
    """Ranks that a sequence is split over; only 1 is supported."""
    sequence_parallel: bool = False
    """Split the activations between tensor-parallel layers over tokens as well: less memory, with TP > 1."""
    data_parallel_size: int = key(0, at_least=0)
    """Model replicas when the command starts its own ranks; 0: as many as there are GPUs for, 1 on a CPU."""
    lm_head_memory_mib: int = key(0, at_least=0)
    """MiB that logits may take at a time (they are made a chunk at a time); 0: 512 on a GPU, 64 on a CPU."""


@dataclass
class TrainerConfig:
    max_steps: int | None = key(None, above=0)
    """Optimizer steps; from max_epochs when null."""
    max_epochs: int = key(1, above=0)
    """Passes over data.train, where max_steps is null."""
    global_batch_size: int = key(64, above=0)
    """Pairs per step (for sft: examples)."""
    micro_batch_size: int = key(1, above=0)
    """Pairs per forward pass and model replica (for sft: examples)."""
    precision: str = key("bf16", choices=("bf16", "fp32"))
    """bf16 (fp32 master weights) | fp32."""
    recompute: bool = False
    """Keep only each layer's input and compute its activations again in the backward pass."""
    seed: int = key(42, at_least=0)
    """Of the order of rows and of what starts at random, such as a reward head."""
    output_dir: str = "runs/${algorithm.name}"
    """Folder of the run: configuration, metrics, checkpoints."""
    val_interval: int = key(0, at_least=0)
    """Steps between validations; 0: at the end only."""
    save_interval: int = key(0, at_least=0)
    """Steps between checkpoints; 0: at the end only."""
    keep_checkpoints: int = key(2, above=0)
    """How many of the newest checkpoints stay."""
    log_interval: int = key(1, above=0)
    """Steps between rows of metrics.jsonl and lines of progress."""
    resume: str = key("auto", choices=("auto", "never"))
    """auto (continue from the newest complete checkpoint in output_dir) | never (refuse a used output_dir)."""


@dataclass
class OptimConfig:
    """AdamW; the learning rate warms up linearly, then follows the schedule down to min_lr."""

    lr: float = key(5e-7, at_least=0)
    """The highest learning rate; the default is the paper's for preferences: set another for algorithm=sft (2e-5)."""
    min_lr: float = key(0.0, at_least=0)
    """Where the schedule ends."""
    warmup_ratio: float = key(0.1, at_least=0, at_most=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: str = key("cosine", choices=("constant", "linear", "cosine"))
    """constant | linear | cosine."""
    weight_decay: float = key(0.0, at_least=0)
    """Of AdamW."""
    betas: list[float] = key([0.9, 0.999])
    """Of AdamW: decay of the mean gradient and of its square."""
    eps: float = key(1e-8, at_least=0)
    """Of AdamW."""
    clip_grad: float = key(1.0, at_least=0)
    """Global gradient norm; 0: no clipping."""


@dataclass
class WandbConfig:
    """Weights & Biases (pip install wandb); off without a project."""

    project: str = ""
    """The project that runs go to."""
    entity: str = ""
    """User or team; the account's default when empty."""
    name: str = ""
    """The run's; that of trainer.output_dir when empty."""
    group: str = ""
    """What its runs are grouped by."""
    mode: str = key("online", choices=("online", "offline"))
    """online | offline (for `wandb sync` where there is a network)."""


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    """Write the figures of metrics.jsonl to output_dir/tensorboard as well."""
    wandb: WandbConfig = key(WandbConfig)
