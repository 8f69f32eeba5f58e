"""What the tests of `nemo-tvkd benchmark` share: a tiny checkpoint, a judge, questions, tasks; a plain reference.

The reference uses `transformers` alone, one unpadded sequence at a time.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import torch
from chat_templates import LLAMA3_CHAT
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))  # a folder of scripts, no package

THINGS = ("lamp", "box", "chair", "table", "door", "cup")
COLOURS = ("red", "blue", "dark green", "white")
PROMPTS = [
    {
        "instruction": f"Say {n} words about the {thing}." * (1 + n % 3),
        "dataset": "own",
        "output": "other",
        "generator": "x",
    }
    for n in range(3)
    for thing in THINGS[:4]
]
QUESTIONS = [
    {"question_id": 84, "category": "math", "turns": ["What is 2 and 2?", "And one more?"]},
    {"question_id": 81, "category": "writing", "turns": ["Write about a lamp.", "Write it again."], "reference": ["a"]},
    {"question_id": 90, "category": "coding", "turns": ["Sort the boxes by colour, please, and say why.", "Shorter."]},
]
NEW_TOKENS = 24
SHOTS = 2


def write_rows(path: Path, rows: list[dict], as_list: bool = False) -> Path:
    path.write_text(json.dumps(rows) if as_list else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def one_catalogue() -> Iterator[None]:
    """lm-eval's 14,000 task files are read once, not by every command."""
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.tasks.TaskManager", cache(TaskManager))
        yield


class Cases:
    """The files: `model`, `judge`, `prompts`, `questions`, and `tasks` with the tasks colours and things."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        from demo_data import make_tokenizer

        tokenizer = make_tokenizer()
        model = ref.tiny_llama(1, vocab=len(tokenizer), max_positions=512)
        # Many tokens end an answer, as a random model would hardly ever say the one.
        model.generation_config.eos_token_id = [2, *range(300, 340)]
        self.model = self._save("model", model, tokenizer)
        judge = ref.tiny_llama(3, vocab=len(tokenizer), hidden=48)
        tokenizer.chat_template = LLAMA3_CHAT  # another one than the policy's
        self.judge = self._save("judge", rewards.as_classifier(judge, rewards.random_head(3, 48)), tokenizer)
        self.prompts = write_rows(folder / "prompts.json", PROMPTS, as_list=True)
        self.questions = write_rows(folder / "question.jsonl", QUESTIONS)
        self.tasks = folder / "tasks"
        self.tasks.mkdir()
        for name, things in (("colours", THINGS), ("things", THINGS[::-1][:4])):
            self._task(name, things)

    def _save(self, name: str, model: Any, tokenizer: Any) -> Path:
        model.save_pretrained(self.folder / name)
        tokenizer.save_pretrained(self.folder / name)
        return self.folder / name

    def _task(self, name: str, things: tuple[str, ...]) -> None:
        rows = [{"q": f"The {a} beside the {b} is", "choices": list(COLOURS)} for a in things for b in THINGS if a != b]
        rows = [row | {"label": (3 * n + n // 5) % len(COLOURS)} for n, row in enumerate(rows)]
        files = {split: str(write_rows(self.tasks / f"{name}-{split}.jsonl", part)) for split, part in (
            ("train", rows[:SHOTS]), ("test", rows[SHOTS:]),
        )}  # fmt: skip
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": [
                {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
            ],
        }
        (self.tasks / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML

    def options(self, output: Path, **more: Any) -> list[str]:
        """The command's arguments for everything that there is."""
        said = {
            "tasks": "[colours,things:0]",
            "task_folder": self.tasks,
            "prompts": self.prompts,
            "questions": self.questions,
            "reward_model": self.judge,
            "max_new_tokens": NEW_TOKENS,
            "precision": "fp32",
            "batch_size": 4,
        } | more
        keys = [f"benchmark.{key}={value}" for key, value in said.items()]
        return ["benchmark", f"checkpoint={self.model}", f"output={output}", *keys]


class Plain:
    """The same figures by `transformers`, one sequence at a time."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.tokenizer = AutoTokenizer.from_pretrained(cases.model)
        self.model = AutoModelForCausalLM.from_pretrained(cases.model, torch_dtype=torch.float32)

    def answer(self, messages: list[dict[str, str]], **sampling: Any) -> str:
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        torch.manual_seed(0)
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **sampling or {"do_sample": False}
        )
        new = made[0, ids.shape[1] :].tolist()
        if new[-1] in self.model.generation_config.eos_token_id:
            new.pop()
        return self.tokenizer.decode(new, skip_special_tokens=True).strip()

    def accuracies(self, name: str, shots: int) -> tuple[float, float]:
        """acc and acc_norm of one of the tasks, from log-likelihoods of ` choice` behind the question."""
        rows = {
            split: [json.loads(line) for line in (self.cases.tasks / f"{name}-{split}.jsonl").read_text().splitlines()]
            for split in ("train", "test")
        }
        head = "".join(f"{row['q']} {row['choices'][row['label']]}\n\n" for row in rows["train"][:shots])
        right = [0, 0]
        for row in rows["test"]:
            scores = [self._log_likelihood(head + row["q"], f" {choice}") for choice in row["choices"]]
            normed = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
            for which, found in enumerate((scores, normed)):
                right[which] += max(range(len(found)), key=found.__getitem__) == row["label"]
        return right[0] / len(rows["test"]), right[1] / len(rows["test"])

    def _log_likelihood(self, context: str, continuation: str) -> float:
        start = len(self.tokenizer(context)["input_ids"])  # with <s>
        ids = self.tokenizer(context + continuation)["input_ids"]
        with torch.no_grad():
            logps = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(logps[place - 1, ids[place]].item() for place in range(start, len(ids)))

    def rewards(self, conversations: list[list[dict[str, str]]]) -> list[float]:
        """Of conversations that end with an answer, by the judge."""
        tokenizer = AutoTokenizer.from_pretrained(self.cases.judge)
        judge = AutoModelForSequenceClassification.from_pretrained(self.cases.judge, torch_dtype=torch.float32)
        with torch.no_grad():
            return [
                judge(tokenizer.apply_chat_template(one, return_tensors="pt")).logits[0, 0].item()
                for one in conversations
            ]
