"""Which stages run, in which order, with which settings: done, replaced, unneeded, overridden and swept ones."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from recipe_folder import Folder

from nemo_tvkd.cluster.recipe import Submission, load_recipe

pytestmark = pytest.mark.usefixtures("without_nemo")


@pytest.fixture
def mine(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def states(submission: Submission) -> dict[str, str]:
    return {stage.name: stage.state for stage in submission.stages}


def running(submission: Submission) -> set[str]:
    return {name for name, state in states(submission).items() if state == "submitted"}


def of(submission: Submission, stage: str, key: str, task: int = 0) -> Any:
    return OmegaConf.select(submission.stage(stage, "").config(task), key, throw_on_missing=True)


ALL = {"first", "judge", "second", "third", "export", "verdict"}


def test_stages_are_in_the_order_of_what_they_read_not_of_the_file(mine: Folder) -> None:
    submission = mine.load()
    names = [stage.name for stage in submission.stages]
    assert set(names) == ALL == running(submission)
    for stage in submission.stages:
        assert all(names.index(other) < names.index(stage.name) for other in stage.after), stage.name


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (["first"], ALL - {"first"}),
        (["judge"], ALL - {"judge"}),  # the teacher's path is read by the training, too
        (["first", "judge", "second"], {"third", "export", "verdict"}),
        (["third"], {"export", "verdict"}),  # nobody reads what led there
        (["export"], {"verdict"}),
        (["verdict"], set()),
        (["third", "verdict"], set()),
    ],
)
def test_what_is_done_is_not_run_nor_what_led_to_it_alone(mine: Folder, done: list[str], expected: set[str]) -> None:
    mine.finish(*done)
    submission = mine.load()
    assert running(submission) == expected
    for name in done:
        assert states(submission)[name] == "done"
    assert {state for name, state in states(submission).items() if name not in {*done, *expected}} <= {"unneeded"}


def test_an_output_without_its_mark_is_not_done(mine: Folder) -> None:
    for stage in ALL:
        (mine.run_dir / stage / "checkpoints").mkdir(parents=True)
    assert running(mine.load()) == ALL


def test_a_path_takes_the_place_of_a_stage_and_of_what_only_it_reads(mine: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a teacher's, really"
    elsewhere.mkdir()
    submission = mine.load(f"third={elsewhere}")
    assert states(submission) == dict.fromkeys(("first", "judge", "second"), "unneeded") | {
        "third": "replaced",
        "export": "submitted",
        "verdict": "submitted",
    }
    assert submission.stage("third", "").output == elsewhere
    assert of(submission, "export", "checkpoint") == str(elsewhere)


def test_a_replaced_path_is_absolute_also_from_home(mine: Folder, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("teacher", "~/teacher", "./teacher"):
        submission = mine.load(f"first={typed}")
        assert of(submission, "judge", "score.model") == str(tmp_path / "teacher")
        assert of(submission, "third", "teacher.path") == str(tmp_path / "teacher")


def test_a_stage_can_be_set_and_the_others_stay(mine: Folder) -> None:
    submission = mine.load("second.optim.lr=3e-6", "second.data.max_length=99", "third.algorithm.beta=0.5")
    assert of(submission, "second", "optim.lr") == 3e-6
    assert of(submission, "second", "data.max_length") == 99
    assert of(submission, "first", "optim.lr") != 3e-6
    assert of(submission, "third", "algorithm.beta") == 0.5
    assert of(submission, "third", "data.max_length") == of(submission, "first", "data.max_length")


def test_a_typed_layout_wins_over_the_recipes(mine: Folder) -> None:
    submission = mine.load("first.parallel.tensor_model_parallel_size=2", "first.trainer.micro_batch_size=3")
    assert of(submission, "first", "parallel.tensor_model_parallel_size") == 2
    assert of(submission, "first", "parallel.sequence_parallel") is True
    assert of(submission, "first", "trainer.micro_batch_size") == 3


def test_a_stage_can_have_a_cluster_of_its_own(mine: Folder) -> None:
    submission = mine.load("third.cluster.partition=long", "third.cluster.nodes=5", "third.cluster.gpus_per_node=8")
    third, first = submission.stage("third", ""), submission.stage("first", "")
    assert (third.cluster.partition, third.nodes, third.ranks_per_node) == ("long", 5, 8)
    assert (first.cluster.partition, first.nodes, first.ranks_per_node) == ("short", 1, 4)
    assert not any(word.startswith("cluster") for word in third.overrides)


def test_a_stage_on_other_nodes_has_their_layout(mine: Folder) -> None:
    submission = mine.load("third.cluster.node_type=8gpus", "third.cluster.gpus_per_node=8")
    assert submission.stage("third", "").nodes == 3
    assert of(submission, "third", "trainer.micro_batch_size") == 2
    assert mine.load().stage("third", "").nodes == 2


def test_time_limits(mine: Folder) -> None:
    limit = lambda *words: {s.name: s.cluster.time for s in mine.load(*words).stages}  # noqa: E731
    assert limit() == dict.fromkeys(ALL, "10:00:00") | {"export": "01:00:00"}
    assert limit("cluster.time=0:30:00")["export"] == "0:30:00"
    assert limit("export.cluster.time=5:00:00")["export"] == "5:00:00"
    assert limit("export.cluster.partition=long")["export"] == "01:00:00"


def test_a_recipes_list_of_paths_arrives_with_its_quotes_and_spaces(mine: Folder) -> None:
    submission = mine.load("recipe.dataset=large")
    assert of(submission, "first", "data.train") == ["/data/a b.jsonl", "/data/it's.jsonl"]
    assert of(submission, "verdict", "data.validation") == ["/data/a b.jsonl", "/data/it's.jsonl"]


@pytest.mark.parametrize("name", ["a b", "it's", 'say "no"', "back\\slash", "a,b", "[x]", "a=b", "ünï", "a:b", "end\\"])
def test_a_run_folder_of_any_name(mine: Folder, name: str) -> None:
    mine.recipe["models"]["big"]["path"] = f"/models/{name}"
    mine.write()
    quoted = name.replace("\\", "\\\\") if name.endswith("\\") else name
    quoted = "'" + quoted.replace("'", "\\'") + "'"
    submission = load_recipe(["recipe=mine", "cluster=home", f"run_dir={quoted}"], str(mine.place))
    folder = Path.cwd() / name
    assert submission.run_dir == folder
    assert of(submission, "first", "student.path") == f"/models/{name}"
    assert of(submission, "third", "student.path") == str(folder / "second")
    assert of(submission, "verdict", "output") == str(folder / "verdict" / "preferences.json")


def test_a_folder_of_the_users_own_of_any_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "it's, mine [here]")
    assert folder.load().config.cluster.name == "home"


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_seeds_and_what_follows_them(mine: Folder) -> None:
    submission = mine.load("third.trainer.seed=range(1,4)")
    for name in ("third", "export", "verdict"):
        stage = submission.stage(name, "")
        assert len(stage.sweep) == 3
        assert stage.outputs == [mine.run_dir / name / str(task) for task in range(3)]
    for task in range(3):
        assert of(submission, "third", "trainer.seed", task) == task + 1
        assert of(submission, "third", "trainer.output_dir", task) == f"{mine.run_dir}/third/{task}"
        assert of(submission, "third", "student.path", task) == f"{mine.run_dir}/second"
        assert of(submission, "export", "checkpoint", task) == f"{mine.run_dir}/third/{task}"
        assert of(submission, "export", "output", task) == f"{mine.run_dir}/export/{task}"
        assert of(submission, "verdict", "checkpoint", task) == f"{mine.run_dir}/export/{task}"
        assert of(submission, "verdict", "output", task) == f"{mine.run_dir}/verdict/{task}/preferences.json"
    for name in ("first", "second", "judge"):
        assert submission.stage(name, "").sweep == ()


def test_a_grid_has_every_combination_once(mine: Folder) -> None:
    submission = mine.load("third.optim.lr=1e-6,2e-6,4e-6", "third.algorithm.alpha=0.1,0.9")
    tasks = range(len(submission.stage("third", "").sweep))
    found = {tuple(of(submission, "third", key, n) for key in ("optim.lr", "algorithm.alpha")) for n in tasks}
    assert len(tasks) == 6
    assert found == {(rate, alpha) for rate in (1e-6, 2e-6, 4e-6) for alpha in (0.1, 0.9)}


def test_a_sweep_of_an_early_stage_runs_through_the_chain(mine: Folder) -> None:
    submission = mine.load("first.optim.lr=1e-5,2e-5")
    for name in ("first", "judge", "third", "export", "verdict"):
        assert len(submission.stage(name, "").sweep) == 2, name
    assert submission.stage("second", "").sweep == ()
    for task in range(2):
        assert of(submission, "judge", "score.model", task) == f"{mine.run_dir}/first/{task}"
        assert of(submission, "third", "teacher.path", task) == f"{mine.run_dir}/first/{task}"
        assert of(submission, "third", "teacher.scores", task) == f"{mine.run_dir}/judge/{task}"
        assert of(submission, "third", "student.path", task) == f"{mine.run_dir}/second"


def test_swept_texts_keep_their_quotes(mine: Folder) -> None:
    submission = mine.load("""second.data.train='/a b.jsonl','/it\\'s.jsonl',[/c.jsonl,/d.jsonl]""")
    read = [of(submission, "second", "data.train", task) for task in range(3)]
    assert read == ["/a b.jsonl", "/it's.jsonl", ["/c.jsonl", "/d.jsonl"]]


