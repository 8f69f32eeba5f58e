"""Which term of DRDO's loss (Eq. 7) moves a student: norms of the parameter gradients that each path contributes.

    python experiments/drdo_gradients.py HF_STUDENT PAIRS.jsonl [--alpha 0.1 --gamma 2]

The loss is a sum over three paths: the distillation of reward differences (through the head), the contrast
log(pi_w / (1 - pi_l)) with the focal weight held, and the focal weight (1 - p_w)^gamma with the contrast held. The
student is a Hugging Face directory with `reward_head.safetensors` beside (as `export-hf` writes it), else its head is
drawn anew; r* are the pairs' reward columns. Plain transformers, fp32, on this machine's CPU.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_tvkd.losses.drdo import log1mexp


def responses(model: Any, tokenizer: Any, head: Tensor, row: dict[str, Any], side: str) -> tuple[Tensor, int, Tensor]:
    """log pi(y|x) in nats, the number of response tokens, and the head's reward."""
    turns = [{"role": "user", "content": row["prompt"]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before = tokenizer(text, add_special_tokens=False).input_ids
    after = tokenizer(row[side] + tokenizer.eos_token, add_special_tokens=False).input_ids
    out = model(torch.tensor([before + after]), output_hidden_states=True)
    logp = out.logits[0, len(before) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(after)[:, None]).sum()
    return logp, len(after), (out.hidden_states[-1][0, -1] * head).sum()


def paths(model: Any, tokenizer: Any, head: Tensor, rows: list[dict[str, Any]], options: Any, logprob: str) -> dict:
    """Mean over pairs of each path's loss, whose gradients add up to the gradient of Eq. 7's (ratio)."""
    found: dict[str, list[Tensor]] = {"distillation": [], "contrast": [], "focal weight": [], "1 - p_w": []}
    for row in rows:
        (log_w, n_w, r_w), (log_l, n_l, r_l) = (
            responses(model, tokenizer, head, row, side) for side in ("chosen", "rejected")
        )
        if logprob == "mean":
            log_w, log_l = log_w / n_w, log_l / n_l
        weight = torch.exp(options.gamma * logsigmoid(log_l - log_w))
        contrast = log_w - log1mexp(log_l)
        difference = row["chosen_reward"] - row["rejected_reward"] - (r_w - r_l)
        found["distillation"].append(difference.square())
        found["contrast"].append(-options.alpha * weight.detach() * contrast)
        found["focal weight"].append(-options.alpha * weight * contrast.detach())
        found["1 - p_w"].append(torch.sigmoid(log_l - log_w).detach())
    return {name: torch.stack(values) for name, values in found.items()}


def norm(loss: Tensor, parameters: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(torch.stack([g.norm() for g in gradients if g is not None]).norm())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--gamma", type=float, default=2.0)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.student).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    stored, size = options.student / "reward_head.safetensors", model.config.hidden_size
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(42)) * model.config.initializer_range
    head = load_file(stored)["weight"][0].float() if stored.is_file() else drawn
    rows = [json.loads(line) for line in options.pairs.read_text().splitlines()[: options.count]]
    parameters = [*model.parameters(), head.requires_grad_(True)]
    print(f"{len(rows)} pairs, alpha {options.alpha}, gamma {options.gamma}: norm of the gradient of each path's mean")
    print(f"{'logprob':8} {'distillation':>13} {'contrast':>10} {'focal weight':>13} {'pairs with p_w > 0.99':>22}")
    for logprob in ("sum", "mean"):
        found = paths(model, tokenizer, head, rows, options, logprob)
        norms = [norm(found[name].mean(), parameters) for name in ("distillation", "contrast", "focal weight")]
        sure = float((found["1 - p_w"] < 0.01).double().mean())
        print(f"{logprob:8} {norms[0]:13.4g} {norms[1]:10.4g} {norms[2]:13.4g} {sure:22.1%}")


if __name__ == "__main__":
    sys.exit(main())
