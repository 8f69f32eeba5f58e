"""AlpacaEval's instructions and MT-Bench's questions: reading them, and their answers as those tools read them."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's for MT-Bench (fastchat/llm_judge/common.py); any other category has OTHER."""
OTHER = 0.7

Answers = list[list[str]]
"""Of each conversation, the answer to each of its turns."""


@dataclass(frozen=True)
class Conversation:
    """The user's turns, to be answered one after the other."""

    source: str
    """"file: row 3", for people."""
    turns: tuple[str, ...]
    temperature: float
    """0: greedy."""
    row: dict[str, Any]

    def messages(self, answers: Sequence[str]) -> list[dict[str, str]]:
        """The conversation with the first answers: up to the next question, or up to the last answer."""
        messages: list[dict[str, str]] = []
        for turn, question in enumerate(self.turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": question})
            if turn < len(answers):
                messages.append({"role": "assistant", "content": answers[turn]})
        return messages


def read_prompts(path: str, limit: int | None) -> list[Conversation]:
    """AlpacaEval's instructions, greedy.

    Raises:
        UserError: no such file, a row without an instruction; names the row.
    """
    conversations = []
    for where, row in _rows(path, "benchmark.prompts", limit):
        if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
            raise UserError(f'{where}: "instruction" must be a text that is not empty')
        conversations.append(Conversation(where, (row["instruction"],), 0.0, row))
    return conversations


def read_questions(path: str, limit: int | None) -> list[Conversation]:
    """MT-Bench's questions with FastChat's temperature of their category.

    Raises:
        UserError: no such file, a row that is not a question; names the row.
    """
    questions: dict[int, Conversation] = {}
    for where, row in _rows(path, "benchmark.questions", limit):
        number, turns = row.get("question_id"), row.get("turns")
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(f'{where}: "question_id" must be a whole number')
        if number in questions:
            raise UserError(f"{where}: question_id {number} is there already ({questions[number].source})")
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns)):
            raise UserError(f'{where}: "turns" must be a list of texts that are not empty')
        questions[number] = Conversation(where, tuple(turns), TEMPERATURES.get(str(row.get("category")), OTHER), row)
    return list(questions.values())


def _rows(path: str, key: str, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or of JSON lines, each with its place for people."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{key}: {path} cannot be read: {reason}") from error
    if text.lstrip().startswith("["):
        rows = [(f"{key}: {path}: row {i}", row) for i, row in enumerate(_parsed(text, f"{key}: {path}"), 1)]
    else:
        lines = [(f"{key}: {path}:{i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(where, _parsed(line, where)) for where, line in lines]
    if not rows:
        raise UserError(f"{key}: {path} is empty")
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object")
    return rows[:limit]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def alpaca_text(asked: list[Conversation], answers: Answers, name: str) -> str:
    """alpaca_eval's --model_outputs: instruction, output, generator, and the dataset where the prompts name it."""
    rows = [
        {"instruction": one.turns[0], "output": turns[0], "generator": name}
        | ({"dataset": one.row["dataset"]} if "dataset" in one.row else {})
        for one, turns in zip(asked, answers, strict=True)
    ]
    return as_json(rows)


def mt_bench_text(asked: list[Conversation], answers: Answers, name: str) -> str:
    """FastChat's model_answer file, in the order of the question ids."""
    rows = [
        {
            "question_id": one.row["question_id"],
            "answer_id": hashlib.sha256(json.dumps([name, one.row["question_id"], turns]).encode()).hexdigest()[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": time.time(),
        }
        for one, turns in zip(asked, answers, strict=True)
    ]
    return as_jsonl(sorted(rows, key=lambda row: row["question_id"]))


@dataclass(frozen=True)
class Part:
    """A benchmark of generated answers."""

    title: str
    key: str
    """Of its questions' file, in the section `benchmark`."""
    file: str
    """Of its answers, in the output folder."""
    read: Callable[[str, int | None], list[Conversation]]
    text: Callable[[list[Conversation], Answers, str], str]


PARTS = {
    "alpaca_eval": Part("AlpacaEval", "prompts", "alpaca_eval.json", read_prompts, alpaca_text),
    "mt_bench": Part("MT-Bench", "questions", "mt_bench.jsonl", read_questions, mt_bench_text),
}


def as_json(value: Any) -> str:
    """Indented JSON with a newline; what JSON does not know (a dtype, say) as text."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """One object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a killed process may have left with half a line at its end; [] where there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line end is not whole
