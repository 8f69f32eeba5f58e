"""What `nemo-tvkd benchmark` refuses, in one line each, before it loads a model."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails
from benchmark_cases import PROMPTS, QUESTIONS, Cases, one_catalogue, write_rows

pytestmark = pytest.mark.usefixtures("no_model")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with one_catalogue():
        yield Cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*args: Any) -> None:
        raise AssertionError("the mistake was not noticed before a model is loaded")

    monkeypatch.setattr("nemo_tvkd.commands.benchmark.job.load_model", loaded)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in ("RANK", "SLURM_STEP_NUM_TASKS", "NEMO_TVKD_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def variant(cases: Cases, name: str, target: Path, without: str = "", **entries: Any) -> Path:
    """A copy of a checkpoint without a file, or with other entries in its config.json."""
    shutil.copytree(cases.folder / name, target)
    if without:
        (target / without).unlink()
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | entries))
    return target


def test_the_checkpoint(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    def said(path: Any) -> str:
        return fails(*cases.options(tmp_path / "out", tasks="[]"), f"checkpoint={path}")

    assert "checkpoint is not set" in said("")
    assert f"checkpoint: {tmp_path}/nowhere does not exist" in said(tmp_path / "nowhere")
    assert "is a reward model without an output layer" in said(cases.judge)
    nemo = tmp_path / "nemo"
    (nemo / "weights").mkdir(parents=True)
    shutil.copytree(cases.model, nemo / "context" / "hf")
    assert f"{nemo} is a NeMo checkpoint: run nemo-tvkd export-hf checkpoint={nemo} output=DIR first" in said(nemo)
    silent = variant(cases, "model", tmp_path / "silent", without="chat_template.jinja")
    assert "silent has no chat template, which benchmark.prompts and benchmark.questions need" in said(silent)
    untouched = fails(*cases.options(tmp_path / "out", tasks="colours", prompts="", questions="", reward_model=""),
                      f"checkpoint={silent}", "benchmark.apply_chat_template=true")  # fmt: skip
    assert "silent has no chat template, which benchmark.apply_chat_template needs" in untouched


def test_the_output(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"output: {file} is a file" in fails(*cases.options(file, tasks="[]"))
    assert "output is not set" in fails(*cases.options(tmp_path / "out", tasks="[]"), "output=")


def test_results_of_another_benchmark(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    from nemo_tvkd.commands.benchmark.job import claim

    claim(tmp_path, "alpaca_eval", {"weights": "other"})
    line = fails(*cases.options(tmp_path, tasks="[]"))
    assert f"output: {tmp_path} has alpaca_eval with weights other, and this is" in line
    assert line.endswith("give another folder")


def test_nothing_to_do(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    nothing = cases.options(tmp_path / "out", tasks="[]", prompts="", questions="")
    assert "benchmark.reward_model is set without" not in fails(*nothing, "benchmark.reward_model=")
    assert "nothing to do: set benchmark.tasks, benchmark.prompts or benchmark.questions" in fails(*nothing)
    line = fails(*cases.options(tmp_path / "out", prompts="", questions=""))
    assert "benchmark.reward_model is set without benchmark.prompts or benchmark.questions" in line


def test_names_of_tasks(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    def said(tasks: str, **more: Any) -> str:
        return fails(*cases.options(tmp_path / "out", tasks=tasks, **more))

    assert "benchmark.tasks: arc_chalenge is not a task of lm-evaluation-harness; did you mean arc_challenge?" in said(
        "[colours,arc_chalenge]"
    )
    assert "benchmark.tasks: gsm8k:many is not a task: write NAME, or NAME:SHOTS" in said('["gsm8k:many"]')
    assert "benchmark.tasks has gsm8k twice" in said('["gsm8k:5",gsm8k]')
    assert "benchmark.task_folder: nowhere is not a folder" in said("colours", task_folder="nowhere")


def test_data_that_are_not_here(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    line = fails(*cases.options(tmp_path / "out", tasks="[arc_challenge]", prompts="", questions="", reward_model=""))
    assert "benchmark.tasks: the data of arc_challenge cannot be loaded" in line
    assert "HF_DATASETS_CACHE (" in line


@pytest.mark.parametrize(("missing", "backend"), [("lm_eval", "hf"), ("vllm", "vllm")])
def test_missing_packages(
    cases: Cases, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, missing: str, backend: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    line = fails(*cases.options(tmp_path / "out", backend=backend))
    assert f"benchmark.tasks: {missing} is not installed here" in line
    assert {"lm_eval": "pip install 'nemo_tvkd[eval]'", "vllm": "environment or container of its own"}[missing] in line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*PROMPTS[:2], {"prompt": "x"}], 'row 3: "instruction" must be a text that is not empty'),
        ([PROMPTS[0], {"instruction": " "}], 'row 2: "instruction" must be a text'),
        ([PROMPTS[0], "text"], "row 2 is not a JSON object"),
        ([], "is empty"),
        ([{"instruction": "word " * 600}], "tokens fill the model's 512 positions"),
    ],
)
def test_prompts(
    cases: Cases, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, rows: list, said: str
) -> None:
    if "positions" in said:  # the model's own number: it must be there
        monkeypatch.undo()
    file = write_rows(tmp_path / "prompts.json", rows, as_list=True)
    line = fails(*cases.options(tmp_path / "out", tasks="[]", prompts=file, questions=""))
    assert f"benchmark.prompts: {file}" in line
    assert said in line


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": "x1", "turns": ["a"]}, '"question_id" must be a whole number'),
        ({"question_id": 84, "turns": ["a"]}, "question_id 84 is there already"),
        ({"question_id": 5, "turns": []}, '"turns" must be a list of texts'),
        ({"question_id": 5, "turns": "a"}, '"turns" must be a list of texts'),
    ],
)
def test_questions(cases: Cases, tmp_path: Path, fails: Fails, row: dict, said: str) -> None:
    file = write_rows(tmp_path / "question.jsonl", [*QUESTIONS, row])
    line = fails(*cases.options(tmp_path / "out", tasks="[]", questions=file))
    assert f"benchmark.questions: {file}:4: {said}" in line


def test_files_of_questions(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    broken = tmp_path / "question.jsonl"
    broken.write_text(json.dumps(QUESTIONS[0]) + '\n{"question_id": 3,\n')
    assert f"{broken}:2: not JSON" in fails(*cases.options(tmp_path / "out", tasks="[]", questions=broken))
    line = fails(*cases.options(tmp_path / "out", tasks="[]", prompts=tmp_path / "none.json"))
    assert f"benchmark.prompts: {tmp_path}/none.json cannot be read: No such file" in line


def test_the_reward_model(cases: Cases, tmp_path: Path, fails: Fails) -> None:
    def said(path: Path) -> str:
        return fails(*cases.options(tmp_path / "out", tasks="[]", reward_model=path))

    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    two = variant(cases, "judge", tmp_path / "two", **labels)
    assert "benchmark.reward_model: " in said(two)
    assert "two has 2 labels: a reward model has one" in said(two)
    assert "model is not a sequence-classification model" in said(cases.model)
    silent = variant(cases, "judge", tmp_path / "silent", without="chat_template.jinja")
    assert "silent has no chat template" in said(silent)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("benchmark.backend=sglang", "benchmark.backend=sglang is none of hf, vllm"),
        ("benchmark.precision=fp8", "benchmark.precision=fp8 is none of bf16, fp32"),
        ("benchmark.batch_size=0", "benchmark.batch_size=0 must be positive"),
        ("benchmark.limit=0", "benchmark.limit=0 must be positive"),
        ("benchmark.promts=x", "did you mean benchmark.prompts?"),
    ],
)
def test_keys(cases: Cases, tmp_path: Path, fails: Fails, key: str, said: str) -> None:
    assert said in fails(*cases.options(tmp_path / "out", tasks="[]"), key)


def test_several_processes(cases: Cases, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "benchmark is one process, and 2 were started" in fails(*cases.options(tmp_path / "out"))
