"""Float64, single-process reference of reward models, DRDO and e-DPO, from the equations with torch and transformers.

As ``reference``, and on top of it: sequences are run one at a time, unpadded, on one process, and nothing here knows
NeMo, Megatron or ``nemo_tvkd``.

A reward is r(x, y) = w . h with h the last hidden state (after the final norm) at the last token of x + y, the end
token. ``head`` is w, [1, H] float64, a leaf of the caller's, so that its gradient can be asked for as well.

The losses take models and pairs of token ids, and return the mean over pairs and the metrics of a row of
metrics.jsonl; what they do with a pair's numbers is in ``reward_formulas``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reference import RefPair
from reward_formulas import drdo_pairs, edpo_errors, edpo_pairs, reward_pairs
from torch import Tensor
from transformers import PreTrainedModel

CORRELATION = "reward_distillation/correlation"


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
