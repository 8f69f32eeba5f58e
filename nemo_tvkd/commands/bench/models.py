"""Models and pairs to measure with: random weights in a checkpoint's architecture, random tokens.

Neither time nor memory depends on what weights and tokens are, so only a checkpoint's config.json is read.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nemo_tvkd.checkpoints.hf import check_layout
from nemo_tvkd.data.batch import Item
from nemo_tvkd.errors import UserError
from nemo_tvkd.models.architecture import CausalLMConfig, model_config
from nemo_tvkd.runtime import cpu


def hf_config(path: str, size: Any, key: str, parallel: Any) -> Any:
    """The Hugging Face config at `path` (a directory with a config.json), or a Llama of the given size."""
    from transformers import AutoConfig, LlamaConfig

    if path:
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"{key}: {path} holds no config.json: give a Hugging Face checkpoint's directory")
        config = AutoConfig.from_pretrained(path)
    else:
        config = LlamaConfig(
            vocab_size=size.vocab_size,
            hidden_size=size.hidden_size,
            intermediate_size=4 * size.hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_heads,
            max_position_embeddings=131072,
        )
    check_layout(config, key, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size)
    return config


def architecture(config: Any, key: str, precision: str, parallel: Any) -> CausalLMConfig:
    """The NeMo config of a Hugging Face config."""
    result = model_config(config, key, torch.bfloat16 if precision == "bf16" else torch.float32)
    result.lm_head_memory = parallel.lm_head_memory_mib * 2**20
    return result


def random_frozen(config: Any, key: str, precision: str, parallel: Any, reward_head: bool = False) -> Any:
    """This rank's part of a frozen model with random weights (see models.frozen.load_frozen)."""
    model = architecture(config, key, precision, parallel)
    model.tensor_model_parallel_size = parallel.tensor_model_parallel_size
    model.pipeline_model_parallel_size = parallel.pipeline_model_parallel_size
    model.reward_head = reward_head
    model.__post_init__()
    return model.configure_model(tokenizer=None).to(cpu.device()).requires_grad_(False).eval()


def random_items(count: int, options: Any, vocab: int, seed: int = 0) -> list[Item]:
    """Pairs of random tokens, all of the same lengths, with random values and log-probabilities of 0."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(count):
        prompt = rng.integers(0, vocab, options.prompt_length)
        sides = [rng.integers(0, vocab, options.response_length).astype(np.int32) for _ in range(2)]
        tokens = SimpleNamespace(
            prompt_ids=prompt.astype(np.int32),
            chosen_ids=sides[0],
            rejected_ids=sides[1],
            pair_id=f"{seed * 10**6 + index:032x}",
            source=f"random:{index}",
        )
        chosen, rejected = rng.normal(20, 3, (2, options.response_length + 1)).astype(np.float32)
        items.append(Item(tokens, {"teacher.value": (chosen, rejected), "reference.logprob": (0.0, 0.0)}))  # type: ignore[arg-type]
    return items


def forward_flops(config: Any, tokens: int, length: float, head_states: int) -> float:
    """Floating-point operations of one forward pass.

    Args:
        config: Hugging Face config.
        tokens: of the packed row.
        length: mean length of its sequences (attention is causal: a token sees half of it on average).
        head_states: states at which the output layer is computed.
    """
    h, layers = config.hidden_size, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or h // config.num_attention_heads
    attention = h * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    body = layers * (attention + 3 * h * config.intermediate_size)
    mixing = layers * 2 * config.num_attention_heads * head_dim * length / 2
    return 2.0 * (tokens * (body + mixing) + head_states * h * config.vocab_size)
