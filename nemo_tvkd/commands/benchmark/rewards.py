"""Rewards of answers by a Hugging Face sequence-classification model with one label."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from nemo_tvkd.commands.benchmark.answers import template_ids
from nemo_tvkd.commands.benchmark.models import positions
from nemo_tvkd.commands.benchmark.prompts import Answers, Conversation
from nemo_tvkd.errors import UserError

KEY = "benchmark.reward_model"


def score(asked: Sequence[Conversation], answers: Answers, model: Any, tokenizer: Any, batch_size: int) -> list[dict]:
    """One row for each answer: `row` (of the prompts or questions, from 0), `turn`, `reward`.

    An answer is read with its conversation so far, by the reward model's own chat template. Of a conversation longer
    than the model's positions the end is read; its row has `"cut": true`.

    Raises:
        UserError: a reward that is NaN or infinite.
    """
    rows: list[dict[str, Any]] = []
    texts: list[list[int]] = []
    limit = positions(model.config)
    for number, (one, turns) in enumerate(zip(asked, answers, strict=True)):
        for turn in range(len(turns)):
            messages = one.messages(turns[: turn + 1])[: 2 * turn + 2]  # without the next question
            ids = template_ids(tokenizer, messages, False, one.source)
            texts.append(ids[-limit:])
            rows.append({"row": number, "turn": turn} | ({"cut": True} if len(ids) > limit else {}))
    # Without a padding token transformers cannot tell where a padded sequence ends.
    size = 1 if model.config.pad_token_id is None else batch_size
    ordered = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(ordered), size):
        some = ordered[start : start + size]
        for i, reward in zip(some, _rewards(model, [texts[i] for i in some]), strict=True):
            if not math.isfinite(reward):
                raise UserError(f"{KEY}: its reward of {asked[rows[i]['row']].source} is {reward}: damaged weights?")
            rows[i]["reward"] = reward
    return rows


def _rewards(model: Any, texts: list[list[int]]) -> list[float]:
    """Rewards of sequences, padded on the right with the model's own padding token."""
    import torch

    width = max(map(len, texts))
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.inference_mode():
        scores = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    return scores[:, 0].float().tolist()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean reward of the answers and its standard error (None for a single one)."""
    rewards = [row["reward"] for row in rows]
    error = statistics.stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else None
    figures = {"mean": statistics.fmean(rewards), "stderr": error, "answers": len(rewards)}
    cut = sum(row.get("cut", False) for row in rows)
    return figures | ({"cut": cut} if cut else {})
