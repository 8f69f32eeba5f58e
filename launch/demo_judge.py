"""What plain transformers says about exported checkpoints on held-out pairs, and what the world's judge says."""

import json
import os
from pathlib import Path
from typing import Any

from demo_world import judge

Row = dict[str, Any]


def heldout_pairs(root: Path) -> list[Row]:
    """The demo's held-out pairs."""
    return [json.loads(line) for line in (root / "data" / "pairs_heldout.jsonl").read_text().splitlines()]


def judge_exports(root: Path, exported: dict[str, str]) -> list[Row]:
    """Held-out figures of policies (folder under hf/ -> name), by transformers alone."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    pairs = heldout_pairs(root)
    return [{"run": run, "model": name, **judge_policy(root / "hf" / run, pairs)} for run, name in exported.items()]


def judge_policy(folder: Path, pairs: list[Row]) -> dict[str, float]:
    """Accuracy and margin of log pi (nats), and the ground-truth reward of greedy answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [_prompt(tokenizer, row) for row in pairs]
    margins = [
        _logp(model, tokenizer, prompt, row["chosen"]) - _logp(model, tokenizer, prompt, row["rejected"])
        for prompt, row in zip(prompts, pairs, strict=True)
    ]
    answers = _generate(model, tokenizer, prompts)
    rewards = [judge(row["prompt"], answer).reward for row, answer in zip(pairs, answers, strict=True)]
    return {
        "pairs": len(pairs),
        "accuracy": sum(m > 0 for m in margins) / len(margins),
        "margin": sum(margins) / len(margins),
        "answer_reward": sum(rewards) / len(rewards),
    }


def judge_reward_model(folder: Path, pairs: list[Row]) -> dict[str, float]:
    """Accuracy and margin of an exported reward model (reward units)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")

    def rewards(side: str) -> torch.Tensor:
        texts = [_prompt(tokenizer, row) + row[side] + tokenizer.eos_token for row in pairs]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]

    margins = rewards("chosen") - rewards("rejected")
    return {"accuracy": float((margins > 0).double().mean()), "margin": float(margins.double().mean())}


def _prompt(tokenizer: Any, row: Row) -> str:
    turns = [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _logp(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """log pi(response, end token | prompt) in nats."""
    import torch

    before = tokenizer(prompt, add_special_tokens=False).input_ids
    after = tokenizer(response + tokenizer.eos_token, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None]).sum())


def _generate(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Greedy answers."""
    import torch

    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=40, do_sample=False
        )
    return tokenizer.batch_decode(out[:, batch.input_ids.size(1) :], skip_special_tokens=True)


def last_validation(run: Path) -> dict[str, float]:
    """The newest row of validation metrics in a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in reversed(rows) if "eval_loss" in row)


def table(rows: list[Row]) -> str:
    """The result, as text."""
    lines = [f"{'model':22} {'accuracy':>9} {'margin (nats)':>14} {'answer reward':>14}"]
    for row in rows:
        lines.append(f"{row['model']:22} {row['accuracy']:9.3f} {row['margin']:14.2f} {row['answer_reward']:14.2f}")
    return "\n".join(lines)
