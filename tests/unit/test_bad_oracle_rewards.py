"""Rewards that are missing, wrong or without a spread: of the data's columns and of score stores; resumed runs."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_input import JUDGED, PAIRS, STARTED, Fails, World, write_rows
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.train import _save_config
from nemo_tvkd.config.compose import compose

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

READS = "oracle.mode=columns reads rewards from the data"
DIVIDES = "oracle.normalize=zscore divides by 0"


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["chosen_reward", "rejected_reward"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is null: it must be a number; "),
        (math.nan, "is nan: it must be a finite number; "),
        (-math.inf, "is -inf: it must be a finite number; "),
        ("2.5", "is text: it must be a number; "),
        (True, "is true or false: it must be a number; "),
        ([1.0], "is a list: it must be a number; "),
    ],
)
def test_columns_with_a_bad_number(
    world: World, fails: Fails, tmp_path: Path, side: str, value: Any, message: str
) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", [JUDGED[0], {**JUDGED[1], side: value}, *JUDGED[2:]])
    for key in ("data.train", "data.validation"):
        assert fails(*world.drdo("columns"), f"{key}={file}") == f"{file}:2: {side} {message}{READS}"
        assert main([*world.drdo("columns"), f"{key}={file}", "data.on_bad_row=skip"]) == STARTED
    assert main([*world.drdo("online"), f"data.train={write_rows(tmp_path / 'more.jsonl', PAIRS)}"]) == STARTED


def test_columns_that_are_missing(world: World, fails: Fails, tmp_path: Path) -> None:
    half = {name: value for name, value in JUDGED[2].items() if name != "rejected_reward"}
    file = write_rows(tmp_path / "half.jsonl", [*JUDGED[:2], half])
    message = fails(*world.drdo("columns"), f"data.train={file}")
    assert message.startswith(f"{file}:3: missing column rejected_reward: {READS}; found: prompt, chosen, rejected, ")
    message = fails(*world.drdo("columns"), f"data.train={world.pairs}")
    assert message.startswith(f"{world.pairs}:1: missing columns chosen_reward and rejected_reward (or score_chosen ")
    assert fails(*world.drdo("columns"), f"data.validation={world.pairs}").startswith(f"{world.pairs}:1: missing col")
    message = fails(*world.drdo("columns"), f"data.train={world.pairs}", "data.on_bad_row=skip")
    assert message.startswith(f"data.train: each of the 4 rows is bad; the first: {world.pairs}:1: missing columns ")


def test_columns_need_no_model_and_no_number_that_is_not_asked_for(world: World, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", [{**row, "rejected_reward": None, "margin": "x"} for row in JUDGED])
    for command in (world.drdo(), world.drdo("cached"), [*world.drdo(), "algorithm=reward"]):
        assert main([*command, f"data.train={file}"]) == STARTED


@pytest.mark.parametrize("algorithm", ["drdo", "edpo"])
def test_both_methods_read_the_columns(world: World, fails: Fails, algorithm: str) -> None:
    command = [*world.drdo("columns"), f"algorithm={algorithm}"]
    assert main(command) == STARTED
    assert fails(*command, f"data.train={world.pairs}").endswith("found: prompt, chosen, rejected")


def test_a_margin_that_is_missing(world: World, fails: Fails, tmp_path: Path) -> None:
    command = [*world.drdo(), "oracle.path=''", "algorithm=reward", "algorithm.use_margin=true"]
    reads = "algorithm.use_margin=true reads a margin from the data"
    assert fails(*command) == f"{world.pairs}:1: missing column margin: {reads}; found: prompt, chosen, rejected"
    margins = [{**pair, "margin": 0.5 * n} for n, pair in enumerate(PAIRS)]
    file = write_rows(tmp_path / "margins.jsonl", margins)
    assert main([*command, f"data.train={file}"]) == STARTED
    assert fails(*command, f"data.train={file}", f"data.validation={world.pairs}").startswith(f"{world.pairs}:1: miss")
    file = write_rows(tmp_path / "wrong.jsonl", [*margins[:3], {**margins[3], "margin": "wide"}])
    assert fails(*command, f"data.train={file}") == f"{file}:4: margin is text: it must be a number; {reads}"
    assert main([*command, f"data.train={file}", "algorithm.use_margin=false"]) == STARTED


# --- stores -----------------------------------------------------------------------------------------------------------


def test_pairs_that_are_not_in_the_store(world: World, fails: Fails, tmp_path: Path) -> None:
    new = {**PAIRS[0], "chosen": "The lamp is painted blue."}
    file = write_rows(tmp_path / "more.jsonl", [*PAIRS, new, {**new, "rejected": "No."}])
    for key in ("data.train", "data.validation"):
        message = fails(*world.drdo("cached"), f"{key}={file}")
        assert message.startswith(f"oracle.scores: 2 of 6 pairs are not in the store {world.rewards}, first {file}:5; ")
    edpo = [*world.drdo("cached"), "algorithm=edpo", f"data.train={file}", "data.on_bad_row=skip"]
    all_of_them = world.make_rewards("more_rewards", data=file)
    message = fails(*edpo, f"oracle.scores=[{all_of_them},{world.rewards}]")
    assert message.startswith(f"oracle.scores[1]: 2 of 6 pairs are not in the store {world.rewards}, first {file}:5; ")
    assert main([*edpo, f"oracle.scores=[{all_of_them},{all_of_them}]"]) == STARTED


def test_stores_that_are_none_unfinished_or_damaged(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.drdo("cached"), f"oracle.scores={tmp_path}")
    assert message.startswith(f"oracle.scores: no score store at {tmp_path}")
    unfinished, truncated = tmp_path / "unfinished", tmp_path / "truncated"
    for copy in (unfinished, truncated):
        shutil.copytree(world.rewards, copy)
    (unfinished / "manifest.json").unlink()
    message = fails(*world.drdo("cached"), f"oracle.scores={unfinished}")
    assert message.startswith(f"oracle.scores: the score store {unfinished} is unfinished (manifest.json is missing)")
    shard = truncated / "part-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    message = fails(*world.drdo("cached"), f"oracle.scores={truncated}")
    assert message.startswith(f"oracle.scores: {shard} is truncated or corrupted")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 512}, "max_length is 512 in the store and 1024 is expected"),
        ({"max_prompt_length": 100}, "max_prompt_length is 100 in the store and 1023 is expected"),
        ({"chat_template": "plain"}, 'chat_template is "plain" in the store and "'),
        ({"tokenizer": "other"}, 'tokenizer is "other" in the store and "'),
        ({"weights": "0" * 64}, f'weights is "{"0" * 64}" in the store and "'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_stores_that_do_not_fit(world: World, fails: Fails, changed: dict[str, Any], message: str) -> None:
    store = world.make_rewards(f"rewards_{next(iter(changed))}", **changed)
    command = [*world.drdo("cached"), f"oracle.scores={store}"]
    said = fails(*command, f"oracle.path={world.oracle}")
    assert said.startswith(f"oracle.scores: the score store {store} (scored by {world.oracle}) does not fit: {message}")
    if "weights" in changed:  # without oracle.path nobody asks
        assert main(command) == STARTED
    elif "tokenizer" in changed:
        said = fails(*command)
        assert said.startswith(f"oracle.scores: the score store {store} was made with another tokenizer than student.")
        assert "set oracle.path to the model that scored" in said
    else:
        assert message in fails(*command)


def test_stores_without_rewards(world: World, fails: Fails) -> None:
    """One of the teacher's values; one of everything but rewards."""
    for store in (world.store, world.make_store("all_but_rewards", what=("value", "logprob"))):
        message = fails(*world.drdo("cached"), f"oracle.scores={store}")
        assert message.startswith(f"oracle.scores: the score store {store} (scored by {world.teacher}) does not fit: ")
        assert message.split("what is ")[1].startswith('["value"')
        assert 'in the store and ["reward"] is missing; score the data again' in message
    both = world.make_store("everything", what=("value", "logprob", "reward"))
    assert main([*world.drdo("cached"), f"oracle.scores={both}"]) == STARTED
    assert main([*world.cached(), f"teacher.scores={both}"]) == STARTED
    message = fails(*world.cached(), f"teacher.scores={world.rewards}")
    assert 'what is ["reward"] in the store and ["value"] is missing' in message


