"""Rows from records: every layout of a preference pair (or example) is brought into one form.

A record is a JSON-like object from a file; a mistake in it is a `UserError` that starts with "file:line:".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tvkd.data.fields import BadRow, Turn, bad, is_from_value, kind, names_of, number_of, short, text_of, turns_of
from nemo_tvkd.errors import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""How HH-RLHF writes who speaks; the plain transcript of every layout uses the same marks."""
MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
"""Either of them, also at the start of a text."""

REWARDS = (
    ("chosen_reward", "rejected_reward"),
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
EXAMPLES = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
PAIR_NEEDS = "a pair needs chosen and rejected, and prompt unless they hold whole conversations"
EXAMPLE_NEEDS = (
    "an example needs messages, conversations, prompt + completion, prompt + response, instruction + output, or chosen"
)
_SINGLE = ("id", "input", "messages", "conversations", "chosen", "rejected")
COLUMNS = {*_SINGLE, *(name for names in (*REWARDS, *EXAMPLES) for name in names)}
"""Columns that are always looked at; others only on request."""
REQUIRABLE = ("rewards", "margin")
"""What a training method may ask of every row's columns."""


@dataclass(frozen=True)
class Row:
    """One preference pair (or example) in normal form."""

    messages: tuple[Turn, ...]
    """The prompt's turns, {"role", "content"}; the last one is the user's, the first may be the system's."""
    chosen: str
    """The assistant's last turn."""
    rejected: str | None
    """None for an example."""
    plain_prompt: str
    """The prompt as a plain transcript; exactly as it stood in the file where it was text there."""
    plain_chosen: str
    plain_rejected: str | None
    source: str
    """"path/file.jsonl:17": the line or row number, from 1."""
    id: str | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    margin: float | None = None
    """By how much the chosen response is better, in reward units; read on request only."""


def row_from_record(record: object, source: str, need_rejected: bool) -> Row:
    """One record in normal form.

    Raises:
        UserError: "`source`: what is wrong with the record".
    """
    return parse_record(record, source, need_rejected)[0]


def parse_record(record: object, source: str, need_rejected: bool, require: Mapping[str, str] = {}) -> tuple[Row, str]:
    """A record as (row, name of its layout); `require` as in `pairs.iter_rows`."""
    if isinstance(record, UserError):
        raise record
    try:
        if not isinstance(record, dict):
            bad(f"the row is {kind(record)}, not an object with named columns")
        prompt, responses, columns = _fields(record, need_rejected)
        pair = _normal_form(prompt, columns[0], responses)
        _check(pair, list(responses))
        rewards = _rewards(record, need_rejected, require.get("rewards"))
        margin = _number(record, "margin", "a margin", require["margin"]) if "margin" in require else None
        name = _id(record)
    except BadRow as error:
        raise UserError(f"{source}: {error}") from None
    rejected, plain_rejected = (pair.replies[1], pair.plain_replies[1]) if need_rejected else (None, None)
    row = Row(
        messages=tuple(pair.messages),
        chosen=pair.replies[0],
        rejected=rejected,
        plain_prompt=pair.plain_prompt,
        plain_chosen=pair.plain_replies[0],
        plain_rejected=plain_rejected,
        source=source,
        id=name,
        chosen_reward=rewards[0],
        rejected_reward=rewards[1],
        margin=margin,
    )
    return row, f"{'/'.join(columns)} {pair.layout}"


@dataclass(frozen=True)
class _Pair:
    messages: list[Turn]
    replies: list[str]
    plain_prompt: str
    plain_replies: list[str]
    layout: str


def _fields(record: Mapping[str, Any], need_rejected: bool) -> tuple[Any, dict[str, Any], list[str]]:
    """(prompt or None, responses by column, columns used) of a record."""
    asked, replies = _columns(record, need_rejected)
    columns = replies if asked is None else [asked, *replies]
    for name in columns:
        if record[name] is None:
            bad(f"{name} is null")
    prompt = record[asked] if asked else None
    if asked == "instruction" and record.get("input"):  # Alpaca: what the instruction is about
        prompt = f"{text_of(prompt, asked)}\n\n{text_of(record['input'], 'input')}"
    return prompt, {name: record[name] for name in replies}, columns


def _columns(record: Mapping[str, Any], need_rejected: bool) -> tuple[str | None, list[str]]:
    """(the prompt's column if it has one, the responses' columns). Tables of several layouts have nulls in between."""
    if need_rejected and (missing := [name for name in ("chosen", "rejected") if name not in record]):
        bad(f"missing column {' and '.join(missing)}: {PAIR_NEEDS}; found: {names_of(record)}")
    replies = ["chosen", "rejected"] if need_rejected else ["chosen"]
    layouts: list[tuple[str | None, list[str]]] = []
    if "chosen" in record:
        chosen = record["chosen"]
        whole = isinstance(chosen, list) or (isinstance(chosen, str) and ASSISTANT in chosen)
        if "prompt" in record and not (record["prompt"] is None and whole):
            layouts.append(("prompt", replies))
        else:
            # where chosen is a single message, the turns before it stand in a column of their own
            beside = isinstance(chosen, dict) and "conversations" in record
            layouts.append(("conversations" if beside else None, replies))
    if not need_rejected:
        layouts += [(None, [name]) for name in ("messages", "conversations") if name in record]
        layouts += [(asked, [reply]) for asked, reply in EXAMPLES if asked in record and reply in record]
    if not layouts:
        bad(f"missing columns: {EXAMPLE_NEEDS}; found: {names_of(record)}")
    full = (way for way in layouts if all(record[name] is not None for name in (*way[1], *filter(None, way[:1]))))
    return next(full, layouts[0])


def _normal_form(prompt: Any, name: str, responses: dict[str, Any]) -> _Pair:
    """`name` is the prompt's column, for messages."""
    if all(isinstance(value, str) for value in responses.values()):
        texts = {column: text_of(value, column) for column, value in responses.items()}
        if prompt is None:
            return _transcripts(texts)
        if isinstance(prompt, str):
            return _strings(text_of(prompt, name), texts)
    return _chats(prompt, name, responses)


def _transcripts(texts: dict[str, str]) -> _Pair:
    """HH-RLHF: whole dialogues as text; the last assistant turn is the response, the rest must be shared."""
    heads, replies = [], []
    for name, text in texts.items():
        head, mark, reply = text.rpartition(ASSISTANT)
        if not mark:
            bad(rf'{name} has no "\n\nAssistant:" turn: without a prompt column it must be a transcript or messages')
        if HUMAN in reply:
            bad(f"{name}: the last turn is from Human, not from the assistant")
        heads.append(head)
        replies.append(reply)
    if heads[0] != heads[-1]:
        at = _differ(*heads)
        a, b = (short(head[at : at + 40]) for head in heads)
        bad(f"chosen and rejected do not share their prompt: at character {at + 1} one has {a}, the other {b}")
    return _Pair(_dialogue(heads[0]), [r.strip() for r in replies], heads[0] + ASSISTANT, replies, "transcripts")


def _strings(prompt: str, texts: dict[str, str]) -> _Pair:
    """Prompt and responses as text; the prompt may be a dialogue that ends with "Assistant:"."""
    if prompt.strip() and all(t.lstrip().startswith("Human:") and ASSISTANT in t for t in texts.values()):
        if not all(prompt.strip() in text for text in texts.values()):
            bad(f"chosen and rejected are whole transcripts, but not of the prompt {short(prompt)}")
        return _transcripts(texts)
    messages = _asked(prompt)
    replies = list(texts.values())
    spoken = [r.strip() for r in replies] if prompt.rstrip().endswith(ASSISTANT) else replies
    return _Pair(messages, spoken, prompt, replies, "strings")


def _chats(prompt: Any, prompt_name: str, responses: dict[str, Any]) -> _Pair:
    """Messages: the response's list continues the prompt or repeats it; text beside messages is one turn."""
    asked: list[Turn] = []
    if prompt is not None:
        asked = _asked(text_of(prompt, prompt_name)) if isinstance(prompt, str) else turns_of(prompt, prompt_name)
    heads, replies, layout = [], [], "messages"
    for name, value in responses.items():
        turns = (
            [{"role": "assistant", "content": text_of(value, name)}]
            if isinstance(value, str)
            else turns_of(value, name)
        )
        if turns[-1]["role"] != "assistant":
            bad(f"{name}: the last turn is from the {turns[-1]['role']}, not from the assistant")
        head = turns[:-1]
        if turns[0]["role"] == "assistant":
            head = asked + head
        elif _repeats(turns, prompt, asked):
            layout = "conversations"
        else:
            bad(f"{name} is a whole conversation, but not one that starts with the turns of {prompt_name}")
        heads.append(head)
        replies.append(turns[-1]["content"])
    if heads[0] != heads[-1]:
        bad(f"chosen and rejected do not share their prompt: they differ from turn {_differ(*heads) + 1} on")
    listed: list[Any] = next((v for v in (prompt, *responses.values()) if isinstance(v, list)), [{}])
    if is_from_value(listed[0]):
        layout += " (from/value)"
    return _Pair(heads[0], replies, _transcript(heads[0]), [f" {reply}" for reply in replies], layout)


def _repeats(turns: list[Turn], prompt: Any, asked: list[Turn]) -> bool:
    """Whether a whole conversation begins with the prompt (a prompt given as text is one of its user turns)."""
    if isinstance(prompt, str):
        questions = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
        return prompt.strip() in questions or turns[: len(asked)] == asked
    return turns[: len(asked)] == asked


def _differ(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first index at which two unequal sequences differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check(pair: _Pair, names: list[str]) -> None:
    if not pair.messages:
        bad("there is no user turn before the response")
    if (role := pair.messages[-1]["role"]) != "user":
        bad(f"the turn before the response is from the {role}, not from the user")
    for name, reply in zip(names, pair.replies, strict=True):
        if not reply.strip():
            bad(f"{name}: the response is empty")
    if len(pair.replies) == 2 and pair.replies[0] == pair.replies[1]:
        bad(f"chosen and rejected are identical: {short(pair.replies[0])}")


def _asked(prompt: str) -> list[Turn]:
    """A prompt given as text: a dialogue if it ends where the assistant is to speak, else one user turn."""
    bare = prompt.rstrip()
    return _dialogue(bare[: -len(ASSISTANT)]) if bare.endswith(ASSISTANT) else [{"role": "user", "content": prompt}]


def _dialogue(text: str) -> list[Turn]:
    """The turns of a transcript; text before the first mark is the system's."""
    system, *rest = MARK.split(text)
    turns = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for speaker, content in zip(rest[::2], rest[1::2], strict=True):
        turns.append({"role": "user" if speaker == "Human" else "assistant", "content": content.strip()})
    return turns


def _transcript(turns: list[Turn]) -> str:
    """The inverse of `_dialogue`, up to the mark after which the assistant answers."""
    marks = {"user": HUMAN + " ", "assistant": ASSISTANT + " "}
    text = ""
    for turn in turns:
        text += marks.get(turn["role"], "\n\n" if text else "") + turn["content"]
    return text + ASSISTANT


def _rewards(record: Mapping[str, Any], need_rejected: bool, setting: str | None) -> tuple[float | None, float | None]:
    """The first pair of reward columns that is there, whatever it holds: rewards of two columns may differ in scale."""
    columns = next((names for names in REWARDS if any(name in record for name in names)), None)
    if columns is None:
        if setting is not None:
            first, *others = (" and ".join(names) for names in REWARDS)
            missing = f"missing columns {first} (or {', or '.join(others)})"
            bad(f"{missing}: {setting} reads rewards from the data; found: {names_of(record)}")
        return None, None
    chosen = _number(record, columns[0], "rewards", setting)
    return chosen, _number(record, columns[1], "rewards", setting) if need_rejected else None


def _number(record: Mapping[str, Any], name: str, what: str, setting: str | None) -> float | None:
    """A number of a column that `setting` asks for; where nothing does (None), it may be absent or null."""
    if setting is None:
        return None if record.get(name) is None else number_of(record[name], name)
    if name not in record:
        bad(f"missing column {name}: {setting} reads {what} from the data; found: {names_of(record)}")
    return number_of(record[name], name, f"; {setting} reads {what} from the data")


def _id(record: Mapping[str, Any]) -> str | None:
    value = record.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        bad(f"id is {kind(value)}: it must be text or an integer")
    return text_of(str(value), "id")
