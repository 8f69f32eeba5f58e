"""Tiny random Llamas and Mistrals whose every part matters, and random pairs of tokens for them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel


@dataclass
class RefPair:
    """One preference: prompt x, chosen y_w and rejected y_l as token ids; responses include their end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def _spread_weights(model: PreTrainedModel, seed: int, spread: float) -> None:
    """Draw all weights so that logits spread by about ``spread`` and every part of the network matters.

    Rows of linear layers have variance 1 / fan_in (unit-size activations), norm weights lie around 1 (not at 1), and
    the output layer has std spread / sqrt(hidden), since the final norm gives it inputs of root mean square near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    output = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p is output:
                p.copy_(noise * spread / math.sqrt(p.shape[1]))
            elif p.ndim == 1:
                p.copy_(1.0 + 0.1 * noise)
            elif "embed_tokens" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / math.sqrt(p.shape[1]))


def tiny_llama(
    seed: int,
    *,
    vocab: int = 96,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = False,
    rope_scaling: dict[str, Any] | None = None,
    head_dim: int | None = None,
    intermediate: int | None = None,
    max_positions: int = 256,
    rope_theta: float = 10000.0,
    spread: float = 2.5,
) -> LlamaForCausalLM:
    """A random float32 Llama whose logits have a standard deviation near ``spread``; the global RNG is left alone.

    ``rope_scaling`` is HF's dict, e.g. ``{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}``; ids 0, 1, 2 are pad, start and end.
    """
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tie,
        rope_scaling=rope_scaling,
        rope_theta=rope_theta,
        max_position_embeddings=max_positions,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).float().eval()
    _spread_weights(model, seed, spread)
    return model


def tiny_mistral(
    seed: int,
    *,
    sliding_window: int | None = 8,
    vocab: int = 96,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = False,
    head_dim: int | None = None,
    intermediate: int | None = None,
    max_positions: int = 256,
    rope_theta: float = 10000.0,
    spread: float = 2.5,
) -> MistralForCausalLM:
    """A random float32 Mistral, as ``tiny_llama``; a query sees itself and the ``sliding_window`` - 1 keys before."""
    config = MistralConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tie,
        sliding_window=sliding_window,
        rope_theta=rope_theta,
        max_position_embeddings=max_positions,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        model = MistralForCausalLM(config).float().eval()
    _spread_weights(model, seed, spread)
    return model


def random_pairs(
    seed: int,
    n: int,
    vocab: int = 96,
    *,
    max_prompt: int = 9,
    max_response: int = 8,
    long_prompt: int = 40,
    end: int = 2,
    first_token: int = 3,
) -> list[RefPair]:
    """``n`` pairs of random tokens in [first_token, vocab), every response closed by ``end``.

    Pair 0 has a prompt of ``long_prompt`` tokens; in pairs 1, 4, 7, .. the chosen response is the end token alone and
    in pairs 2, 5, 8, .. the rejected one; the two responses of a pair always have different lengths.
    """
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(first_token, vocab) for _ in range(count)]

    pairs = []
    for index in range(n):
        prompt = tokens(long_prompt if index == 0 else rng.randint(1, max_prompt))
        first, second = rng.sample(range(2, max_response + 1), 2)
        chosen, rejected = {1: (1, second), 2: (first, 1)}.get(index % 3, (first, second))
        pairs.append(RefPair(prompt, [*tokens(chosen - 1), end], [*tokens(rejected - 1), end]))
    return pairs