def test_a_store_of_other_weights(world: World, fails: Fails) -> None:
    """The weights are what counts: the same ones under another name fit."""
    for path in (world.teacher, world.with_reward_head("teacher")):
        message = fails(*world.drdo("cached"), f"oracle.path={path}")
        assert message.startswith(f"oracle.scores: the score store {world.rewards} (scored by {world.oracle}) does not")
        assert " fit: weights is " in message
    assert main([*world.drdo("cached"), f"oracle.path={world.variant('renamed_oracle', 'oracle')}"]) == STARTED


# --- oracle.normalize=zscore ------------------------------------------------------------------------------------------


def test_zscore_online(world: World, fails: Fails) -> None:
    for command in (world.drdo(), [*world.drdo(), "oracle.path=''"], [*world.drdo(), "algorithm=edpo"]):
        message = fails(*command, "oracle.normalize=zscore")
        assert message.startswith("oracle.normalize=zscore needs the spread of all rewards before the first step, and ")
        assert message.endswith("score the pairs, then use oracle.mode=cached")


@pytest.mark.parametrize("reward", [0.0, 0.1, -7.0, 1e300])
def test_rewards_of_a_store_that_do_not_differ(world: World, fails: Fails, reward: float) -> None:
    store = world.make_rewards(f"same_{reward}", (reward, reward))
    command = [*world.drdo("cached"), "oracle.normalize=zscore"]
    message = fails(*command, f"oracle.scores={store}")
    assert message == f"oracle.scores: all 8 rewards are {reward}: {DIVIDES}"
    message = fails(*command, "algorithm=edpo", f"oracle.scores=[{world.rewards},{store}]")
    assert message == f"oracle.scores[1]: all 8 rewards are {reward}: {DIVIDES}"
    assert main([*command, f"oracle.scores={store}", "oracle.normalize=none"]) == STARTED


