"""Estimates of the memory of the fullest rank of a job, by part, from configs and plain numbers.

What autograd keeps of a layer is counted as Korthikanti et al. 2022 (arXiv 2205.05198, section 4) count it: tensors of
one packed row, those inside attention and the feed-forward network divided by TP, the rest by TP under sequence
parallelism only. The counts are those of our layers: RMSNorm, SwiGLU, grouped queries, no dropout, and attention
kernels that keep no attention matrix (in fp32 on a GPU torch has none for grouped queries: there it comes on top).

A pipeline stage holds the activations of as many micro-batches as 1F1B has in flight: PP - stage. What lives for a
moment beside them is counted at the fullest moment of a step: the backward pass of the output layer, of a layer, or of
the embedding. Not counted: the CUDA context, NCCL's buffers and fragmentation (:data:`OUTSIDE_TENSORS`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_tvkd.checkpoints.hf import head_dim, padded_vocab_size
from nemo_tvkd.commands.doctor.parameters import Layout, RankParameters, kv_heads, rank_parameters

OUTSIDE_TENSORS = 4 * 2**30
"""An assumption: bytes of a GPU that the CUDA context, NCCL's buffers and fragmentation take."""

FULL, MASTER_AND_MOMENTS, MOMENTS = 4, 12, 8
"""Bytes: one fp32 number; AdamW's of a bf16 and of an fp32 parameter."""

ROWS = 5
"""Hidden states of a row that a forward pass holds at a time: a layer's input, two of its norm, two between layers and
stages."""


@dataclass(frozen=True)
class Model:
    """A model in a job, as it is built there (see models.architecture.model_config)."""

    config: Any
    """transformers' LlamaConfig or MistralConfig."""
    lm_head: bool = True
    reward_head: bool = False


@dataclass(frozen=True)
class Settings:
    """What a rank's memory depends on besides the models."""

    layout: Layout
    tokens: int
    """Of the longest packed row: sequences of a micro-batch (two a pair) x their length."""
    precision: str = "bf16"
    micro_batches: int | None = None
    """Of a step and replica; None: enough to fill the pipeline."""
    recompute: bool = False
    states: int | None = None
    """Tokens of the row whose logits are read (the responses'); None: all of them."""
    lm_head_memory: int = 0
    """parallel.lm_head_memory_mib in bytes; 0: the device's default."""
    device: str = "cuda"
    """cuda (FusedAdam, the distributed optimizer and, in bf16, Transformer Engine's layers) | cpu."""

    @property
    def width(self) -> int:
        """Bytes of a parameter and of an activation."""
        return 2 if self.precision == "bf16" else 4

    @property
    def fused(self) -> bool:
        """Whether layers are Transformer Engine's."""
        return self.device == "cuda" and self.precision == "bf16"

    @property
    def read(self) -> int:
        return self.tokens if self.states is None else self.states

    @property
    def own_tokens(self) -> float:
        """Tokens of a row that this rank holds outside attention and the feed-forward network."""
        return self.tokens / self.layout.tensor if self.layout.sequence_parallel else self.tokens

    @property
    def cast(self) -> int:
        """Bytes of a temporary fp32 copy of a bf16 gradient that is added to fp32: only a CPU makes one."""
        return FULL if self.device == "cpu" and self.precision == "bf16" else 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, the fullest of the job's."""

    stage: int
    """Its pipeline stage."""
    weights: int
    gradients: int
    """The fp32 buffer."""
    optimizer: int
    """fp32 master weights and AdamW's moments."""
    activations: int
    """What the backward pass needs, with what a layer takes for a moment beyond `logits`."""
    logits: int
    """The logits chunk and the output layer's gradient before it goes to the buffer."""
    frozen: int
    """Weights of online models."""
    update: int = 0
    """Temporaries of the optimizer's step, when no activations are there."""

    @property
    def total(self) -> int:
        """The peak of a step."""
        state = self.weights + self.gradients + self.optimizer + self.frozen
        return state + max(self.activations + self.logits, self.update)


def training_memory(student: Model, settings: Settings, frozen: Sequence[Model] = ()) -> MemoryEstimate:
    """The fullest rank of a training run.

    Args:
        student: the model that trains.
        frozen: online models (teacher, reference, oracles): weights in the run's precision; each runs before the
            step, so its own activations count only where they exceed the step's.
    """
    stages = range(settings.layout.pipeline)
    return max((_training_stage(student, settings, frozen, stage) for stage in stages), key=lambda found: found.total)


def forward_memory(models: Sequence[Model], settings: Settings) -> MemoryEstimate:
    """The fullest rank of a command that only reads (score, evaluate): its models' weights, one forward pass at a time.

    `weights` are the first model's, `frozen` the others'.
    """
    stages = range(settings.layout.pipeline)
    return max((_forward_stage(models, settings, stage) for stage in stages), key=lambda found: found.total)


