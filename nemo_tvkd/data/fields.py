"""One field of a record, checked: text, a number, a list of messages; and how to say what is wrong with it."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

Turn = dict[str, str]

FLOAT32_MAX = 3.4028235e38
"""Rewards and margins are float32 on the devices."""
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class BadRow(Exception):
    """What is wrong with a record; whoever reads it knows where it stands."""


def bad(message: str) -> NoReturn:
    raise BadRow(message)


def turns_of(value: Any, name: str) -> list[Turn]:
    """Messages, as role/content or from/value, in the former's terms; a single message counts as a list of one.

    An object of lists, as `datasets` once stored a sequence of messages, is the list of messages that it was. A null
    role is none: in a table whose rows differ each message has all keys.
    """
    items = _listed(value) if isinstance(value, dict) else value
    if not isinstance(items, list):
        bad(f"{name} is {kind(value)}: it must be text or a list of messages")
    if not items:
        bad(f"{name} is an empty list of messages")
    turns = []
    for number, item in enumerate(items, 1):
        where = f"{name}, message {number}"
        if not isinstance(item, dict):
            bad(f"{where} is {kind(item)}: it must be an object with role and content, or from and value")
        keys = ("from", "value") if is_from_value(item) else ("role", "content")
        if missing := [key for key in keys if key not in item]:
            bad(f"{where} has no {' and no '.join(missing)}; found: {names_of(item)}")
        role = text_of(item[keys[0]], f"{where}, {keys[0]}")
        if role not in ROLES:
            bad(f"{where}: unknown {keys[0]} {short(role)}; known are {', '.join(ROLES)}")
        turns.append({"role": ROLES[role], "content": text_of(item[keys[1]], f"{where}, {keys[1]}")})
    return turns


def is_from_value(message: Mapping[str, Any]) -> bool:
    """Whether a message is from/value rather than role/content; in a table it may have the others' keys, as nulls."""
    return "from" in message and message.get("role") is None and not (message["from"] is None and "role" in message)


def _listed(value: dict[str, Any]) -> list[Any]:
    columns = list(value.values())
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return [value]


def text_of(value: object, name: str) -> str:
    if not isinstance(value, str):
        bad(f"{name} is {kind(value)}: it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; tokenizers crash on it
        bad(f"{name} is not valid Unicode: half a surrogate pair at character {error.start + 1}")
    return value


def number_of(value: object, name: str, why: str = "") -> float:
    """A finite number; `why` ends the message about any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad(f"{name} is {kind(value)}: it must be a number{why}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        bad(f"{name} is {number}: it must be a finite number{why}")
    if abs(number) > FLOAT32_MAX:
        bad(f"{name} is {number:g}: numbers of more than {FLOAT32_MAX:.1e} are infinite in float32{why}")
    return number


def kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def names_of(record: Mapping[str, Any]) -> str:
    return ", ".join(short(str(name))[1:-1] for name in list(record)[:20]) or "none"
