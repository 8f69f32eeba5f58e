"""Hours of a stage, from its floating-point operations and an assumed utilisation of the GPUs' peak."""

from collections.abc import Sequence
from typing import Any

from nemo_tvkd.checkpoints.hf import head_dim
from nemo_tvkd.commands.doctor.memory import Model
from nemo_tvkd.commands.doctor.parameters import layer_matrices

TRAINING_UTILISATION = 0.35
"""An assumption: share of `cluster.gpu_tflops` that training steps reach, pipeline bubbles included."""

READING_UTILISATION = 0.45
"""An assumption: the same of forward passes alone."""


def tokens_of(rows: int, mean_length: float, *, pairs: bool, epochs: float = 1.0) -> float:
    """Tokens that a model reads: a pair is two sequences (its prompt is computed in both), an example is one.

    Args:
        rows: pairs or examples.
        mean_length: of prompt and one response together.
        pairs: whether rows are pairs.
        epochs: passes over the rows.
    """
    return rows * mean_length * (2 if pairs else 1) * epochs


def forward_flops(config: Any, length: float) -> tuple[float, float]:
    """Floating-point operations of a token's forward pass: in the layers, and in the output layer.

    2 for each of a layer's matrix entries; attention's two products with half of the `length` tokens of its sequence,
    as a token sees those before it.
    """
    mixing = 2 * config.num_attention_heads * head_dim(config) * length
    layers = config.num_hidden_layers * (2 * layer_matrices(config) + mixing)
    return float(layers), 2.0 * config.vocab_size * config.hidden_size


def training_hours(
    student: Model,
    *,
    tokens: float,
    length: float,
    gpus: int,
    tflops: float,
    recompute: bool = False,
    frozen: Sequence[Model] = (),
    read: float = 1.0,
) -> float:
    """Hours of a training run: three forward passes' worth a token (6 N), four with recompute (8 N).

    The output layer always takes four, as its logits are computed again in the backward pass.

    Args:
        tokens: of the whole run (see :func:`tokens_of`).
        length: mean length of a sequence.
        gpus: all of the job's.
        tflops: dense peak of one GPU, in 10^12 operations a second.
        frozen: models that run online, one forward pass each.
        read: share of the tokens whose logits are read (the responses').
    """
    layers, output = forward_flops(student.config, length)
    flops = layers * (4 if recompute else 3) + (4 * output * read if student.lm_head else 0)
    flops += sum(_forward(model, length, read) for model in frozen)
    return _hours(tokens * flops, gpus, tflops, TRAINING_UTILISATION)


def reading_hours(
    models: Sequence[Model], *, tokens: float, length: float, gpus: int, tflops: float, read: float = 1.0
) -> float:
    """Hours of score or evaluate: one forward pass of each model (2 N a token); arguments as `training_hours`."""
    flops = sum(_forward(model, length, read) for model in models)
    return _hours(tokens * flops, gpus, tflops, READING_UTILISATION)


def _forward(model: Model, length: float, read: float) -> float:
    layers, output = forward_flops(model.config, length)
    return layers + (output * read if model.lm_head else 0)


def _hours(flops: float, gpus: int, tflops: float, utilisation: float) -> float:
    return flops / (gpus * tflops * 1e12 * utilisation) / 3600