def _training_stage(student: Model, settings: Settings, frozen: Sequence[Model], stage: int) -> MemoryEstimate:
    own, layout = _parameters(student, settings, stage), settings.layout
    states = MASTER_AND_MOMENTS if settings.precision == "bf16" else MOMENTS
    shards = layout.data if settings.device == "cuda" else 1
    one_batch, final = _kept(student.config, settings, stage)
    in_flight = min(layout.pipeline - stage, settings.micro_batches or layout.pipeline)
    logits = _logits_backward(student, own, settings) if student.lm_head and stage == layout.pipeline - 1 else 0
    online = [_forward_stage([model], settings, stage) for model in frozen]
    moments = [
        in_flight * one_batch + final + logits,
        in_flight * one_batch + _layer_backward(student.config, settings),
        (in_flight - 1) * one_batch + own.embedding * (settings.width + settings.cast),  # a micro-batch's last gradient
        *(found.activations + found.logits for found in online),
    ]
    return MemoryEstimate(
        stage=stage,
        weights=own.total * settings.width,
        gradients=own.total * FULL,
        optimizer=-(-own.total * states // shards),
        activations=int(max(moments) - logits),
        logits=int(logits),
        frozen=sum(found.weights for found in online),
        update=0 if settings.device == "cuda" else 2 * FULL * _largest(student.config, own, layout),
    )


def _forward_stage(models: Sequence[Model], settings: Settings, stage: int) -> MemoryEstimate:
    reading = replace(settings, layout=replace(settings.layout, sequence_parallel=False))  # as frozen models are
    weights = [_parameters(model, reading, stage).total * reading.width for model in models]
    last = stage == reading.layout.pipeline - 1
    passes = []
    for model in models:
        logits = _logits_forward(model, reading) if last and model.lm_head else 0
        rows = ROWS * reading.tokens * model.config.hidden_size * reading.width
        passes.append((rows + max(_swiglu(model.config, reading) - logits, 0), logits))
    activations, logits = max(passes, key=sum)
    return MemoryEstimate(stage, weights[0], 0, 0, int(activations), int(logits), sum(weights[1:]))


def _parameters(model: Model, settings: Settings, stage: int) -> RankParameters:
    heads = {"lm_head": model.lm_head, "reward_head": model.reward_head}
    return rank_parameters(model.config, settings.layout, stage, **heads)


def _largest(config: Any, own: RankParameters, layout: Layout) -> int:
    """Numbers in a rank's largest parameter."""
    return max(own.embedding, own.output, 2 * config.hidden_size * config.intermediate_size // layout.tensor)


def _layer_bytes(config: Any, settings: Settings) -> float:
    """What autograd keeps of one layer and one row, on one rank.

    Numbers a token, of H hidden, F feed-forward, A and G query and key/value sizes (heads x head size):

    - each of two norms: Transformer Engine its input and output, 2 H; ours its input in fp32, before and after the
      weight (in fp32 that is 3 H);
    - attention: the product of query, key and value (A + 2 G), rotated query and key (A + G), the output (A; ours once
      more, joined from the sequences), one fp32 per head, and ours the angles' cosines and sines;
    - SwiGLU: the first product 2 F and the second's input F; ours the gate's activation and a copy of the up half, 2 F.
    """
    hidden, width, tensor = config.hidden_size, settings.width, settings.layout.tensor
    size = head_dim(config)
    query, key = config.num_attention_heads * size, kv_heads(config) * size
    norm = 2 * width * hidden if settings.fused else (FULL + 2 * width) * hidden
    attention = width * (3 * query + 3 * key + (0 if settings.fused else query)) + FULL * config.num_attention_heads
    angles = 0 if settings.fused else 4 * width * size
    return 2 * norm * settings.own_tokens + settings.tokens * (attention / tensor + angles) + _swiglu(config, settings)


def _swiglu(config: Any, settings: Settings) -> float:
    """Bytes of a row inside the feed-forward network (see _layer_bytes)."""
    numbers = (3 if settings.fused else 5) * config.intermediate_size // settings.layout.tensor
    return float(settings.width * settings.tokens * numbers)


def _kept(config: Any, settings: Settings, stage: int) -> tuple[float, float]:
    """Bytes that a micro-batch's backward pass needs: of a stage's layers; of the final norm and the states read."""
    row = settings.own_tokens * config.hidden_size * settings.width
    layer = row if settings.recompute else _layer_bytes(config, settings)
    final = 0.0
    if stage == settings.layout.pipeline - 1:
        final = settings.own_tokens * config.hidden_size * (FULL + 2 * settings.width)
        final += settings.read * config.hidden_size * settings.width
    return config.num_hidden_layers // settings.layout.pipeline * layer, final


def _layer_backward(config: Any, settings: Settings) -> float:
    """For a moment in a layer's backward pass: gradients of SwiGLU's two halves, or of its larger matrix."""
    hidden, inner, width = config.hidden_size, config.intermediate_size / settings.layout.tensor, settings.width
    row = settings.own_tokens * hidden * width
    halves = 2 * settings.tokens * inner * width + row
    matrix = 2 * hidden * inner * (width + settings.cast)
    gathered = settings.tokens * hidden * width if settings.layout.sequence_parallel else 0
    again = _layer_bytes(config, settings) - row if settings.recompute else 0  # its input is kept already
    return again + gathered + max(halves, matrix)


def _logits_backward(model: Model, own: RankParameters, settings: Settings) -> float:
    """The output layer's gradient, and what parallel.lm_head holds beside it: a block of it twice in fp32, logits."""
    hidden, width = model.config.hidden_size, settings.width
    rows, columns = _tile(model, settings, beside=2 * FULL * hidden)
    block = columns * (2 * FULL * hidden + (FULL + (width if width < FULL else 0)) * min(rows, settings.read))
    gradient = (own.output or own.embedding) * width
    return gradient + block + settings.read * hidden * FULL


def _logits_forward(model: Model, settings: Settings) -> float:
    rows, columns = _tile(model, settings)
    logit = settings.width if settings.device == "cpu" else FULL
    states = settings.read * model.config.hidden_size * settings.width
    return logit * min(rows, settings.read) * columns + states


def _tile(model: Model, settings: Settings, beside: int = 0) -> tuple[int, int]:
    """How many states and columns of logits exist at a time."""
    import torch

    from nemo_tvkd.parallel.lm_head import tile

    columns = padded_vocab_size(model.config) // settings.layout.tensor
    return tile(settings.read, columns, torch.device(settings.device), settings.lm_head_memory, beside)
