"""Transformer layers that share Transformer Engine's parameter names, with and without Transformer Engine.

TE fuses each RMSNorm into the linear layer after it and names the weight `linear_qkv.layer_norm_weight`; NeMo's
Hugging Face converters use these names. The layers here do the same in plain torch, so a checkpoint written on a
CPU loads on a GPU and the other way round, and sequence parallelism works without TE.

Shape suffixes: T tokens of a packed row, A local attention heads, G local key/value heads, D head size.
"""

from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn


def uses_transformer_engine(dtype: torch.dtype) -> bool:
    """Whether layers are built from Transformer Engine.

    It must be importable beside a CUDA device and have an attention kernel for packed rows: half precision, and
    cuDNN's on Hopper or later or flash-attn's before it.
    """
    if not torch.cuda.is_available() or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError):
        return False
    return torch.cuda.get_device_capability()[0] >= 9 or find_spec("flash_attn") is not None


def layer_spec(config: Any, vp_stage: int | None = None) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of a policy or frozen model, chosen when it is built: TE's on a GPU that has TE, else ours.

    A module-level function, so that a NeMo checkpoint stores its name rather than one machine's choice.
    """
    if uses_transformer_engine(torch.bfloat16 if config.bf16 or config.fp16 else torch.float32):
        from nemo.collections.llm.gpt.model.base import transformer_engine_layer_spec

        return transformer_engine_layer_spec(config)
    layer = _torch_layer_spec()
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def _torch_layer_spec() -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=NormColumnParallelLinear,
        core_attention=PackedAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=NormColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension with fp32 statistics; the result has x's dtype (as Hugging Face's Llama)."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * x32.to(x.dtype)


def _norm_weight(config: TransformerConfig, size: int) -> nn.Parameter:
    weight = nn.Parameter(torch.ones(size, dtype=config.params_dtype))
    # Under sequence parallelism each rank sees a slice of the tokens; Megatron sums the gradients of marked weights.
    weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return weight


class RMSNorm(nn.Module):
    """The norm after the last layer."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _norm_weight(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def get_extra_state(self) -> None:
        """TE's norm has an (empty) extra state; a checkpoint written here must hold the key to load there."""

    def set_extra_state(self, state: Any) -> None:
        """Nothing is kept in it."""


class NormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm, then a column-parallel linear layer; one module, as TE's LayerNormColumnParallelLinear."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = _norm_weight(config, input_size)

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return super().forward(rms_norm(input_, self.layer_norm_weight, self.eps), *args, **kwargs)


class PackedAttention(nn.Module):
    """Causal attention inside each sequence of a packed row, with an optional sliding window, on torch's SDPA.

    The window is (W - 1, 0) for Hugging Face's `sliding_window = W`: a token sees itself and W - 1 before it.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, softmax_scale: float | None = None, **kwargs: Any):
        super().__init__()
        self.scale = softmax_scale
        self.window = config.window_size[0] + 1 if config.window_size else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [T, A, D], key and value [T, G, D] of one packed row -> [T, A, D]."""
        assert packed_seq_params is not None, "rows are always packed"
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [end - start for start, end in pairwise(bounds)]
        parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        return torch.cat([self._one_sequence(q, k, v) for q, k, v in parts])

    def _one_sequence(self, q_TAD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        mask = None
        if self.window is not None and q_TAD.size(0) > self.window:
            position = torch.arange(q_TAD.size(0), device=q_TAD.device)
            distance = position[:, None] - position[None, :]
            mask = (distance >= 0) & (distance < self.window)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_TAD, k_TGD, v_TGD))
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=q_TAD.size(1) != k_TGD.size(1),
        )
        return out.squeeze(0).transpose(0, 1)
