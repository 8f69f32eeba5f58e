"""Reward and margin columns: what a setting asks of every row, and what they are where nothing asks for them."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from data_files import read_rows
from pair_records import ASK, PAIR, RIGHT, WRONG, write

from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.records import REWARDS
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError

COLUMNS = "oracle.mode=columns"
REQUIRED = {"rewards": COLUMNS}
MARGIN = {"margin": "algorithm.use_margin=true"}
READS = f"; {COLUMNS} reads rewards from the data"
READS_MARGIN = "; algorithm.use_margin=true reads a margin from the data"
NAN = float("nan")

WRONG_VALUES: list[tuple[Any, str]] = [
    (None, "is null: it must be a number"),
    (NAN, "is nan: it must be a finite number"),
    (float("inf"), "is inf: it must be a finite number"),
    (-float("inf"), "is -inf: it must be a finite number"),
    (10**400, "is inf: it must be a finite number"),
    (-1e300, "is -1e+300: numbers of more than 3.4e+38 are infinite in float32"),
    ("8", "is text: it must be a number"),
    (True, "is true or false: it must be a number"),
    ([1.0], "is a list: it must be a number"),
    ({"value": 1.0}, "is an object: it must be a number"),
]
IDS = [message.split(":")[0] for _, message in WRONG_VALUES]


def parquet(path: Path, **columns: Any) -> str:
    """A table of as many good pairs as the columns have rows, with the columns beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(next(iter(columns.values())))
    pairs = {"prompt": ["Q"] * count, "chosen": ["a"] * count, "rejected": ["b"] * count}
    pq.write_table(pa.table(pairs | columns), path)
    return str(path)


def refuses(path: str, require: dict[str, str], message: str, good: int) -> None:
    """Row `good + 1` is the only bad one: an error that names it, or one that is counted and left out."""
    with pytest.raises(UserError) as caught:
        read_rows([path], require=require)
    assert str(caught.value) == f"{path}:{good + 1}: {message}"
    rows, report = read_rows([path], require=require, on_bad_row="skip")
    assert report.bad == [f"{path}:{good + 1}: {message}"]
    assert report.rows == len(rows) == sum(report.layouts.values())
    assert f"{path}:{good + 1}" not in [row.source for row in rows]


@pytest.mark.parametrize("names", REWARDS, ids="/".join)
@pytest.mark.parametrize("require", [{}, REQUIRED], ids=["not asked for", "required"])
def test_rewards_of_every_pair_of_names(names: tuple[str, str], require: dict[str, str], tmp_path: Path) -> None:
    chosen, rejected = names
    lines = write(tmp_path / "a.jsonl", [{**PAIR, chosen: 8, rejected: -0.5}, {**PAIR, chosen: 0, rejected: 1e-3}])
    table = parquet(tmp_path / "a.parquet", **{chosen: [8.0, 0.0], rejected: [-0.5, 1e-3]})
    for path in (lines, table):
        rows, report = read_rows([path], require=require)
        assert [(row.chosen_reward, row.rejected_reward) for row in rows] == [(8.0, -0.5), (0.0, 1e-3)]
        assert all(type(row.chosen_reward) is float for row in rows)
        assert (report.rows, report.bad) == (2, [])


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
@pytest.mark.parametrize("names", REWARDS, ids="/".join)
@pytest.mark.parametrize(("value", "message"), WRONG_VALUES, ids=IDS)
def test_a_required_reward_that_is_no_number_names_column_and_setting(
    names: tuple[str, str], side: int, value: Any, message: str, tmp_path: Path
) -> None:
    good = {**PAIR, **dict.fromkeys(names, 1.5)}
    path = write(tmp_path / "a.jsonl", [good, good, {**good, names[side]: value}, good])
    refuses(path, REQUIRED, f"{names[side]} {message}{READS}", good=2)


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
@pytest.mark.parametrize("names", REWARDS, ids="/".join)
def test_half_a_pair_of_reward_columns_is_bad_where_rewards_are_required(
    names: tuple[str, str], side: int, tmp_path: Path
) -> None:
    missing, there = names[side], names[1 - side]
    good = {**PAIR, **dict.fromkeys(names, 1.5)}
    path = write(tmp_path / "a.jsonl", [good, {**PAIR, there: 1.5}])
    found = f"found: prompt, chosen, rejected, {there}"
    refuses(path, REQUIRED, f"missing column {missing}: {COLUMNS} reads rewards from the data; {found}", good=1)
    rows, _ = read_rows([path])
    rewards = (rows[1].chosen_reward, rows[1].rejected_reward)
    assert (rewards[side], rewards[1 - side]) == (None, 1.5)


def test_a_row_without_any_reward_columns_says_which_there_could_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**PAIR, "chosen_reward": 1, "rejected_reward": 0}, {**PAIR, "reward": 2}])
    message = (
        "missing columns chosen_reward and rejected_reward (or score_chosen and score_rejected, or chosen_score and "
        "rejected_score, or chosen_rating and rejected_rating): oracle.mode=columns reads rewards from the data; "
        "found: prompt, chosen, rejected, reward"
    )
    refuses(path, REQUIRED, message, good=1)
    table = parquet(tmp_path / "a.parquet", reward=[2.0])
    with pytest.raises(UserError) as caught:
        read_rows([table], require=REQUIRED)
    assert str(caught.value) == f"{table}:1: {message}"


