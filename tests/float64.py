"""Hugging Face models in float64: logits of one unpadded sequence, gradients by parameter name.

Precision. ``model.double()`` alone is not float64: transformers computes RMSNorm, the attention softmax and the rotary
angles in float32 whatever the dtype. ``as_float64`` puts float64 forms of these three in place on a deep copy; the
caller's model is never touched. ``gradients`` finds the copies a loss was computed with through its autograd graph.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class _RMSNorm64(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), in the dtype of x."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.weight = source.weight
        self.eps = float(source.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class _Rotary64(nn.Module):
    """cos and sin of position * inv_freq in float64; inv_freq itself is the model's float32 table."""

    inv_freq: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        if source.rope_type not in ("default", "linear", "llama3", "yarn"):
            raise NotImplementedError(f"rope type {source.rope_type!r} changes with the length")
        self.register_buffer("inv_freq", source.inv_freq.detach().double(), persistent=False)
        self.scaling = float(source.attention_scaling)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[:, :, None].double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


def _attention64(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale + mask) v; query i sees key j when 0 <= i - j, and i - j < window if there is one."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])[None, :]
    visible = distance >= 0
    if kwargs.get("sliding_window") is not None:
        visible = visible & (distance < kwargs["sliding_window"])
    scores = (query @ key.transpose(2, 3) * kwargs["scaling"]).masked_fill(~visible, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register("reference_float64", _attention64)


def as_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy of ``model`` that computes in float64 throughout; a model made by this function comes back as is."""
    if getattr(model, "_reference_float64", False):
        return model
    twin = copy.deepcopy(model).eval().double().requires_grad_(True)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _RMSNorm64(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, _Rotary64(child))
    twin.config._attn_implementation = "reference_float64"
    twin._reference_float64 = True
    for name, parameter in twin.named_parameters():
        parameter._reference_source = (weakref.ref(model), name)
    return twin


def sequence_logits(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Raw logits z at every position of prompt + response, [P + T, V] float64, one unpadded forward."""
    if not prompt or not response:
        raise ValueError("the prompt and the response must not be empty")
    ids = torch.tensor([[*prompt, *response]])
    return as_float64(model)(input_ids=ids, use_cache=False).logits[0]


def _graph_leaves(root: Tensor) -> list[Tensor]:
    """Every tensor on which ``root`` would accumulate a gradient."""
    leaves, seen, stack = [], set(), [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves


def gradients(loss: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    """d loss / d theta in float64, by HF parameter name (a tied weight appears once, under its first name).

    ``model`` is the model the loss was computed with (the caller's float32 one, or an ``as_float64`` copy): the loss's
    graph is searched for the float64 copies made of it, and their gradients are added. Unused parameters get zeros.
    """
    result = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    own = {id(p): name for name, p in model.named_parameters()}
    found: list[tuple[str, Tensor]] = []
    for leaf in _graph_leaves(loss):
        owner, name = getattr(leaf, "_reference_source", (lambda: None, ""))
        if id(leaf) in own:
            found.append((own[id(leaf)], leaf))
        elif owner() is model:
            found.append((name, leaf))
    if not found:
        raise ValueError("the loss does not depend on this model")
    for (name, _), grad in zip(
        found, torch.autograd.grad(loss, [leaf for _, leaf in found], retain_graph=True), strict=True
    ):
        result[name] = result[name] + grad
    return result


def equal(actual: Tensor | float, expected: Tensor | float, tolerance: float = 1e-11) -> None:
    """Assert float64 agreement, relative to the larger of 1 and the expected size."""
    actual, expected = (torch.as_tensor(side, dtype=torch.float64) for side in (actual, expected))
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= tolerance * expected.abs().clamp(min=1.0)).all(), (actual, expected)
