"""Preference pairs and examples from files: every layout is brought into one form, every bad row is named.

Files become records (plain JSON-like objects, each with its "file:line"), records become `Row`s. A mistake in a row is
a `UserError` that starts with "file:line:"; a mistake about a whole file names the configuration key and the path.
"""

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nemo_tvkd.errors import UserError

Turn = dict[str, str]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""How HH-RLHF writes who speaks; the plain transcript of every layout uses the same marks."""

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
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


@dataclass
class ReadReport:
    """What was read: good rows, how often each layout was recognised, and the bad rows ("file:line: what is wrong")."""

    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def read_rows(
    paths: Sequence[str], *, need_rejected: bool = True, on_bad_row: str = "error", key: str = "data.train"
) -> tuple[list[Row], ReadReport]:
    """Read every row of `paths` in order; `need_rejected` asks for pairs, else examples are enough.

    Raises:
        UserError: a path or file that cannot be used (names `key`), the first bad row if `on_bad_row` is "error",
            or nothing but bad rows.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    rows: list[Row] = []
    report = ReadReport()
    for path in paths:
        empty = True
        for source, record in _records(Path(path).expanduser(), key):
            empty = False
            try:
                row, layout = _parse(record, source, need_rejected)
            except UserError as error:
                if on_bad_row == "error":
                    raise
                report.bad.append(str(error))
            else:
                rows.append(row)
                report.layouts[layout] += 1
        if empty:
            raise UserError(f"{key}: {path} is empty: it holds no rows")
    if report.bad and not rows:
        raise UserError(f"{key}: each of the {len(report.bad)} rows is bad; the first: {report.bad[0]}")
    report.rows = len(rows)
    return rows, report


def row_from_record(record: object, source: str, need_rejected: bool) -> Row:
    """One record in normal form.

    Raises:
        UserError: "`source`: what is wrong with the record".
    """
    return _parse(record, source, need_rejected)[0]


# --- records from files -------------------------------------------------------------------------------------------

Numbered = Iterator[tuple[int, object]]


def _records(path: Path, key: str) -> Iterator[tuple[str, object]]:
    """(source, record) of a file or directory; a record that could not be decoded is the UserError itself."""
    if not path.exists():
        raise UserError(f"{key}: {path} does not exist")
    if path.is_dir() and not _is_saved_dataset(path):
        files = sorted(file for file in path.iterdir() if file.is_file() and _reader(file))
        if not files:
            raise UserError(f"{key}: {path} holds none of {', '.join(READERS)} and is no saved dataset")
        for file in files:
            yield from _records(file, key)
        return
    reader = _reader(path)
    try:
        if path.is_dir():
            numbered = _saved_dataset(path, key.rpartition(".")[2])
        elif reader:
            numbered = reader(path)
        else:
            known = ", ".join(READERS)
            raise UserError(f"{key}: {path} has an unknown extension; known are {known} and saved datasets")
        for number, record in numbered:
            yield f"{path}:{number}", record
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read: {_one_line(error)}") from error


def _reader(path: Path) -> Callable[[Path], Numbered] | None:
    return next((reader for extension, reader in READERS.items() if path.name.endswith(extension)), None)


def _json_lines(path: Path) -> Numbered:
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                yield number, UserError(f"{path}:{number}: unreadable JSON: {error.msg} at column {error.pos + 1}")
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"{path}:{number}: unreadable JSON: {_one_line(error)}")


def _json_list(path: Path) -> Numbered:
    text = path.read_bytes().decode("utf-8-sig")
    if text.lstrip().startswith("["):
        yield from enumerate(json.loads(text), 1)
    else:  # many data sets call their JSON lines ".json"
        yield from _json_lines(path)


def _parquet(path: Path) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in COLUMNS]
            yield from _table_rows(names, file.metadata.num_rows, file.iter_batches(columns=wanted) if wanted else None)
    except pa.ArrowException as error:
        raise ValueError(_one_line(error)) from error


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or all(
        (path / n).exists() for n in ("dataset_info.json", "state.json")
    )


def _saved_dataset(path: Path, split: str) -> Numbered:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as whatever the first reader of it happens to raise
        raise ValueError(_one_line(error)) from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = list(loaded)
        if split not in splits and len(splits) != 1:
            raise ValueError(f"it holds the splits {', '.join(splits)}: name one, for example {path / splits[0]}")
        name = split if split in splits else splits[0]
        loaded = loaded[name]
    names = loaded.column_names
    wanted = [name for name in names if name in COLUMNS]
    # "arrow" undoes a saved set_format, which would hand out tensors
    batches = loaded.select_columns(wanted).with_format("arrow").iter(1000) if wanted else None
    yield from _table_rows(names, len(loaded), batches)


def _table_rows(names: list[str], count: int, batches: Iterator[Any] | None) -> Numbered:
    """Rows of Arrow tables that hold the known columns only: the others need be neither read nor readable."""
    rows = (row for batch in batches for row in batch.to_pylist()) if batches else ({} for _ in range(count))
    for number, row in enumerate(rows, 1):
        yield number, dict.fromkeys(names) | row


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}


