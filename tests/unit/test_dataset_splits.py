"""Which split of a dataset is read, and how one is named; its configurations.

The splits are those of the public sets on the hub's pages.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_files import read_rows
from pair_records import write

from nemo_tvkd.errors import UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


SPLITS = [
    # splits; what is read of them for (data.train, data.validation) as pairs, and as examples
    (("train", "test"), ("train", "test"), ("train", "test")),  # dpo-mix-7k, HelpSteer2_DPO, hh-rlhf
    (("train", "validation"), ("train", "validation"), ("train", "validation")),  # HelpSteer2, tldr-preference
    (("train", "validation", "test"), ("train", "validation"), ("train", "validation")),  # tldr
    (("train", "test", "valid1", "valid2"), ("train", "test"), ("train", "test")),  # openai_summarize_comparisons
    (
        ("train_sft", "test_sft", "train_gen", "test_gen", "train_prefs", "test_prefs"),  # ultrafeedback_binarized
        ("train_prefs", "test_prefs"),
        ("train_sft", "test_sft"),
    ),
    (("train_sft", "test_sft", "train_gen", "test_gen"), None, ("train_sft", "test_sft")),  # deita-10k-v0-sft
]


@pytest.mark.parametrize(("splits", "pairs", "examples"), SPLITS, ids=["/".join(each[0]) for each in SPLITS])
def test_default_splits(splits: tuple[str, ...], pairs: Any, examples: Any, hub: Path) -> None:
    """Of a copy of the hub's folder, of a saved dataset, and of a folder of files named for their splits."""
    made = {
        split: datasets.Dataset.from_list([{"prompt": "Q", "chosen": split, "rejected": "b", "id": split}])
        for split in splits
    }
    datasets.DatasetDict(made).save_to_disk(str(hub / "saved"))
    places = [hub / "saved", hub / "copy"]
    (hub / "copy" / "data").mkdir(parents=True)
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    (hub / "copy" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    for split, rows in made.items():
        rows.to_parquet(hub / "copy" / "data" / f"{split}-00000-of-00001.parquet")
    if all(split in ("train", "validation", "test") for split in splits):
        places.append(hub / "files")
        places[-1].mkdir()
        for split, rows in made.items():
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (places[-1] / f"{split}.jsonl.gz").write_bytes(gzip.compress(data))
    for place in places:
        for need, expected in ((True, pairs), (False, examples)):
            for number, key in enumerate(("data.train", "data.validation")):
                if expected is None:
                    with pytest.raises(
                        UserError, match=f"^{key}: .* its splits are .*: name one, for example .*:train_sft$"
                    ):
                        read_rows([str(place)], key=key, need_rejected=need)
                    continue
                (row,), _ = read_rows([str(place)], key=key, need_rejected=need)
                assert row.id == expected[number]
        (row,), _ = read_rows([f"{place}:{splits[-1]}"])
        assert row.id == splits[-1]


def test_configurations(hub: Path) -> None:
    """ORG/NAME@CONFIG:SPLIT; the same for a copy of its folder."""
    configs = ""
    for name in ("comparisons", "axis"):
        (hub / "copy" / name).mkdir(parents=True)
        configs += f"- config_name: {name}\n  data_files:\n"
        for split in ("train", "validation"):
            configs += f"  - split: {split}\n    path: {name}/{split}.jsonl\n"
            record = {"prompt": "Q", "chosen": "a", "rejected": "b", "id": f"{name} {split}"}
            write(hub / "copy" / name / f"{split}.jsonl", [record])
    (hub / "copy" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    copy = hub / "copy"

    def read(path: str, key: str = "data.train") -> tuple[str | None, str]:
        (row,), _ = read_rows([path], key=key)
        return row.id, row.source.removeprefix(str(hub))

    assert read(f"{copy}@comparisons") == ("comparisons train", "/copy@comparisons:train:1")
    assert read(f"{copy}@axis", "data.validation") == ("axis validation", "/copy@axis:validation:1")
    assert read(f"{copy}@axis:train", "data.validation") == ("axis train", "/copy@axis:train:1")
    with pytest.raises(UserError) as caught:
        read(str(copy))
    assert str(caught.value) == (
        f"data.train: {copy} has the configurations comparisons, axis: name one, as in {copy}@comparisons"
    )
    with pytest.raises(UserError) as caught:
        read(f"{copy}@nope:train")
    assert str(caught.value).startswith(
        f"data.train: {copy} cannot be read as {copy}@nope: BuilderConfig 'nope' not found."
    )


def test_files_of_a_split_and_others(tmp_path: Path) -> None:
    record = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    for name in ("train-1.jsonl", "train-2.jsonl", "dev.jsonl"):
        write(tmp_path / name, [{**record, "id": name}])
    assert [row.id for row in read_rows([str(tmp_path)])[0]] == ["train-1.jsonl", "train-2.jsonl"]
    assert [row.id for row in read_rows([str(tmp_path)], key="data.validation")[0]] == ["dev.jsonl"]
    with pytest.raises(UserError) as caught:
        read_rows([f"{tmp_path}:test"])
    assert str(caught.value).endswith(f"cannot be read as {tmp_path}:test: its splits are validation, train")
    write(tmp_path / "more.jsonl", [record])
    with pytest.raises(UserError) as caught:
        read_rows([str(tmp_path)])
    assert str(caught.value) == (
        f"data.train: {tmp_path} holds files of the split validation and others (more.jsonl): "
        "name the files that are meant"
    )
    with pytest.raises(UserError, match=r"more\.jsonl is a file, which has no splits$"):
        read_rows([f"{tmp_path}/more.jsonl:train"])
