"""Float64, single-process reference of reward models, DRDO and e-DPO, from the equations with torch and transformers.

As ``reference``, and on top of it: sequences are run one at a time, unpadded, on one process, and nothing here knows
NeMo, Megatron or ``nemo_tvkd``.

A reward is r(x, y) = w . h with h the last hidden state (after the final norm) at the last token of x + y, the end
token. ``head`` is w, [1, H] float64, a leaf of the caller's, so that its gradient can be asked for as well.

The losses take models and pairs of token ids, and return the mean over pairs and the metrics of a row of
metrics.jsonl; what they do with a pair's numbers is in ``reward_formulas``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from float64 import as_float64
from reference import RefPair, response_logp
from reward_formulas import drdo_pairs, edpo_errors, edpo_pairs, reward_pairs
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

CORRELATION = "reward_distillation/correlation"


# ------------------------------------------------------------------------------------------------ models with a head


def random_head(seed: int, hidden: int, std: float | None = None) -> Tensor:
    """[1, hidden] float32; by default of std 1 / sqrt(hidden), so that rewards spread by about 1."""
    noise = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed))
    return noise * (hidden**-0.5 if std is None else std)


def with_head(model: PreTrainedModel, head: Tensor) -> PreTrainedModel:
    """A copy of a causal LM with the parameter ``reward_head.weight``, for ``reference.adamw_losses``."""
    twin = copy.deepcopy(model)
    twin.reward_head = nn.Linear(head.shape[1], 1, bias=False)
    twin.reward_head.weight.data = head.detach().clone()
    return twin


def as_classifier(model: PreTrainedModel, head: Tensor) -> LlamaForSequenceClassification:
    """The Hugging Face form of a reward model: ``model``'s layers, and ``head`` as its `score`."""
    settings = model.config.to_dict() | {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config = LlamaConfig(**settings | {"tie_word_embeddings": False}, attn_implementation="eager")
    assert config.num_labels == 1
    with torch.random.fork_rng(devices=[]):
        twin = LlamaForSequenceClassification(config).float().eval()
    twin.model.load_state_dict(model.model.state_dict())
    twin.score.weight.data = head.detach().clone()
    return twin


def reward(model: PreTrainedModel, head: Tensor, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """r(x, y) = w . h(last token of x + y), a scalar; ``model`` is any Hugging Face model around a base model."""
    if not prompt or not response:
        raise ValueError("the prompt and the response must not be empty")
    ids = torch.tensor([[*prompt, *response]])
    hidden = as_float64(model).base_model(input_ids=ids, use_cache=False).last_hidden_state
    return head.double()[0] @ hidden[0, -1]


def pair_rewards(model: PreTrainedModel, head: Tensor, pairs: Sequence[RefPair]) -> Tensor:
    """r(x, y_w) and r(x, y_l) of every pair, [pairs, 2]."""
    twin = as_float64(model)
    return torch.stack([torch.stack([reward(twin, head, p.prompt, y) for y in (p.chosen, p.rejected)]) for p in pairs])


def pair_logps(model: PreTrainedModel, pairs: Sequence[RefPair]) -> Tensor:
    """log pi(y_w|x) and log pi(y_l|x) of every pair, [pairs, 2]."""
    twin = as_float64(model)
    return torch.stack([torch.stack([response_logp(twin, p.prompt, y) for y in (p.chosen, p.rejected)]) for p in pairs])


def oracle_rewards(model: PreTrainedModel, head: Tensor, pairs: Sequence[RefPair]) -> Tensor:
    """A frozen oracle's r*(x, y_w) and r*(x, y_l), [pairs, 2], without a graph."""
    with torch.no_grad():
        return pair_rewards(model, head, pairs)


def _lengths(pairs: Sequence[RefPair]) -> Tensor:
    """T_w and T_l, [pairs, 2] float64; the end token counts."""
    return torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- metrics


def _std(values: Tensor) -> float:
    return values.std(correction=0).item()


def _means(named: dict[str, Tensor]) -> dict[str, float]:
    return {name: values.detach().double().mean().item() for name, values in named.items()}


def _distillation_spread(oracle: Tensor, student: Tensor) -> dict[str, float]:
    """Of [B] margins over a step's pairs: population standard deviations, and Pearson's r where there is one."""
    oracle, student = oracle.detach(), student.detach()
    spread = {"rewards/margins_std": _std(student), "oracle/margins_std": _std(oracle)}
    if len(oracle) > 1 and spread["rewards/margins_std"] > 0 and spread["oracle/margins_std"] > 0:
        spread[CORRELATION] = torch.corrcoef(torch.stack([oracle, student]))[0, 1].item()
    return spread


# --------------------------------------------------------------------------------------------- reward models (Eq. 6)


def reward_loss(
    model: PreTrainedModel,
    head: Tensor,
    pairs: Sequence[RefPair],
    *,
    alpha_sft: float = 0.01,
    center_rewards_coefficient: float = 0.0,
    margins: Sequence[float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 6 of arXiv 2410.08458, the oracle's loss, mean over pairs; ``margins``: the data's column, if it is used."""
    rewards = pair_rewards(model, head, pairs)
    losses, named = reward_pairs(
        rewards,
        pair_logps(model, pairs)[:, 0] if alpha_sft > 0 else None,
        _lengths(pairs)[:, 0],
        None if margins is None else torch.tensor(list(margins), dtype=torch.float64),
        alpha_sft=alpha_sft,
        center_rewards_coefficient=center_rewards_coefficient,
    )
    metrics = _means(named)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        metrics[f"{name}_std"] = _std(named[name].detach())
    return losses.mean(), metrics


# ----------------------------------------------------------------------------------------------------- DRDO (Eq. 7)


def drdo_loss(
    student: PreTrainedModel,
    head: Tensor | None,
    oracle: Tensor,
    pairs: Sequence[RefPair],
    *,
    alpha: float = 0.1,
    gamma: float = 2.0,
    beta: float = 0.1,
    logprob: str = "sum",
    contrast: str = "ratio",
    student_reward: str = "head",
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 7 of arXiv 2410.08458, mean over pairs; ``oracle`` [pairs, 2] are r* of the chosen and rejected responses."""
    rewards = None
    if student_reward == "head":
        assert head is not None
        rewards = pair_rewards(student, head, pairs)
    losses, named = drdo_pairs(
        pair_logps(student, pairs),
        _lengths(pairs),
        rewards,
        oracle,
        alpha=alpha,
        gamma=gamma,
        beta=beta,
        logprob=logprob,
        contrast=contrast,
        student_reward=student_reward,
    )
    return losses.mean(), _means(named) | _distillation_spread(named["oracle/margins"], named["rewards/margins"])


# ------------------------------------------------------------------------------------------------------------ e-DPO


def edpo_loss(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    oracles: Tensor,
    pairs: Sequence[RefPair],
    *,
    beta: float = 0.1,
    ensemble: str = "mean",
) -> tuple[Tensor, dict[str, float]]:
    """e-DPO (arXiv 2405.19316), mean over pairs; ``oracles`` [K, pairs, 2] are r* by K oracles.

    ensemble: `mean` is the loss of the averaged reward difference; `min` the smallest of the K mean losses over these
    pairs (the global batch).
    """
    assert ensemble in ("mean", "min")
    logps = pair_logps(policy, pairs)
    with torch.no_grad():
        base = pair_logps(reference, pairs)
    delta = oracles[:, :, 0] - oracles[:, :, 1]
    if ensemble == "min":
        best = int(edpo_errors(logps.detach(), base, delta, beta=beta).argmin())
        delta = delta[best : best + 1]
    losses, named = edpo_pairs(logps, base, delta, beta=beta)
    return losses.mean(), _means(named) | _distillation_spread(named["oracle/margins"], named["rewards/margins"])
