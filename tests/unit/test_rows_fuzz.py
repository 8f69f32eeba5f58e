"""Any JSON value in any field, any bytes in a line, any type in a table: a row, or an error that names it.

FUZZ_EXAMPLES=100000 looks further than a suite has time for, at other rows in every run.
"""

import copy
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pair_records import ASK, HH, RIGHT, SYSTEM, WRONG, from_value

from nemo_tvkd.data.pairs import ReadReport, Row, parse_rows
from nemo_tvkd.data.public import mapped
from nemo_tvkd.data.records import COLUMNS, parse_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError

MORE = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def many(count: int) -> Any:
    return settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


HELPSTEER2 = {"prompt": "Two plus two?", "response": "Four.", "helpfulness": 3}
COMPARISON = {
    "info": {"post": "We ate.", "article": None, "title": "A date", "subreddit": "food"},
    "summaries": [{"text": "Ate."}, {"text": "Met."}],
    "choice": 1,
}
VALID: list[dict[str, Any]] = [
    {
        "prompt": "Two plus two?",
        "chosen": "Four.",
        "rejected": "Five.",
        "id": 3,
        "chosen_reward": 1,
        "rejected_reward": 0.5,
    },
    {"prompt": [SYSTEM, ASK], "chosen": [RIGHT], "rejected": [WRONG], "score_chosen": 4.0, "score_rejected": None},
    {"prompt": "Two plus two?", "chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "messages": [ASK, RIGHT]},
    {"chosen": HH + " Four.", "rejected": HH + " Five.", "chosen_rating": 5, "rejected_rating": 1},
    {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "chosen_score": 1, "rejected_score": 2, "margin": 0.5},
    {
        "conversations": [from_value("human", "Two plus two?")],
        "chosen": from_value("gpt", "Four."),
        "rejected": from_value("gpt", "Five."),
    },
    {"messages": {"role": ["user", "assistant"], "content": ["Two plus two?", "Four."]}},
    {"prompt": "Two plus two?", "completion": "Four."},
    {"instruction": "Add.", "input": "2, 2", "output": "4"},
    HELPSTEER2,
    COMPARISON,
]
NAMES = sorted({*COLUMNS, "margin", "helpfulness", "info", "summaries", "choice", "role", "content", "from", "value"})
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),  # with halves of surrogate pairs and controls
    st.sampled_from(
        ["", " ", "\x00", "\x1b[31m", "\u202e", "\ud800", HH, HH + " x", "\n\nHuman:", "\n\nAssistant:", "</s>"]
    ),
    st.sampled_from(
        ["<s>", "[INST]", "<|eot_id|>", "<extra_id_1>User\n", "\n<extra_id_1>Assistant\n", "user", "gpt", "\ufeff"]
    ),
)
NUMBERS = st.one_of(st.integers(), st.sampled_from([10**400, -(10**400), 2**63]), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(TEXTS, NUMBERS, st.sampled_from([ASK, RIGHT, SYSTEM, from_value("gpt", "x")])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXTS), inner, max_size=5)
    ),
    max_leaves=12,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a value, its own included."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in _paths(value[key], (*path, key)))]


@st.composite
def nearly_right(draw: st.DrawFn) -> Any:
    """A good record with something else in some of its places."""
    record = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from(_paths(record)[1:] or [("x",)]))
        place = record
        for key in path:
            place = place[key]
        how = draw(st.sampled_from(["remove", "lengthen", "lengthen", "replace", "replace"]))
        if how == "lengthen" and isinstance(place[last] if path or last in place else None, str):
            place[last] += draw(TEXTS)
        elif how == "remove" and isinstance(place, dict):
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(draw(st.one_of(TEXTS, NUMBERS, VALUES)))
    return record


RECORDS = st.one_of(
    nearly_right(),
    nearly_right(),
    nearly_right(),
    st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXTS), VALUES, max_size=6),
    VALUES,
)


@pytest.fixture(scope="module")
def templates_of_two(mistral: Any, llama: Any) -> list[Template]:
    return [Template(mistral, "plain"), Template(mistral, "mistral"), Template(llama, "llama3")]


def check_named(error: UserError, source: str) -> None:
    text = str(error)
    assert text.startswith(f"{source}: "), text
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    text.encode()


@many(800)
@example(record={**VALID[0], "chosen_reward": 10**400}, other=None, pairs=True, require=True)
@example(record=HELPSTEER2, other={**HELPSTEER2, "helpfulness": 10**400}, pairs=True, require=False)
@given(record=RECORDS, other=RECORDS, pairs=st.booleans(), require=st.booleans())
def test_any_value_in_any_field(
    templates_of_two: list[Template], record: Any, other: Any, pairs: bool, require: bool
) -> None:
    """From the record to the ids, with a second one beside it (two may make a pair)."""
    asked = {"rewards": "a=b", "margin": "c=d"} if require else {}
    for source, each in mapped([("f.jsonl:7", record), ("f.jsonl:8", other)], pairs, ReadReport()):
        assert source in ("f.jsonl:7", "f.jsonl:8", "f.jsonl:7+8")
        try:
            row, layout = parse_record(each, source, pairs, asked)
        except UserError as error:
            check_named(error, source)
            continue
        assert layout
        assert row.source == source
        assert row.chosen.strip()
        assert (row.rejected is not None) == pairs
        for template in templates_of_two:
            for longest, prompt in ((1 << 20, None), (24, 12)):
                for turns in ("last",) if pairs else ("last", "all"):
                    try:
                        tokens = template.encode(row, longest, prompt, turns=turns)
                    except UserError as error:
                        check_named(error, source)
                    else:
                        assert len(tokens.prompt_ids) + len(tokens.chosen_ids) <= longest
                        assert len(tokens.prompt_ids) * len(tokens.chosen_ids) > 0


