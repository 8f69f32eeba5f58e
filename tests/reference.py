"""Float64, single-process reference of SFT, DPO and TVKD, written from the equations with torch and transformers only.

Nothing here knows NeMo, Megatron or ``nemo_tvkd``: sequences are run one at a time, unpadded, on one process, so that
masks, shifts, packing, padding and parallel layouts cannot go wrong in the same way as in the code under test.

Notation. Prompt x (P tokens), response y = (y_1..y_T), its end token included. State s_t = (x, y_<t) for t = 1..T+1;
s_{T+1} is the state after the end token. z(s) are raw logits, pi = softmax(z) at temperature 1. Row i of the logits of
x + y is z at the state that ends with token i, so z(s_t) is row P + t - 2 and z(s_{T+1}) is the last row, P + T - 1.

Precision. ``model.double()`` alone is not float64: transformers computes RMSNorm, the attention softmax and the rotary
angles in float32 whatever the dtype. ``as_float64`` puts float64 forms of these three in place on a deep copy; the
caller's model is never touched. ``gradients`` finds the copies a loss was computed with through its autograd graph.
"""

from __future__ import annotations

import copy
import math
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

STATE_KINDS = ("soft_value", "max", "margin", "expectation")
ACTION_KINDS = ("logit", "logprob")


@dataclass
class RefPair:
    """One preference: prompt x, chosen y_w and rejected y_l as token ids; responses include their end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


# ---------------------------------------------------------------------------------------------- float64 forward pass


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


def _response_logits(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """z(s_1) .. z(s_{T+1}), [T + 1, V]: rows P - 1 .. P + T - 1 of the sequence's logits."""
    return sequence_logits(model, prompt, response)[len(prompt) - 1 :]