# --- rows from records --------------------------------------------------------------------------------------------


class _BadRow(Exception):
    """What is wrong with the record; `_parse` adds where it stands."""


@dataclass(frozen=True)
class _Pair:
    messages: list[Turn]
    replies: list[str]
    plain_prompt: str
    plain_replies: list[str]
    layout: str


def _parse(record: object, source: str, need_rejected: bool) -> tuple[Row, str]:
    """A record as (row, name of its layout)."""
    if isinstance(record, UserError):
        raise record
    try:
        if not isinstance(record, dict):
            _bad(f"the row is {_kind(record)}, not an object with named columns")
        prompt, responses, columns = _fields(record, need_rejected)
        pair = _normal_form(prompt, columns[0], responses)
        _check(pair, list(responses))
        rewards = _rewards(record, need_rejected)
        name = _id(record)
    except _BadRow as error:
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
    )
    return row, f"{'/'.join(columns)} {pair.layout}"


def _fields(record: Mapping[str, Any], need_rejected: bool) -> tuple[Any, dict[str, Any], list[str]]:
    """(prompt or None, responses by column, columns used) of a record."""
    asked, replies = _columns(record, need_rejected)
    columns = replies if asked is None else [asked, *replies]
    for name in columns:
        if record[name] is None:
            _bad(f"{name} is null")
    prompt = record[asked] if asked else None
    if asked == "instruction" and record.get("input"):  # Alpaca: what the instruction is about
        prompt = f"{_text(prompt, asked)}\n\n{_text(record['input'], 'input')}"
    return prompt, {name: record[name] for name in replies}, columns


def _columns(record: Mapping[str, Any], need_rejected: bool) -> tuple[str | None, list[str]]:
    """(the prompt's column if it has one, the responses' columns)."""
    if "chosen" in record and ("rejected" in record or not need_rejected):
        replies = ["chosen", "rejected"] if need_rejected else ["chosen"]
        if "prompt" in record:
            return "prompt", replies
        # where chosen is a single message, the turns before it stand in a column of their own
        beside = isinstance(record["chosen"], dict) and "conversations" in record
        return ("conversations" if beside else None), replies
    if need_rejected:
        missing = [name for name in ("chosen", "rejected") if name not in record]
        _bad(f"missing column {' and '.join(missing)}: {PAIR_NEEDS}; found: {_found(record)}")
    for name in ("messages", "conversations"):
        if name in record:
            return None, [name]
    for asked, reply in EXAMPLES:
        if asked in record and reply in record:
            return asked, [reply]
    _bad(f"missing columns: {EXAMPLE_NEEDS}; found: {_found(record)}")


def _normal_form(prompt: Any, name: str, responses: dict[str, Any]) -> _Pair:
    """`name` is the prompt's column, for messages."""
    if all(isinstance(value, str) for value in responses.values()):
        texts = {column: _text(value, column) for column, value in responses.items()}
        if prompt is None:
            return _transcripts(texts)
        if isinstance(prompt, str):
            return _strings(_text(prompt, name), texts)
    return _chats(prompt, name, responses)


def _transcripts(texts: dict[str, str]) -> _Pair:
    """HH-RLHF: whole dialogues as text; the last assistant turn is the response, the rest must be shared."""
    heads, replies = [], []
    for name, text in texts.items():
        head, mark, reply = text.rpartition(ASSISTANT)
        if not mark:
            _bad(rf'{name} has no "\n\nAssistant:" turn: without a prompt column it must be a transcript or messages')
        if HUMAN in reply:
            _bad(f"{name}: the last turn is from Human, not from the assistant")
        heads.append(head)
        replies.append(reply)
    if heads[0] != heads[-1]:
        at = _differ(*heads)
        a, b = (_short(head[at : at + 40]) for head in heads)
        _bad(f"chosen and rejected do not share their prompt: at character {at + 1} one has {a}, the other {b}")
    return _Pair(_dialogue(heads[0]), [r.strip() for r in replies], heads[0] + ASSISTANT, replies, "transcripts")


def _strings(prompt: str, texts: dict[str, str]) -> _Pair:
    """Prompt and responses as text; the prompt may be a dialogue that ends with "Assistant:"."""
    if prompt.strip() and all(t.lstrip().startswith("Human:") and ASSISTANT in t for t in texts.values()):
        if not all(prompt.strip() in text for text in texts.values()):
            _bad(f"chosen and rejected are whole transcripts, but not of the prompt {_short(prompt)}")
        return _transcripts(texts)
    messages = _asked(prompt)
    replies = list(texts.values())
    spoken = [r.strip() for r in replies] if prompt.rstrip().endswith(ASSISTANT) else replies
    return _Pair(messages, spoken, prompt, replies, "strings")


