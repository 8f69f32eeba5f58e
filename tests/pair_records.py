"""Turns, transcripts and files of records that the tests of the data layer share."""

import json
from pathlib import Path
from typing import Any

ASK = {"role": "user", "content": "Two plus two?"}
RIGHT = {"role": "assistant", "content": "Four."}
WRONG = {"role": "assistant", "content": "Five."}
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Two plus two?\n\nAssistant:"
PLAIN = "\n\nHuman: Two plus two?\n\nAssistant:"
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def from_value(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)