def response_logp(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """log pi(y|x) = sum_{t=1..T} log softmax(z(s_t))[y_t]; the prompt's tokens never count."""
    logp = torch.log_softmax(_response_logits(model, prompt, response)[:-1], dim=-1)
    return logp[torch.arange(len(response)), torch.tensor(list(response))].sum()


# --------------------------------------------------------------------------------------------------- TVKD's shaping


def potential(logits: Tensor, kind: str = "soft_value", temperature: float = 1.0) -> Tensor:
    """A state's number from its raw logits z, [..., V] -> [...] (Lemma 1 and Table 5 of arXiv 2509.16965).

    soft_value: tau * logsumexp_a(z[a] / tau);  max: max_a pi(a);  margin: pi_(1) - pi_(2);
    expectation: sum_a pi(a) z[a];  with pi = softmax(z) at temperature 1 whatever tau is.
    """
    if kind == "soft_value":
        return temperature * torch.logsumexp(logits / temperature, dim=-1)
    pi = torch.softmax(logits, dim=-1)
    if kind == "max":
        return pi.max(dim=-1).values
    if kind == "margin":
        first, second = pi.topk(2, dim=-1).values.unbind(-1)
        return first - second
    if kind == "expectation":
        return (pi * logits).sum(-1)
    raise ValueError(f"unknown state-dependent value kind {kind!r}")


def state_values(
    model: PreTrainedModel,
    prompt: Sequence[int],
    response: Sequence[int],
    kind: str = "soft_value",
    temperature: float = 1.0,
) -> Tensor:
    """V(s_1) .. V(s_{T+1}), [T + 1], for soft_value, max, margin and expectation (see ``potential``).

    For logit and logprob, psi_1 .. psi_T, [T]: psi_t = z(s_t)[y_t], or log pi(y_t | s_t).
    """
    logits = _response_logits(model, prompt, response)
    if kind in ACTION_KINDS:
        scores = logits[:-1] if kind == "logit" else torch.log_softmax(logits[:-1], dim=-1)
        return scores[torch.arange(len(response)), torch.tensor(list(response))]
    return potential(logits, kind, temperature)


def shaping(values: Tensor, kind: str, form: str, terminal: str, gamma: float) -> Tensor:
    """Psi(y) = sum_t psi_t, a scalar, from what ``state_values`` returned.

    potential_difference: psi_t = gamma * V(s_{t+1}) - V(s_t);  next_value: psi_t = gamma * V(s_{t+1}).
    ``terminal``: V(s_{T+1}) is the value itself (bootstrap) or 0 (zero). logit and logprob are psi_t as they stand.
    """
    if kind in ACTION_KINDS:
        return values.sum()
    if kind not in STATE_KINDS:
        raise ValueError(f"unknown value kind {kind!r}")
    after, before = values[1:], values[:-1]
    if terminal == "zero":
        after = torch.cat((after[:-1], torch.zeros_like(after[-1:])))
    elif terminal != "bootstrap":
        raise ValueError(f"unknown terminal {terminal!r}")
    if form == "potential_difference":
        return (gamma * after - before).sum()
    if form == "next_value":
        return (gamma * after).sum()
    raise ValueError(f"unknown form {form!r}")


# ------------------------------------------------------------------------------------------------------- the losses


def _preference_metrics(loss: Tensor, logp: Tensor, reward: Tensor) -> dict[str, float]:
    """The metrics shared by DPO and TVKD, means over pairs; ``logp`` and ``reward`` are [pairs, 2] (chosen, rejected).

    A pair counts as accurate when reward_w > reward_l, strictly.
    """
    margin = reward[:, 0] - reward[:, 1]
    return {
        "loss": loss.item(),
        "rewards/chosen": reward[:, 0].mean().item(),
        "rewards/rejected": reward[:, 1].mean().item(),
        "rewards/margins": margin.mean().item(),
        "rewards/accuracies": (margin > 0).double().mean().item(),
        "logps/chosen": logp[:, 0].mean().item(),
        "logps/rejected": logp[:, 1].mean().item(),
    }


def _pair_logps(model: PreTrainedModel, pairs: Sequence[RefPair]) -> Tensor:
    """log pi(y_w|x) and log pi(y_l|x) of every pair, [pairs, 2]."""
    twin = as_float64(model)
    return torch.stack([torch.stack([response_logp(twin, p.prompt, y) for y in (p.chosen, p.rejected)]) for p in pairs])


def tvkd_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    pairs: Sequence[RefPair],
    *,
    beta: float,
    alpha: float,
    kind: str = "soft_value",
    form: str = "potential_difference",
    terminal: str = "bootstrap",
    gamma: float = 1.0,
    temperature: float | None = None,
    reference: PreTrainedModel | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """TVKD (arXiv 2509.16965), mean over pairs of

        -log sigmoid( beta * (log pi(y_w) - log pi(y_l)) - alpha * (Psi(y_w) - Psi(y_l)) )

    with Psi from the frozen teacher, and tau = beta unless ``temperature`` is given (Lemma 1). With ``reference``,
    log pi becomes log pi - log ref. Reward of a response = beta * (log pi [- log ref]) - alpha * Psi.
    """
    tau = beta if temperature is None else temperature
    logp = _pair_logps(student, pairs)
    with torch.no_grad():
        frozen = as_float64(teacher)
        psi = torch.stack(
            [
                torch.stack(
                    [
                        shaping(state_values(frozen, p.prompt, y, kind, tau), kind, form, terminal, gamma)
                        for y in (p.chosen, p.rejected)
                    ]
                )
                for p in pairs
            ]
        )
        base = torch.zeros_like(logp) if reference is None else _pair_logps(reference, pairs)
    reward = beta * (logp - base) - alpha * psi
    loss = -F.logsigmoid(reward[:, 0] - reward[:, 1]).mean()
    metrics = _preference_metrics(loss, logp, reward)
    metrics["shaping/chosen"] = psi[:, 0].mean().item()
    metrics["shaping/rejected"] = psi[:, 1].mean().item()
    metrics["shaping/margins"] = (psi[:, 0] - psi[:, 1]).mean().item()
    return loss, metrics


def dpo_loss(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    pairs: Sequence[RefPair],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """DPO, mean over pairs of -(1 - eps) log sigmoid(m) - eps log sigmoid(-m), eps the label smoothing, with

    m = beta * [ (log pi_w - log ref_w) - (log pi_l - log ref_l) ];  reward of a response = beta * (log pi - log ref).
    """
    logp = _pair_logps(policy, pairs)
    with torch.no_grad():
        base = _pair_logps(reference, pairs)
    reward = beta * (logp - base)
    margin = reward[:, 0] - reward[:, 1]
    loss = (-(1.0 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)).mean()
    return loss, _preference_metrics(loss, logp, reward)


def reference_free_dpo_loss(
    policy: PreTrainedModel, pairs: Sequence[RefPair], beta: float
) -> tuple[Tensor, dict[str, float]]:
    """Mean over pairs of -log sigmoid( beta * (log pi_w - log pi_l) ): DPO without its reference terms."""
    logp = _pair_logps(policy, pairs)
    loss = -F.logsigmoid(beta * (logp[:, 0] - logp[:, 1])).mean()
    return loss, _preference_metrics(loss, logp, beta * logp)


def sft_loss(policy: PreTrainedModel, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """-sum over examples of log pi(y|x) / total number of response tokens; examples are (prompt, response)."""
    twin = as_float64(policy)
    total = torch.stack([response_logp(twin, prompt, response) for prompt, response in examples]).sum()
    return -total / sum(len(response) for _, response in examples)


# -------------------------------------------------------------------------------------------- gradients and training


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


def adamw_losses(
    model: PreTrainedModel,
    step_losses: Sequence[Callable[[PreTrainedModel], Tensor]],
    *,
    lr: Sequence[float],
    betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_grad: float | None = None,
) -> list[float]:
    """One AdamW step in float64 per entry of ``step_losses``; returns each step's loss, taken before its update.

    ``step_losses[k]`` maps the float64 model to a scalar loss and ``lr[k]`` is that step's rate. Weight decay is
    decoupled (theta <- theta - lr * wd * theta) and applies to matrices, not to 1-D parameters. The gradient is
    multiplied by min(1, clip_grad / (norm + 1e-6)), norm over all parameters. ``model`` itself is left as it was.
    """
    if len(lr) != len(step_losses):
        raise ValueError("one learning rate per step is needed")
    twin = copy.deepcopy(as_float64(model))
    parameters = list(twin.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=betas,
        eps=eps,
    )
    losses = []
    for rate, step_loss in zip(lr, step_losses, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = step_loss(twin)
        loss.backward()
        if clip_grad:
            nn.utils.clip_grad_norm_(parameters, clip_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses


# ----------------------------------------------------------------------------------------------- tiny models and data


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