@pytest.mark.parametrize("names", REWARDS, ids="/".join)
@pytest.mark.parametrize(
    ("value", "message"), [(None, "is null: it must be a number"), (NAN, "is nan: it must be a finite number")]
)
def test_null_and_nan_in_a_table_are_bad_where_rewards_are_required(
    names: tuple[str, str], value: float | None, message: str, tmp_path: Path
) -> None:
    for side in (0, 1):
        columns = {names[1 - side]: [1.0, 2.0, 3.0], names[side]: [0.5, value, 0.5]}
        path = parquet(tmp_path / f"{side}.parquet", **columns)
        refuses(path, REQUIRED, f"{names[side]} {message}{READS}", good=1)


def test_texts_and_booleans_in_a_table_are_bad_where_rewards_are_required(tmp_path: Path) -> None:
    for name, values, message in (("text", ["1.5"], "text"), ("flag", [True], "true or false")):
        path = parquet(tmp_path / f"{name}.parquet", score_chosen=[1.0], score_rejected=values)
        with pytest.raises(UserError) as caught:
            read_rows([path], require=REQUIRED)
        assert str(caught.value) == f"{path}:1: score_rejected is {message}: it must be a number{READS}"


def test_narrow_and_whole_numbers_of_a_table_are_rewards(tmp_path: Path) -> None:
    import pyarrow as pa

    for kind in (pa.float32(), pa.int8(), pa.uint64(), pa.int64()):
        chosen, rejected = (pa.array([value], type=kind) for value in (8, 3))
        path = parquet(tmp_path / f"{kind}.parquet", chosen_rating=chosen, rejected_rating=rejected)
        (row,) = read_rows([path], require=REQUIRED)[0]
        assert (row.chosen_reward, row.rejected_reward) == (8.0, 3.0)


@pytest.mark.parametrize("names", REWARDS, ids="/".join)
def test_null_rewards_that_nothing_asks_for_are_absent(names: tuple[str, str], tmp_path: Path) -> None:
    chosen, rejected = names
    values: list[tuple[float | None, float | None]] = [(1.0, 2.0), (None, None), (None, 2.0), (1.0, None)]
    lines = write(tmp_path / "a.jsonl", [{**PAIR, chosen: a, rejected: b} for a, b in values])
    table = parquet(tmp_path / "a.parquet", **{chosen: [a for a, _ in values], rejected: [b for _, b in values]})
    for path in (lines, table):
        rows, report = read_rows([path])
        assert [(row.chosen_reward, row.rejected_reward) for row in rows] == values
        assert report.bad == []
        _, report = read_rows([path], require=REQUIRED, on_bad_row="skip")
        told = [(2, chosen), (3, chosen), (4, rejected)]
        assert report.bad == [f"{path}:{line}: {name} is null: it must be a number{READS}" for line, name in told]


def test_rewards_come_from_the_first_pair_of_names_alone(tmp_path: Path) -> None:
    """A null is not made good by another pair of columns, whose scale may be another."""
    both = {"chosen_reward": 1, "rejected_reward": 0, "chosen_rating": 9, "rejected_rating": 7}
    path = write(tmp_path / "a.jsonl", [{**PAIR, **both}, {**PAIR, **both, "chosen_reward": None}])
    refuses(path, REQUIRED, f"chosen_reward is null: it must be a number{READS}", good=1)
    rows, _ = read_rows([path])
    assert [(row.chosen_reward, row.rejected_reward) for row in rows] == [(1.0, 0.0), (None, 0.0)]


def test_skipped_rows_are_counted_and_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    good = {**PAIR, "chosen_reward": 1, "rejected_reward": 0}
    bad = [{**good, "rejected_reward": value} for value, _ in WRONG_VALUES]
    rows, report = read_rows(
        [write(tmp_path / "a.jsonl", [good, *bad, PAIR, good])], require=REQUIRED, on_bad_row="skip"
    )
    assert (len(rows), report.rows, len(report.bad)) == (2, 2, len(bad) + 1)
    path = write(tmp_path / "b.jsonl", [PAIR, PAIR])
    with pytest.raises(UserError) as caught:
        read_rows([path], require=REQUIRED, on_bad_row="skip", key="data.validation")
    start = f"data.validation: each of the 2 rows is bad; the first: {path}:1: missing columns chosen_reward and"
    assert str(caught.value).startswith(start)


def test_examples_need_the_chosen_reward_alone(tmp_path: Path) -> None:
    record = {"prompt": "Q", "chosen": "a", "score_chosen": 2}
    (row,) = read_rows([write(tmp_path / "a.jsonl", [record])], need_rejected=False, require=REQUIRED)[0]
    assert (row.chosen_reward, row.rejected_reward) == (2.0, None)