@pytest.mark.parametrize("numbers", [(1e300, -1e308), (1e-200, 0.0), (1e16, 1e16 + 2)], ids=str)
def test_rewards_of_any_size_that_differ(world: World, numbers: tuple[float, float]) -> None:
    store = world.make_rewards(f"size_{numbers[0]}", numbers)
    assert main([*world.drdo("cached"), "oracle.normalize=zscore", f"oracle.scores={store}"]) == STARTED


def test_columns_that_do_not_differ(world: World, fails: Fails, tmp_path: Path) -> None:
    """In the training rows: those of the validation, which differ, are divided by the same number."""
    same = write_rows(tmp_path / "same.jsonl", [{**row, "chosen_reward": 2, "rejected_reward": 2} for row in JUDGED])
    command = [*world.drdo("columns"), "oracle.normalize=zscore"]
    for validation in ("''", world.judged):
        message = fails(*command, f"data.train={same}", f"data.validation={validation}")
        assert message.startswith("data.train: the columns chosen_reward and rejected_reward: all 8 rewards are 2.0: ")
        assert message.endswith(DIVIDES)
    assert main([*command, f"data.validation={same}"]) == STARTED


# --- resumed runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(world: World, tmp_path: Path) -> list[str]:
    """A command whose run has a checkpoint."""
    command = [*map(str, world.drdo()), f"trainer.output_dir={tmp_path}", "data.label_noise=0.25"]
    _save_config(compose("train", command[1:]), tmp_path)
    weights = tmp_path / "checkpoints" / "step-00000001" / "weights"
    weights.mkdir(parents=True)
    (weights / "metadata.json").touch()
    return command


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ("data.label_noise=0.5", "data.label_noise=0.25, not 0.5"),
        ("data.label_noise=0", "data.label_noise=0.25, not 0.0"),
        ("data.label_noise_seed=1", "data.label_noise_seed=0, not 1"),
        ("oracle.path=/another", "oracle.path={oracle}, not /another"),
        ("oracle.path=[{oracle},/another]", "oracle.path={oracle}, not ['{oracle}', '/another']"),
        ("oracle.path=''", "oracle.path={oracle}, not : "),
        ("oracle.normalize=zscore", "oracle.normalize=none, not zscore"),
        ("oracle.tokenizer=/another", "oracle.tokenizer=, not /another"),
        ("oracle.chat_template=plain", "oracle.chat_template=, not plain"),
        ("algorithm.gamma=1", "algorithm.gamma=2.0, not 1.0"),
        ("algorithm.student_reward=implicit", "algorithm.student_reward=head, not implicit"),
        ("algorithm=edpo", "algorithm.name=drdo, not edpo"),
    ],
)
def test_resuming_with_other_settings(
    world: World, fails: Fails, begun: list[str], tmp_path: Path, change: str, there: str
) -> None:
    message = fails(*begun, change.replace("{oracle}", str(world.oracle)))
    wanted = there.replace("{oracle}", str(world.oracle))
    assert message.startswith(f"trainer.output_dir: {tmp_path} holds a run with {wanted}")


def test_resuming_with_the_same_rewards_from_elsewhere(
    world: World, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    assert main(begun) == STARTED
    for changes in (
        ["oracle.mode=cached", f"oracle.scores={world.rewards}"],
        ["oracle.mode=cached", f"oracle.scores=[{world.rewards}]"],
        ["oracle.path=oracle"],  # relative, and yet the same
        [f"oracle.path=[{world.oracle}]"],
    ):
        assert main([*begun, *changes]) == STARTED


def test_resuming_with_columns(world: World, fails: Fails, begun: list[str], tmp_path: Path) -> None:
    """The data's rewards are nobody's: a run that learns from them does not go on with a model's."""
    config = OmegaConf.load(tmp_path / "config.yaml")
    config.oracle.path, config.oracle.mode, config.data.train = "", "columns", str(world.judged)
    OmegaConf.save(config, tmp_path / "config.yaml")
    command = [*begun, "oracle.path=''", f"data.train={world.judged}"]
    assert main([*command, "oracle.mode=columns"]) == STARTED
    refusal = f"trainer.output_dir: {tmp_path} holds a run with oracle.mode=columns, not cached"
    assert fails(*command, "oracle.mode=cached", f"oracle.scores={world.rewards}").startswith(refusal)
    assert fails(*command, f"oracle.path={world.oracle}").startswith(f"trainer.output_dir: {tmp_path} holds a run with")