def test_a_list_is_no_sweep(mine: Folder) -> None:
    submission = mine.load("second.data.train=[/a.jsonl,/b.jsonl]")
    assert submission.stage("second", "").sweep == ()
    assert of(submission, "second", "data.train") == ["/a.jsonl", "/b.jsonl"]


def test_a_sweep_is_done_when_all_its_tasks_are(mine: Folder) -> None:
    words = ("third.trainer.seed=1,2",)
    mine.finish("third/0")
    assert states(mine.load(*words))["third"] == "submitted"
    mine.finish("third/1")
    submission = mine.load(*words)
    assert states(submission)["third"] == "done"
    assert of(submission, "export", "checkpoint", 1) == f"{mine.run_dir}/third/1"
    assert states(mine.load())["third"] == "submitted", "one run is not two"


def test_a_path_in_the_place_of_a_swept_stage_ends_the_sweep(mine: Folder, tmp_path: Path) -> None:
    submission = mine.load("first.optim.lr=1e-5,2e-5", f"third={tmp_path}")
    assert submission.stage("third", "").sweep == submission.stage("export", "").sweep == ()
    assert running(submission) == {"export", "verdict"}


def test_a_variable_of_the_jobs_can_be_added() -> None:
    submission = load_recipe(["recipe=train", "cluster=example_bare", "cluster.environment.NCCL_DEBUG=INFO"])
    assert dict(submission.stages[0].cluster.environment) == {"NCCL_DEBUG": "INFO"}
