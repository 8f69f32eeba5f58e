"""AlpacaEval's instructions and MT-Bench's questions: reading them, and their answers as those tools read them."""

import hashlib
import json
import time
from collections.abc import Sequence
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
"""FastChat's for MT-Bench (fastchat/llm_judge/common.py); a category that is none of them has OTHER."""
OTHER = 0.7

Answers = list[list[str]]
"""Of each conversation, the answer to each of its turns."""


@dataclass(frozen=True)
class Conversation:
    """What is asked, one turn after the other."""

    source: str
    """"file: row 3", for people."""
    turns: tuple[str, ...]
    temperature: float
    """0: greedy."""
    row: dict[str, Any]

    def messages(self, answers: Sequence[str]) -> list[dict[str, str]]:
        """The conversation with the first answers: up to the next question, or up to the last answer."""
        said: list[dict[str, str]] = []
        for turn, question in enumerate(self.turns[: len(answers) + 1]):
            said.append({"role": "user", "content": question})
            if turn < len(answers):
                said.append({"role": "assistant", "content": answers[turn]})
        return said


def read_prompts(path: str, limit: int | None) -> list[Conversation]:
    """AlpacaEval's instructions, greedy.

    Raises:
        UserError: no such file, a row without an instruction; names the row.
    """
    found = []
    for where, row in _rows(path, "benchmark.prompts", limit):
        if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
            raise UserError(f'{where}: "instruction" must be a text that is not empty')
        found.append(Conversation(where, (row["instruction"],), 0.0, row))
    return found


def read_questions(path: str, limit: int | None) -> list[Conversation]:
    """MT-Bench's questions with FastChat's temperature of their category.

    Raises:
        UserError: no such file, a row that is no question; names the row.
    """
    found: dict[int, Conversation] = {}
    for where, row in _rows(path, "benchmark.questions", limit):
        number, turns = row.get("question_id"), row.get("turns")
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(f'{where}: "question_id" must be a whole number')
        if number in found:
            raise UserError(f"{where}: question_id {number} is there already ({found[number].source})")
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns)):
            raise UserError(f'{where}: "turns" must be a list of texts that are not empty')
        found[number] = Conversation(where, tuple(turns), TEMPERATURES.get(str(row.get("category")), OTHER), row)
    return list(found.values())


def _rows(path: str, key: str, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or of JSON lines, each with how people find it."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
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
            raise UserError(f"{where} is no JSON object")
    return rows[:limit]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def file_digest(path: str) -> str:
    """sha256 of a file (hex)."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def digest(text: Any) -> str:
    """sha256 of a chat template (hex)."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def alpaca_rows(asked: list[Conversation], answers: Answers, name: str) -> list[dict[str, Any]]:
    """As alpaca_eval's --model_outputs: instruction, output, generator, and the dataset where the prompts tell it."""
    return [
        {"instruction": one.turns[0], "output": said[0], "generator": name}
        | ({"dataset": one.row["dataset"]} if "dataset" in one.row else {})
        for one, said in zip(asked, answers, strict=True)
    ]


def mt_bench_rows(asked: list[Conversation], answers: Answers, name: str) -> list[dict[str, Any]]:
    """As FastChat's model_answer files, in the order of the question ids."""
    rows = [
        {
            "question_id": one.row["question_id"],
            "answer_id": hashlib.sha256(json.dumps([name, one.row["question_id"], said]).encode()).hexdigest()[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": said}],
            "tstamp": time.time(),
        }
        for one, said in zip(asked, answers, strict=True)
    ]
    return sorted(rows, key=lambda row: row["question_id"])


def alpaca_answers(asked: list[Conversation], text: str) -> Answers:
    """The answers in a file of :func:`alpaca_rows`, a JSON list."""
    rows = json.loads(text)
    return [[row["output"]] for row in rows]


def mt_bench_answers(asked: list[Conversation], text: str) -> Answers:
    """The answers in a file of :func:`mt_bench_rows`, JSON lines, in the order of `asked`."""
    rows = [json.loads(line) for line in text.split("\n") if line]
    found = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    return [found[one.row["question_id"]] for one in asked]
