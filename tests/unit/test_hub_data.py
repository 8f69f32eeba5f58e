"""Datasets of the hub as data: from the cache of `datasets`, from a copy of their folder; and where neither is."""

import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import read_rows

from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.paths import path_list
from nemo_tvkd.data.pairs import Row
from nemo_tvkd.errors import UserError

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# pairs
"""
SPLITS = {"train": 3, "test": 2}


def pair(split: str, number: int) -> dict[str, Any]:
    ask = f"{split} {number}?"
    return {"prompt": ask, "chosen": f"{ask} yes", "rejected": f"{ask} no", "category": number}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset's folder as `hf download --repo-type dataset` leaves it; the hub is out of reach, HF_HOME new."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf/datasets")
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split, count in SPLITS.items():
        table = pa.Table.from_pylist([pair(split, number) for number in range(count)])
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def check(rows: list[Row], split: str) -> None:
    expected = [pair(split, number) for number in range(SPLITS[split])]
    assert [row.plain_prompt for row in rows] == [row["prompt"] for row in expected]
    assert [(row.chosen, row.rejected) for row in rows] == [(row["chosen"], row["rejected"]) for row in expected]


def read(path: object, key: str = "data.train") -> list[Row]:
    return read_rows([str(path)], key=key)[0]


def refused(path: object, key: str = "data.train") -> str:
    with pytest.raises(UserError) as caught:
        read(path, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_copy_of_a_datasets_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(read(copy), "train")
    check(read(copy, "data.validation"), "test")
    check(read(f"{copy}:test"), "test")
    check(read(f"{copy}:train", "data.validation"), "train")
    assert [row.source for row in read(f"{copy}:test")] == [f"{copy}:test:1", f"{copy}:test:2"]
    monkeypatch.chdir(copy.parent)
    check(read("copy:test"), "test")
    rows, _ = read_rows(["copy", str(copy / "data/test-00000-of-00001.parquet")])
    check(rows[:3], "train")
    check(rows[3:], "test")  # a file in it is a file


def test_a_split_that_it_has_not(copy: Path) -> None:
    message = refused(f"{copy}:test_prefs")
    assert message == f"data.train: {copy} cannot be read as {copy}:test_prefs: its splits are train, test"


def test_a_bad_row_of_a_copy(copy: Path) -> None:
    table = pa.Table.from_pylist([pair("train", 0), pair("train", 1) | {"rejected": ""}])
    pq.write_table(table, copy / "data/train-00000-of-00001.parquet")
    assert refused(copy).startswith(f"{copy}:train:2: ")


def test_a_saved_dataset_with_its_split(copy: Path, tmp_path: Path) -> None:
    made = datasets.DatasetDict(
        {split: datasets.Dataset.from_list([pair(split, n) for n in range(count)]) for split, count in SPLITS.items()}
    )
    made.save_to_disk(str(tmp_path / "saved"))
    check(read(tmp_path / "saved:test"), "test")
    assert refused(tmp_path / "saved:valid").endswith(
        f"cannot be read as {tmp_path}/saved:valid: its splits are train, test"
    )


def test_a_hub_id_from_the_cache(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as `datasets` lays it out: org___name, a file and its facts for each split."""
    datasets.load_dataset(str(copy))
    cached = tmp_path / "hf/datasets"
    shutil.move(cached / "copy", cached / "some-org___some_pairs")
    for file in (cached / "some-org___some_pairs").rglob("copy-*.arrow"):
        file.rename(file.with_name(file.name.replace("copy-", "some_pairs-")))
    info = next((cached / "some-org___some_pairs").rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"dataset_name": "copy"', '"dataset_name": "some_pairs"'))
    monkeypatch.chdir(tmp_path)
    check(read("some-org/some_pairs"), "train")
    check(read("some-org/some_pairs", "data.validation"), "test")
    rows = read("some-org/some_pairs:test")
    check(rows, "test")
    assert [row.source for row in rows] == ["some-org/some_pairs:test:1", "some-org/some_pairs:test:2"]
    message = refused("some-org/some_pairs:nope")
    assert message.startswith("data.train: some-org/some_pairs cannot be read as some-org/some_pairs:nope: ")


def test_a_hub_id_that_is_not_there(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("some-org/some.data-1", "some-org/some.data-1:train_prefs"):
        message = refused(name, "data.validation")
        assert message.startswith(
            "data.validation: some-org/some.data-1 does not exist, and as a dataset of the hub it "
        )
        assert message.endswith(
            "run this where there is a network, with the same HF_HOME: "
            "python -c \"import datasets; datasets.load_dataset('some-org/some.data-1')\""
        )


@pytest.mark.parametrize(
    "path", ["copy/nothing", "a/b/c", "some/pairs.jsonl", "nothing", "nothing:train", "/no/thing:x"]
)
def test_paths_that_are_none(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Told at once, and `datasets` is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", None)
    start = time.perf_counter()
    assert refused(path) == f"data.train: {path} does not exist"
    assert time.perf_counter() - start < 1


def test_it_can_be_written_on_the_command_line() -> None:
    config = compose("train", ["data.train=[org/name:train_prefs,a.jsonl]", "data.validation=org/name"])
    assert path_list(config.data.train, "data.train") == ["org/name:train_prefs", "a.jsonl"]
    assert path_list(config.data.validation, "data.validation") == ["org/name"]
