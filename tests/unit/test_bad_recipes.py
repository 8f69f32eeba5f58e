"""Mistakes in recipes, clusters and what is typed of them: one line that names the key, stage or file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails
from recipe_folder import Folder

from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.errors import UserError

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture
def mine(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def mistake(function: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    said = str(caught.value)
    assert "\n" not in said
    return said


TYPED = {
    "no stage": (["thrid.optim.lr=1"], ["thrid.optim.lr=1", "did you mean third.optim.lr=1"]),
    "no stage for a path": (["fist=/tmp"], ["fist=/tmp", "did you mean first=/tmp"]),
    "no key of the whole": (["run_dri=/tmp"], ["run_dri", "did you mean run_dir=/tmp"]),
    "unlike anything": (["xyzzy.a=1"], ["xyzzy", "first", "third"]),
    "a missing path": (["first=/no/such"], ["first=/no/such", "does not exist", "stage first"]),
    "no path": (["first="], ["first=", "first=PATH"]),
    "a stage alone": (["first"], ["first.KEY=VALUE", "first=PATH"]),
    "a stage and a dot": (["first.=1"], ["first.KEY=VALUE"]),
    "a list not closed": (["third.optim.betas=[0.9,0.99"], ["third.optim.betas"]),
    "a quote not closed": (["third.optim.lr='1"], ["third.optim.lr", "third.optim.lr='\\'1'"]),
    "the output of a stage": (["third.trainer.output_dir=/tmp/x"], ["third.trainer.output_dir", "run_dir"]),
    "the output of a store": (["judge.score.output=/tmp/a,/tmp/b"], ["judge.score.output", "run_dir"]),
    "an empty range": (["third.trainer.seed=range(3,1)"], ["third.trainer.seed=range(3,1)", "no values"]),
    "a glob": (["third.trainer.seed=glob(*)"], ["third.trainer.seed=glob(*)", "range(1,4)"]),
    "an interval": (["third.optim.lr=interval(0,1)"], ["third.optim.lr=interval(0,1)", "a,b,c"]),
    "two sweeps in a row": (["first.optim.lr=1,2", "third.optim.lr=1,2"], ["stage third", "first", "sweep one stage"]),
    "two sweeps side by side": (["first.optim.lr=1,2", "second.optim.lr=3,4"], ["third", "first and second"]),
    "an unknown key of a cluster": (["cluster.tmie=1:00"], ["cluster.tmie", "cluster.time"]),
    "one of a stage's cluster": (["third.cluster.tmie=1:00"], ["stage third", "cluster.tmie", "cluster.time"]),
    "no time": (["cluster.time=1h"], ["cluster.time=1h", "24:00:00"]),
    "no time of a stage": (["third.cluster.time=1:2:3:4"], ["stage third", "cluster.time", "24:00:00"]),
    "times for a sweep": (["third.cluster.time=1:00:00,2:00:00"], ["stage third", "cluster.time", "several values"]),
    "negative nodes": (["cluster.nodes=-1"], ["cluster.nodes=-1", "positive"]),
    "no nodes": (["third.cluster.nodes=0"], ["stage third", "cluster.nodes=0", "positive"]),
    "negative restarts": (["cluster.max_restarts=-1"], ["cluster.max_restarts=-1", "0 or positive"]),
    "negative failures": (["third.cluster.max_failures=-2"], ["third", "cluster.max_failures=-2", "0 or positive"]),
    "a word for a number": (["cluster.gpus_per_node=four"], ["cluster.gpus_per_node", "four"]),
    "no node type": (["cluster.node_type=2x2"], ["cluster.node_type=2x2", "4gpus, 8gpus"]),
    "no node type of a stage": (["third.cluster.node_type=2x2"], ["third.cluster.node_type=2x2", "4gpus, 8gpus"]),
    "no runtime": (["cluster.container.runtime=podman"], ["cluster.container.runtime=podman", "apptainer"]),
    "no directive": (["cluster.gpu_directive=gpu"], ["cluster.gpu_directive=gpu", "gpus-per-node, gres, none"]),
    "no scale": (["recipe_scale=tinny"], ["recipe_scale=tinny", "full, tiny"]),
    "no data set": (["recipe.dataset=smal"], ["recipe.dataset=smal", "small, large"]),
    "no run folder": (["run_dir="], ["run_dir"]),
    "a plus": (["+third.x=1"], ["+third.x=1", "key=value"]),
}


@pytest.mark.parametrize(("words", "said"), TYPED.values(), ids=TYPED.keys())
def test_what_is_typed(mine: Folder, words: list[str], said: list[str]) -> None:
    line = mistake(lambda: mine.load(*words))
    for part in said:
        assert part in line, line


def change(folder: Folder, path: str, value: Any) -> None:
    """Set a key of the recipe (recipe/...) or cluster file (cluster/...)."""
    file, *names = path.split("/")
    place: Any = getattr(folder, file)
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value


FILES = {
    "a circle": ("recipe/stages/first/after", ["verdict"], ["recipe.stages", "first", "verdict", "circle"]),
    "a stage after itself": ("recipe/stages/first/after", ["first"], ["first -> first", "circle"]),
    "after nothing known": ("recipe/stages/third/after", ["fourth"], ["recipe.stages.third.after", "fourth", "first"]),
    "not after what it reads": (
        "recipe/stages/judge/after",
        ["second"],
        ["recipe.stages.judge", "score.model=@first", "comes after second"],
    ),
    "an output of none": ("recipe/stages/first/settings/student.path", "@zeroth", ["recipe.stages.first", "@zeroth"]),
    "no command": ("recipe/stages/judge/command", "scroe", ["recipe.stages.judge.command=scroe", "score"]),
    "no model": (
        "recipe/stages/first/models",
        {"student.path": "huge"},
        ["recipe.stages.first", "huge", "big, little"],
    ),
    "an unknown key of a stage": ("recipe/stages/first/setings", {"a": 1}, ["setings"]),
    "an unknown key of a layout": ("recipe/layouts/4gpus/third/node", 2, ["recipe.layouts.4gpus.third", "node"]),
    "a negative layout": ("recipe/layouts/4gpus/third/nodes", -2, ["recipe.layouts.4gpus.third.nodes=-2", "positive"]),
    "a word in a layout": ("recipe/layouts/4gpus/third/nodes", "two", ["recipe.layouts.4gpus.third", "two"]),
    "no time of a stage": ("recipe/stages/export/time", "soon", ["recipe.stages.export.time=soon", "24:00:00"]),
    "an unknown data set": ("recipe/dataset", "tiny", ["recipe.datasets.tiny"]),
    "an unknown key of the cluster": ("cluster/partitoin", "a", ["partitoin"]),
    "a text for a list": ("cluster/modules", "cuda", ["modules"]),
}


@pytest.mark.parametrize(("key", "value", "said"), FILES.values(), ids=FILES.keys())
def test_what_stands_in_a_file(mine: Folder, key: str, value: Any, said: list[str]) -> None:
    change(mine, key, value)
    line = mistake(mine.load)
    for part in said:
        assert part in line, line


def test_a_time_that_yaml_reads_as_a_number_is_not_taken_for_minutes(mine: Folder) -> None:
    """24:00:00 without quotes is 86400 in YAML 1.1: Slurm would read sixty days."""
    mine.write()
    (mine.place / "cluster" / "home.yaml").write_text("name: home\nnode_type: 4gpus\ntime: 24:00:00\n")
    line = mistake(lambda: load_recipe(mine.arguments, str(mine.place)))
    assert "cluster.time=86400" in line
    assert '"24:00:00"' in line


STAGES = {
    "an unknown key": ("third.optim.lrr=1", ["stage third", "optim.lrr", "optim.lr"]),
    "a key of another command": ("judge.optim.lr=1", ["stage judge", "optim.lr"]),
    "a word for a number": ("third.optim.lr=fast", ["stage third", "optim.lr", "fast"]),
    "no algorithm": ("third.algorithm=tvdk", ["stage third", "algorithm=tvdk", "tvkd"]),
    "a cluster of its own by name": ("third.cluster=home", ["stage third", "cluster"]),
}


@pytest.mark.parametrize(("word", "said"), STAGES.values(), ids=STAGES.keys())
def test_what_a_stages_own_command_refuses_names_the_stage(mine: Folder, word: str, said: list[str]) -> None:
    stage = mine.load(word).stage(word.split(".")[0], "")
    line = mistake(stage.config)
    for part in said:
        assert part in line, line


NAMED = {
    "no recipe": (["cluster=home"], ["recipe is not set", "mine", "tvkd-llama-8b-1b"]),
    "no cluster": (["recipe=mine"], ["cluster is not set", "home", "example_pyxis"]),
    "an unknown recipe": (["recipe=tvkd-lama-8b-1b", "cluster=home"], ["tvkd-lama", "did you mean tvkd-llama-8b-1b?"]),
    "an unknown cluster": (["recipe=mine", "cluster=hom"], ["cluster=hom", "did you mean home?"]),
    "a part of recipes": (["recipe=_tvkd", "cluster=home"], ["recipe=_tvkd", "tvkd-llama-8b-1b"]),
    "an empty name": (["recipe=", "cluster=home"], ["recipe=", "mine"]),
}


@pytest.mark.parametrize(("words", "said"), NAMED.values(), ids=NAMED.keys())
def test_recipes_and_clusters_that_do_not_exist(mine: Folder, words: list[str], said: list[str]) -> None:
    mine.write()
    line = mistake(lambda: load_recipe(words, str(mine.place)))
    for part in said:
        assert part in line, line


@pytest.mark.parametrize("option", ["--from", "--here"])
def test_an_option_that_names_no_stage(mine: Folder, fails: Fails, option: str) -> None:
    mine.write()
    line = fails("submit", *mine.arguments, "--config-dir", mine.place, option, "fourth")
    assert f"{option} fourth" in line
    assert "first, judge" in line


def test_a_start_whose_predecessor_is_not_there(mine: Folder, fails: Fails) -> None:
    mine.write()
    mine.finish("first")
    line = fails("submit", *mine.arguments, "--config-dir", mine.place, "--from", "third", "--dry-run")
    assert "--from third" in line
    assert "stage second" in line
    assert str(mine.run_dir / "second") in line or "stage judge" in line


def test_a_start_at_what_a_path_replaces(mine: Folder, fails: Fails, tmp_path: Path) -> None:
    mine.write()
    line = fails("submit", *mine.arguments, "--config-dir", mine.place, f"first={tmp_path}", "--from", "first")
    assert "--from first" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("option", [["--dry-run"], ["--from", "third"]])
def test_options_about_jobs_with_a_stage_here(mine: Folder, fails: Fails, option: list[str]) -> None:
    """A dry run must not train."""
    mine.write()
    line = fails("submit", *mine.arguments, "--config-dir", mine.place, "--here", "first", *option)
    assert "--here" in line
    assert option[0] in line


def test_a_run_folder_under_a_file(mine: Folder, fails: Fails, tmp_path: Path) -> None:
    mine.write()
    (tmp_path / "file").write_text("")
    line = fails("submit", "recipe=mine", "cluster=home", f"run_dir={tmp_path}/file/run", "--config-dir", mine.place)
    assert "run_dir" in line
    assert f"{tmp_path}/file" in line


def test_a_yaml_that_cannot_be_read(mine: Folder, fails: Fails) -> None:
    mine.write()
    (mine.place / "recipe" / "mine.yaml").write_text("name: [mine\n")
    line = fails("submit", *mine.arguments, "--config-dir", mine.place, "--dry-run")
    assert "mine.yaml" in line
