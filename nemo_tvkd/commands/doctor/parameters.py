"""How many parameters each rank of a model holds, from its Hugging Face config alone (see models.architecture)."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.checkpoints.hf import head_dim, padded_vocab_size


@dataclass(frozen=True)
class Layout:
    """How a model is split, and over how many replicas."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True)
class RankParameters:
    """Numbers of parameters of one rank, by kind."""

    embedding: int
    """This rank's padded rows; on the first pipeline stage."""
    output: int
    """The output layer's; on the last stage, also where it is a copy of the first stage's embedding."""
    matrices: int
    """The layers' attention and feed-forward matrices."""
    norms: int
    """Whole on every tensor-parallel rank."""
    reward_head: int
    """As the norms; on the last stage."""

    @property
    def total(self) -> int:
        return self.embedding + self.output + self.matrices + self.norms + self.reward_head


def kv_heads(config: Any) -> int:
    """Key/value heads; as many as attention heads where the config does not say."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def layer_matrices(config: Any) -> int:
    """Parameters of one whole layer without its norms: query, key, value, projection; gate, up, down."""
    attention = head_dim(config) * 2 * (config.num_attention_heads + kv_heads(config))
    return int(config.hidden_size * (attention + 3 * config.intermediate_size))


def rank_parameters(
    config: Any, layout: Layout, stage: int, *, lm_head: bool = True, reward_head: bool = False
) -> RankParameters:
    """What one tensor-parallel rank of a pipeline stage holds; the layout must divide the model (hf.check_layout).

    Args:
        config: transformers' LlamaConfig or MistralConfig.
        stage: 0 .. pipeline - 1.
        lm_head: whether there is an output layer (else the embedding is tied to nothing).
        reward_head: whether there is a reward head.
    """
    hidden, last = config.hidden_size, stage == layout.pipeline - 1
    layers = config.num_hidden_layers // layout.pipeline
    rows = padded_vocab_size(config) // layout.tensor
    shared = bool(config.tie_word_embeddings) and layout.pipeline == 1  # one tensor is both
    return RankParameters(
        embedding=rows * hidden if stage == 0 else 0,
        output=rows * hidden if last and lm_head and not shared else 0,
        matrices=layers * layer_matrices(config) // layout.tensor,
        norms=(2 * layers + last) * hidden,
        reward_head=hidden if last and reward_head else 0,
    )


def model_parameters(config: Any) -> int:
    """The published number: without padding, tied matrices once."""
    vocabulary = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    return int(vocabulary + config.num_hidden_layers * layer_matrices(config) + norms)
