"""From a Hugging Face config to the NeMo model config of the same architecture (Llama and Mistral families)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel as MegatronGPT
from megatron.core.transformer.module import MegatronModule
from nemo.collections.llm.gpt.model.base import GPTConfig
from torch import Tensor, nn

from nemo_tvkd.checkpoints.hf import check_architecture, head_dim, padded_vocab_size
from nemo_tvkd.models.layers import layer_spec, uses_transformer_engine
from nemo_tvkd.models.readout import hand_over
from nemo_tvkd.models.reward_head import RewardHead


class HandOver(nn.Module):
    """In the place of an output layer that is not there."""

    def forward(self, hidden: Tensor, weight: Any = None, runtime_gather_output: bool | None = None) -> Any:
        return hand_over(hidden, weight, runtime_gather_output)


class WithoutOutputLayer(MegatronGPT):
    """Megatron's model names its output layer's weight in every checkpoint; this one has none."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        return MegatronModule.sharded_state_dict(self, prefix, sharded_offsets, metadata)


@dataclass
class CausalLMConfig(GPTConfig):
    """A decoder with RMSNorm, SwiGLU, rotary positions and grouped-query attention.

    Rows are packed sequences of varying total length, and losses are sums with a count (divided once, by Megatron,
    by the global number of pairs), hence the two flags at the end.
    """

    normalization: str = "RMSNorm"
    activation_func: Callable = F.silu
    gated_linear_unit: bool = True
    add_bias_linear: bool = False
    position_embedding_type: str = "rope"
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    transformer_layer_spec: Any = layer_spec
    real_vocab_size: int = 0
    """Columns of the output layer that exist; the padding beyond them never enters a reduction."""
    rotary_inv_freq: list[float] | None = None
    """Rotary frequencies where they are not base ** (-2 i / D) (Llama 3 and linear scaling)."""
    lm_head_memory: int = 0
    """Bytes that logits may take at a time; 0: the device's default (see parallel.lm_head)."""
    lm_head: bool = True
    """Whether there is an output layer; a reward model needs none."""
    reward_head: bool = False
    reward_head_seed: int = 0
    """Of a head that no checkpoint has yet."""
    variable_seq_lengths: bool = True
    moe_token_dispatcher_type: str = "alltoall"  # no experts here, but Megatron refuses its default with varying rows
    calculate_per_token_loss: bool = True

    def configure_model(self, *args: Any, **kwargs: Any) -> MegatronGPT:
        """Build this pipeline stage's part of the model (see GPTConfig.configure_model); it ends in hidden states."""
        model = super().configure_model(*args, **kwargs)
        if model.post_process and self.lm_head:
            model.output_layer.forward = hand_over
        if model.post_process and self.reward_head:
            std = self.init_method_std
            model.reward_head = RewardHead(self.hidden_size, std, self.reward_head_seed, self.sequence_parallel)
        if not self.lm_head:
            model.output_layer = HandOver() if model.post_process else None
            model.__class__ = WithoutOutputLayer
        if self.rotary_inv_freq is not None:
            rotary = model.rotary_pos_emb
            rotary.inv_freq = torch.tensor(self.rotary_inv_freq, dtype=torch.float32, device=rotary.inv_freq.device)
        return model


def model_config(
    hf_config: Any, key: str = "student.path", dtype: torch.dtype | None = None, lm_head: bool = True
) -> CausalLMConfig:
    """The NeMo config of a Hugging Face Llama or Mistral config.

    Args:
        hf_config: transformers' LlamaConfig or MistralConfig.
        key: the configuration key to name in errors.
        dtype: of the parameters; the checkpoint's own when None.
        lm_head: False leaves out the output layer, even one that is the embedding.

    Raises:
        UserError: the architecture is not supported.
    """
    check_architecture(hf_config, key)
    dtype = dtype or getattr(hf_config, "torch_dtype", None) or torch.float32
    window = getattr(hf_config, "sliding_window", None) if hf_config.model_type == "mistral" else None
    fused = uses_transformer_engine(dtype)
    return CausalLMConfig(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=getattr(hf_config, "num_key_value_heads", None) or hf_config.num_attention_heads,
        kv_channels=head_dim(hf_config),
        seq_length=hf_config.max_position_embeddings,
        layernorm_epsilon=hf_config.rms_norm_eps,
        init_method_std=hf_config.initializer_range,
        rotary_base=hf_config.rope_theta,
        rotary_inv_freq=_scaled_frequencies(hf_config),
        window_size=(window - 1, 0) if window else None,
        share_embeddings_and_output_weights=bool(hf_config.tie_word_embeddings) and lm_head,
        lm_head=lm_head,
        vocab_size=padded_vocab_size(hf_config),
        real_vocab_size=hf_config.vocab_size,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        pipeline_dtype=dtype,
        use_cpu_initialization=not torch.cuda.is_available(),
        apply_rope_fusion=fused,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        cross_entropy_loss_fusion=False,
    )


def _scaled_frequencies(hf_config: Any) -> list[float] | None:
    """transformers' own frequencies for a scaled rope, as exact floats; None for plain rope."""
    rope = getattr(hf_config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"))
    assert attention_factor == 1.0, "check_architecture admits only ropes that leave attention as it is"
    return [float(f) for f in frequencies]
