"""What `doctor` says of a benchmark, the last stage: its tasks, their data, prompts, questions and reward model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import World, write_rows
from benchmark_cases import Cases, one_catalogue
from doctor_cases import Chain

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with one_catalogue():
        yield Cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture
def chain(tmp_path: Path, world: World, cases: Cases) -> Chain:
    """A benchmark of an export that is there."""
    made = Chain(tmp_path, world)
    settings = {"checkpoint": "@export", "benchmark.tasks": ["colours"], "benchmark.task_folder": str(cases.tasks)}
    export = made.recipe["stages"]["export"]
    made.recipe["stages"] = {"export": export | {"after": [], "settings": {"checkpoint": str(world.student)}}}
    exam = {"command": "benchmark", "after": ["export"], "models": {"checkpoint": "little"}, "settings": settings}
    made.recipe["stages"]["exam"] = exam
    return made


def test_a_benchmark_without_mistakes(chain: Chain, cases: Cases) -> None:
    files = {"prompts": cases.prompts, "questions": cases.questions, "reward_model": cases.judge}
    found = {check.name: check for check in chain.examine(*(f"exam.benchmark.{k}={v}" for k, v in files.items()))}
    assert {check.level for check in found.values()} == {"OK"}
    assert "colours" in found["exam: tasks"].detail
    assert "12 conversations" in found["exam: benchmark.prompts"].detail
    assert "3 conversations" in found["exam: benchmark.questions"].detail
    assert str(cases.judge) in found["exam: benchmark.reward_model"].detail


def test_an_unknown_task(chain: Chain) -> None:
    line = chain.only("exam: tasks", "exam.benchmark.tasks=[colors]")
    assert line.startswith("FAIL")
    assert "did you mean colours?" in line


def test_nothing_to_do(chain: Chain, cases: Cases) -> None:
    assert "nothing to do" in chain.only("exam: tasks", "exam.benchmark.tasks=[]")
    assert chain.failing("exam.benchmark.tasks=[]", f"exam.benchmark.prompts={cases.prompts}") == {}


def test_data_that_are_not_there(chain: Chain, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = cases.tasks / "things-test.jsonl"
    hidden.rename(hidden.with_suffix(".away"))
    try:
        line = chain.only("exam: tasks", "exam.benchmark.tasks=[things]")
    finally:
        hidden.with_suffix(".away").rename(hidden)
    assert line.startswith("FAIL")
    assert "the data of things cannot be loaded" in line
    assert "HF_DATASETS_CACHE" in line


def test_a_container_may_lack_the_harness(chain: Chain, tmp_path: Path, world: World) -> None:
    (tmp_path / "nemo.sqsh").touch()
    mounts = [f"{place}:{place}" for place in (tmp_path, world.folder, tmp_path.parent)]
    chain.cluster["container"] = {"runtime": "pyxis", "image": str(tmp_path / "nemo.sqsh"), "mounts": mounts}
    found = chain.failing()
    assert found["exam: tasks"].startswith("WARN")
    assert "benchmark.cluster.container.runtime=none" in found["exam: tasks"]
    assert "exam: tasks" not in chain.failing("exam.cluster.container.runtime=none")


def test_vllm_is_somewhere_else(chain: Chain) -> None:
    line = chain.only("exam: tasks", "exam.benchmark.backend=vllm")
    assert line.startswith("WARN")
    assert "not checked here" in line


FILES = {
    "no prompts": ("prompts", None, "cannot be read"),
    "prompts without an instruction": ("prompts", [{"instruction": " "}], '"instruction"'),
    "no JSON": ("prompts", ["{"], "not JSON"),
    "questions without turns": ("questions", [{"question_id": 1, "turns": []}], '"turns"'),
    "a question twice": ("questions", [{"question_id": 1, "turns": ["a"]}] * 2, "question_id 1 is there already"),
}


@pytest.mark.parametrize(("key", "rows", "said"), FILES.values(), ids=FILES.keys())
def test_malformed_files(chain: Chain, tmp_path: Path, key: str, rows: list | None, said: str) -> None:
    file = write_rows(tmp_path / "asked.jsonl", rows) if rows else tmp_path / "none.jsonl"
    line = chain.only(f"exam: benchmark.{key}", f"exam.benchmark.{key}={file}")
    assert line.startswith("FAIL")
    assert str(file) in line
    assert said in line


def test_no_reward_model(chain: Chain, cases: Cases, world: World) -> None:
    name, asked = "exam: benchmark.reward_model", f"exam.benchmark.prompts={cases.prompts}"
    two = chain.config_of("oracle", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    for place, said in ((two, "2 labels"), (world.student, "not a sequence-classification model"), ("/no/m", "/no/m")):
        line = chain.only(name, asked, f"exam.benchmark.reward_model='{place}'")
        assert line.startswith("FAIL")
        assert said in line


def test_a_reward_model_without_a_template(chain: Chain, cases: Cases) -> None:
    judge = chain.config_of("oracle")
    (judge / "chat_template.jinja").unlink()
    typed = f"exam.benchmark.reward_model='{judge}'"
    assert "no chat template" in chain.only(
        "exam: benchmark.reward_model", f"exam.benchmark.prompts={cases.prompts}", typed
    )
    assert "without benchmark.prompts" in chain.only("exam: benchmark.reward_model", typed)