def _chats(prompt: Any, prompt_name: str, responses: dict[str, Any]) -> _Pair:
    """Messages: the response's list continues the prompt or repeats it; text beside messages is one turn."""
    asked: list[Turn] = []
    if prompt is not None:
        asked = _asked(_text(prompt, prompt_name)) if isinstance(prompt, str) else _turns(prompt, prompt_name)
    heads, replies, layout = [], [], "messages"
    for name, value in responses.items():
        turns = (
            [{"role": "assistant", "content": _text(value, name)}] if isinstance(value, str) else _turns(value, name)
        )
        if turns[-1]["role"] != "assistant":
            _bad(f"{name}: the last turn is from the {turns[-1]['role']}, not from the assistant")
        head = turns[:-1]
        if turns[0]["role"] == "assistant":
            head = asked + head
        elif _repeats(turns, prompt, asked):
            layout = "conversations"
        else:
            _bad(f"{name} is a whole conversation, but not one that starts with the turns of {prompt_name}")
        heads.append(head)
        replies.append(turns[-1]["content"])
    if heads[0] != heads[-1]:
        _bad(f"chosen and rejected do not share their prompt: they differ from turn {_differ(*heads) + 1} on")
    listed: list[Any] = next((v for v in (prompt, *responses.values()) if isinstance(v, list)), [{}])
    if "from" in listed[0] and "role" not in listed[0]:
        layout += " (from/value)"
    return _Pair(heads[0], replies, _transcript(heads[0]), [f" {reply}" for reply in replies], layout)


def _repeats(turns: list[Turn], prompt: Any, asked: list[Turn]) -> bool:
    """Whether a whole conversation begins with the prompt (a prompt given as text is one of its user turns)."""
    if isinstance(prompt, str):
        said = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
        return prompt.strip() in said or turns[: len(asked)] == asked
    return turns[: len(asked)] == asked


def _differ(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first index at which two unequal sequences differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check(pair: _Pair, names: list[str]) -> None:
    if not pair.messages:
        _bad("there is no user turn before the response")
    if (role := pair.messages[-1]["role"]) != "user":
        _bad(f"the turn before the response is from the {role}, not from the user")
    for name, reply in zip(names, pair.replies, strict=True):
        if not reply.strip():
            _bad(f"{name}: the response is empty")
    if len(pair.replies) == 2 and pair.replies[0] == pair.replies[1]:
        _bad(f"chosen and rejected are identical: {_short(pair.replies[0])}")


def _asked(prompt: str) -> list[Turn]:
    """A prompt given as text: a dialogue if it ends where the assistant is to speak, else one user turn."""
    bare = prompt.rstrip()
    return _dialogue(bare[: -len(ASSISTANT)]) if bare.endswith(ASSISTANT) else [{"role": "user", "content": prompt}]


def _dialogue(text: str) -> list[Turn]:
    """The turns of a transcript; text before the first mark is the system's."""
    system, *rest = re.split(r"(?:\A|\n\n)(Human|Assistant):", text)
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


def _turns(value: Any, name: str) -> list[Turn]:
    """Messages, as role/content or from/value, in the former's terms; a single message counts as a list of one."""
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        _bad(f"{name} is {_kind(value)}: it must be text or a list of messages")
    if not items:
        _bad(f"{name} is an empty list of messages")
    turns = []
    for number, item in enumerate(items, 1):
        where = f"{name}, message {number}"
        if not isinstance(item, dict):
            _bad(f"{where} is {_kind(item)}: it must be an object with role and content, or from and value")
        keys = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
        if missing := [key for key in keys if key not in item]:
            _bad(f"{where} has no {' and no '.join(missing)}; found: {_found(item)}")
        role = _text(item[keys[0]], f"{where}, {keys[0]}")
        if role not in ROLES:
            _bad(f"{where}: unknown {keys[0]} {_short(role)}; known are {', '.join(ROLES)}")
        turns.append({"role": ROLES[role], "content": _text(item[keys[1]], f"{where}, {keys[1]}")})
    return turns


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        _bad(f"{name} is {_kind(value)}: it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; tokenizers crash on it
        _bad(f"{name} is no valid Unicode: half a surrogate pair at character {error.start + 1}")
    return value


def _rewards(record: Mapping[str, Any], need_rejected: bool) -> tuple[float | None, float | None]:
    """The first pair of reward columns that is there; a column that is absent gives None."""
    columns = next((names for names in REWARDS if any(name in record for name in names)), REWARDS[0])
    chosen = _number(record[columns[0]], columns[0]) if columns[0] in record else None
    rejected = _number(record[columns[1]], columns[1]) if columns[1] in record and need_rejected else None
    return chosen, rejected


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _bad(f"{name} is {_kind(value)}: it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _bad(f"{name} is {number}: it must be a finite number")
    return number


def _id(record: Mapping[str, Any]) -> str | None:
    value = record.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        _bad(f"id is {_kind(value)}: it must be text or an integer")
    return _text(str(value), "id")


def _bad(message: str) -> NoReturn:
    raise _BadRow(message)


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _found(record: Mapping[str, Any]) -> str:
    return ", ".join(_short(str(name))[1:-1] for name in list(record)[:20]) or "none"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
