"""Float64, single-process reference of SFT, DPO and TVKD, written from the equations with torch and transformers only.

Nothing here knows NeMo, Megatron or ``nemo_tvkd``: sequences are run one at a time, unpadded, on one process, so that
masks, shifts, packing, padding and parallel layouts cannot go wrong in the same way as in the code under test.

Notation. Prompt x (P tokens), response y = (y_1..y_T), its end token included. State s_t = (x, y_<t) for t = 1..T+1;
s_{T+1} is the state after the end token. z(s) are raw logits, pi = softmax(z) at temperature 1. Row i of the logits of
x + y is z at the state that ends with token i, so z(s_t) is row P + t - 2 and z(s_{T+1}) is the last row, P + T - 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from float64 import as_float64, gradients, sequence_logits
from tiny_models import RefPair, random_pairs, tiny_llama, tiny_mistral
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = [  # the tests' one name for all of it is `reference`
    "ACTION_KINDS",
    "STATE_KINDS",
    "RefPair",
    "adamw_losses",
    "as_float64",
    "dpo_loss",
    "gradients",
    "potential",
    "random_pairs",
    "reference_free_dpo_loss",
    "response_logp",
    "sequence_logits",
    "sft_loss",
    "shaping",
    "state_values",
    "tiny_llama",
    "tiny_mistral",
    "turns_sft_loss",
    "tvkd_loss",
]

STATE_KINDS = ("soft_value", "max", "margin", "expectation")
ACTION_KINDS = ("logit", "logprob")


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


def simpo_loss(
    policy: PreTrainedModel,
    pairs: Sequence[RefPair],
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
    hinge: bool = False,
    sft_weight: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """SimPO (arXiv 2405.14734, Eq. 6), mean over pairs, in the paper's own terms:

        -log sigmoid( beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l) - gamma )

    with gamma the margin itself; smoothed as DPO; or max(0, 1 - that argument); less the weighted log pi(y_w)/|y_w|.
    """
    logp = _pair_logps(policy, pairs)
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=torch.float64)
    reward = beta * logp / lengths
    d = reward[:, 0] - reward[:, 1] - gamma
    loss = -(1.0 - label_smoothing) * F.logsigmoid(d) - label_smoothing * F.logsigmoid(-d)
    if hinge:
        loss = (1.0 - d).clamp(min=0.0)
    total = (loss - sft_weight * logp[:, 0] / lengths[:, 0]).mean()
    metrics = _preference_metrics(total, logp, reward)
    metrics["logps/mean_chosen"] = (logp[:, 0] / lengths[:, 0]).mean().item()
    metrics["logps/mean_rejected"] = (logp[:, 1] / lengths[:, 1]).mean().item()
    metrics["simpo/margin_met"] = (d > 0).double().mean().item()
    return total, metrics


def sft_loss(policy: PreTrainedModel, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """-sum over examples of log pi(y|x) / total number of response tokens; examples are (prompt, response)."""
    twin = as_float64(policy)
    total = torch.stack([response_logp(twin, prompt, response) for prompt, response in examples]).sum()
    return -total / sum(len(response) for _, response in examples)


def turns_sft_loss(policy: PreTrainedModel, conversations: Sequence[Sequence[tuple[Sequence[int], bool]]]) -> Tensor:
    """-sum of log pi(token | all before it) over the tokens of trained turns / the number of these tokens.

    A conversation is its turns in order, each as (its tokens, whether it is trained); the first is not.
    """
    twin, total, count = as_float64(policy), torch.zeros((), dtype=torch.float64), 0
    for turns in conversations:
        before: list[int] = []
        for tokens, trained in turns:
            if trained:
                total, count = total + response_logp(twin, before, tokens), count + len(tokens)
            before += tokens
    return -total / count


# ----------------------------------------------------------------------------------------------------------- training


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