def read_all(path: Path, pairs: bool) -> dict[str, Row | UserError]:
    """Every row of a file, each under its own place."""
    found: dict[str, Row | UserError] = {}
    for source, row in parse_rows([str(path)], need_rejected=pairs, key="data.train", report=ReadReport()):
        assert source not in found
        assert source.startswith(f"{path}:")
        found[source] = row
        if isinstance(row, UserError):
            check_named(row, source)
    return found


def as_bytes(record: Any) -> bytes:
    return json.dumps(record).encode()


LINES = st.one_of(
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b" ")),
    RECORDS.map(as_bytes),
    st.tuples(RECORDS.map(as_bytes), st.integers(0, 60)).map(lambda each: each[0][: each[1]]),
    st.integers(1, 200_000).map(lambda depth: b"[" * depth),
    st.integers(1, 20_000).map(lambda digits: b'{"id": ' + b"1" * digits + b"}"),
)


@many(120)
@given(lines=st.lists(LINES, min_size=1, max_size=5), pairs=st.booleans(), name=st.sampled_from(["a.jsonl", "a.json"]))
def test_any_bytes_in_a_line(tmp_path: Path, lines: list[bytes], pairs: bool, name: str) -> None:
    good = VALID[0] if pairs else VALID[7]
    path = tmp_path / name
    path.write_bytes(b"\n".join([as_bytes(good), *lines, as_bytes(good)]))
    found = read_all(path, pairs)
    assert isinstance(found[f"{path}:1"], Row)
    assert isinstance(found[f"{path}:{len(lines) + 2}"], Row)


def invalid_text(rows: int) -> pa.Array:
    """Text that is no UTF-8 in every other row."""
    texts = [b"\xff\xfe" if number % 2 else b"fine" for number in range(rows)]
    return pa.StringArray.from_buffers(rows, *pa.array(texts, pa.binary()).buffers()[1:])


MESSAGES = [None, [ASK, RIGHT], [], [ASK, None], [{"role": None, "content": "x"}]]
MESSAGE_LISTS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ODD: dict[str, Any] = {
    "text": lambda n: pa.array([f"text {i}" for i in range(n)]),
    "large text": lambda n: pa.array([f"text {i}" for i in range(n)], pa.large_string()),
    "categories": lambda n: pa.array([f"text {i % 2}" for i in range(n)]).dictionary_encode(),
    "no UTF-8": invalid_text,
    "bytes": lambda n: pa.array([b"\xff"] * n),
    "nothing": pa.nulls,
    "times": lambda n: pa.array([2**60 - i for i in range(n)], pa.timestamp("s")),
    "nanoseconds": lambda n: pa.array([2**60 + 1 + i for i in range(n)], pa.timestamp("ns")),
    "days": lambda n: pa.array([2**31 - 1] * n, pa.date32()),
    "durations": lambda n: pa.array([2**62] * n, pa.duration("s")),
    "decimals": lambda n: pa.array([Decimal("1.5")] * n),
    "halves": lambda n: pa.array([float(i) for i in range(n)], pa.float32()).cast(pa.float16()),
    "unsigned": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    "map": lambda n: pa.array([[("role", "user")]] * n, pa.map_(pa.string(), pa.string())),
    "messages": lambda n: pa.array([MESSAGES[i % len(MESSAGES)] for i in range(n)], MESSAGE_LISTS),
    "message": lambda n: pa.array([RIGHT if i % 3 else None for i in range(n)]),
    "object of lists": lambda n: pa.array([{"role": ["user", "assistant"], "content": ["x", "y"]}] * n),
    "lists of lists": lambda n: pa.array([[["x"], []]] * n),
}
COLUMN_TYPES = st.dictionaries(
    st.sampled_from(sorted({*COLUMNS, "helpfulness", "info", "summaries", "choice"})),
    st.sampled_from(sorted(ODD)),
    min_size=1,
    max_size=6,
)


@many(120)
@given(columns=COLUMN_TYPES, rows=st.integers(1, 6), pairs=st.booleans())
def test_any_type_in_a_table(tmp_path: Path, columns: dict[str, str], rows: int, pairs: bool) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: ODD[kind](rows) for name, kind in columns.items()}), path)
    found = read_all(path, pairs)
    assert 0 < len(found) <= rows or set(columns) >= {"prompt", "response", "helpfulness"}


def test_a_table_s_bad_text_is_one_row_s(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {"prompt": ODD["text"](3), "chosen": invalid_text(3), "rejected": pa.array(["b"] * 3)}
    pq.write_table(pa.table(table), path)
    found = read_all(path, True)
    assert [isinstance(row, Row) for row in found.values()] == [True, False, True]
    assert str(found[f"{path}:2"]).startswith(f"{path}:2: unreadable row: 'utf-8' codec can't decode byte 0xff")