def test_margin_is_read_where_it_is_required(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", [{**PAIR, "margin": 2}, {**PAIR, "margin": -0.25}])
    table = parquet(tmp_path / "a.parquet", margin=[2.0, -0.25])
    for path in (lines, table):
        assert [row.margin for row in read_rows([path], require=MARGIN)[0]] == [2.0, -0.25]
        assert [row.margin for row in read_rows([path])[0]] == [None, None]


@pytest.mark.parametrize(("value", "message"), WRONG_VALUES, ids=IDS)
def test_a_required_margin_that_is_no_number_is_bad_and_another_is_ignored(
    value: Any, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{**PAIR, "margin": 1}, {**PAIR, "margin": value}, {**PAIR, "margin": 3}])
    refuses(path, MARGIN, f"margin {message}{READS_MARGIN}", good=1)
    rows, report = read_rows([path])
    assert ([row.margin for row in rows], report.bad) == ([None] * 3, [])


def test_a_missing_margin_is_bad_where_it_is_required(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**PAIR, "margin": 1}, PAIR])
    message = "missing column margin: algorithm.use_margin=true reads a margin from the data; found: "
    refuses(path, MARGIN, message + "prompt, chosen, rejected", good=1)
    table = parquet(tmp_path / "a.parquet", other=[1.0])
    with pytest.raises(UserError) as caught:
        read_rows([table], require=MARGIN)
    assert str(caught.value) == f"{table}:1: {message}prompt, chosen, rejected, other"


@pytest.mark.parametrize(("value", "shown"), [(None, "null: it must be a number"), (NAN, "nan: it must be a finite")])
def test_null_and_nan_margins_of_a_table(value: float | None, shown: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", margin=[1.0, value, 2.0])
    with pytest.raises(UserError) as caught:
        read_rows([path], require=MARGIN)
    assert str(caught.value).startswith(f"{path}:2: margin is {shown}")
    rows, report = read_rows([path], require=MARGIN, on_bad_row="skip")
    assert ([row.margin for row in rows], len(report.bad)) == ([1.0, 2.0], 1)


def test_a_margin_that_nothing_asks_for_need_not_be_readable(tmp_path: Path) -> None:
    """A date that Python has no value for stops whoever reads the column."""
    import pyarrow as pa

    path = parquet(tmp_path / "a.parquet", margin=pa.array([2**60], type=pa.timestamp("s")))
    assert [row.margin for row in read_rows([path])[0]] == [None]
    with pytest.raises(UserError, match=r"a\.parquet:1: unreadable row: "):
        read_rows([path], require=MARGIN)


def test_rewards_and_margin_together(tmp_path: Path) -> None:
    record = {**PAIR, "score_chosen": 3, "score_rejected": 1, "margin": 0.5}
    path = write(tmp_path / "a.jsonl", [record])
    (row,) = read_rows([path], require=REQUIRED | MARGIN)[0]
    assert (row.chosen_reward, row.rejected_reward, row.margin) == (3.0, 1.0, 0.5)


def test_saved_dataset_with_rewards_and_margin(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    records = [{**PAIR, "chosen_score": 2.0, "rejected_score": 1.0, "margin": value} for value in (0.5, None)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    path = str(tmp_path / "saved")
    assert [row.margin for row in read_rows([path], require=REQUIRED)[0]] == [None, None]
    refuses(path, REQUIRED | MARGIN, f"margin is null: it must be a number{READS_MARGIN}", good=1)


def test_tokenized_pairs_carry_rewards_and_margin(templates: dict[str, Template], tmp_path: Path) -> None:
    pair = {"prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG]}
    whole = {**pair, "chosen_reward": 2, "rejected_reward": -1, "margin": 0.5}
    path = write(tmp_path / "a.jsonl", [whole, {**pair, "margin": "none"}])
    rows = [*read_rows([path], require=REQUIRED | MARGIN, on_bad_row="skip")[0], *read_rows([path])[0]]
    for name in ("mistral plain", "llama"):
        made, _ = tokenize_rows(rows, templates[name], max_length=64, max_prompt_length=None)
        found = [(tokens.chosen_reward, tokens.rejected_reward, tokens.margin) for tokens in made]
        assert found == [(2.0, -1.0, 0.5), (2.0, -1.0, None), (None, None, None)]


def test_whatever_the_columns_hold_a_row_loads_finite_or_is_named(tmp_path: Path) -> None:
    values = [0, -1.5, *(value for value, _ in WRONG_VALUES)]
    records = [
        {**PAIR, "chosen_reward": a, "rejected_reward": b, "margin": c}
        for a, b, c in itertools.product(values, repeat=3)
    ]
    path = write(tmp_path / "a.jsonl", records)
    rows, report = read_rows([path], require=REQUIRED | MARGIN, on_bad_row="skip")
    assert (len(rows), len(report.bad)) == (2**3, len(values) ** 3 - 2**3)
    for row in rows:
        numbers = (row.chosen_reward, row.rejected_reward, row.margin)
        assert all(number is not None and math.isfinite(number) for number in numbers)
    assert all(len(message) < 300 and "\n" not in message for message in report.bad)
