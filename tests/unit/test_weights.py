"""data.train with weights: what is written, which rows an epoch has, in which order, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import STARTED, Fails, World, write_rows
from recipe_folder import Folder

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.train import _save_config
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.paths import absolute, path_list, weighted_paths
from nemo_tvkd.data.stream import EpochStream, Mixture, WeightedStream, open_stream
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare.training import prepare_training

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def stream(rows: list[int], weights: list[float], seed: int = 1, shuffle: bool = True, length: int = 10**6) -> Any:
    """Items that are (source, row)."""
    mixture = Mixture.of([f"source{n}" for n in range(len(rows))], weights, rows, "data.train")
    items: Any = [(source, row) for source, count in enumerate(rows) for row in range(count)]
    return WeightedStream(items, length, seed, mixture, shuffle)


def first(made: Any, count: int) -> list[Any]:
    return [made[index] for index in range(count)]


# --- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_the_shares(shuffle: bool) -> None:
    """By hand: 13 rows at 0.5, 0.3, 0.2 are 6.5, 3.9, 2.6: the largest remainders are the second's, then the last's."""
    made = stream([4, 8, 1], [0.5, 0.3, 0.2], shuffle=shuffle)
    for epoch in range(5):
        found = Counter(source for source, _ in first(made, 13 * (epoch + 1))[13 * epoch :])
        assert found == {0: 6, 1: 4, 2: 3}


@pytest.mark.parametrize("weights", [[7, 3], [0.7, 0.3], [7e300, 3e300], [7e-300, 3e-300]])
def test_weights_are_relative(weights: list[float]) -> None:
    assert Mixture.of(["a", "b"], weights, [5, 5], "data.train").draws == (7, 3)
    assert first(stream([5, 5], weights), 30) == first(stream([5, 5], [0.7, 0.3]), 30)


def test_equal_remainders_go_to_the_first() -> None:
    assert Mixture.of(["a", "b", "c"], [1, 1, 1], [2, 2, 1], "data.train").draws == (2, 2, 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_row_comes_again_before_all_of_its_source_have_been(shuffle: bool) -> None:
    made = stream([5, 30, 3], [0.6, 0.1, 0.3], shuffle=shuffle)
    drawn = first(made, 38 * 30)
    for source, rows in enumerate((5, 30, 3)):
        mine = [row for found, row in drawn if found == source]
        assert len(mine) > 30
        passes = [mine[start : start + rows] for start in range(0, len(mine) - rows + 1, rows)]
        assert all(sorted(each) == list(range(rows)) for each in passes)
        if shuffle and rows == 30:
            assert len({tuple(each) for each in passes}) == len(passes)  # each pass in an order of its own
        elif not shuffle:
            assert all(each == list(range(rows)) for each in passes)


def test_without_shuffling_sources_take_turns() -> None:
    """By hand: of 8, six of a lie at 1/12, 3/12, ..., 11/12 of the epoch, and two of b at 1/4 and 3/4 (ties: a)."""
    made = stream([4, 4], [0.75, 0.25], shuffle=False)
    assert first(made, 8) == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 0), (1, 1), (0, 1)][:8]
    assert first(made, 11)[8:] == [(0, 2), (0, 3), (1, 2)]  # the next epoch goes on where each source was


def test_a_resumed_run_sees_what_an_uninterrupted_one_does() -> None:
    """Any index alone, from any place, in any order, however long the run; and another seed sees another order."""
    rows, weights = [3, 7, 2], [0.2, 0.3, 0.5]
    whole = first(stream(rows, weights), 120)
    for start in range(0, 120, 7):
        fresh = stream(rows, weights, length=130)
        assert [fresh[index] for index in range(start, 120)] == whole[start:]
    backwards = stream(rows, weights)
    assert [backwards[index] for index in reversed(range(120))] == whole[::-1]
    assert first(stream(rows, weights, seed=2), 120) != whole


def test_the_order_is_the_same_in_every_release() -> None:
    """Where the sources lie, by (seed, epoch); a source's rows, by (seed, source, pass): NumPy's PCG64 alone."""
    rng = lambda *seed: np.random.Generator(np.random.PCG64(list(seed)))  # noqa: E731
    expected: list[tuple[int, int]] = []
    orders = [[row for number in range(9) for row in rng(42, s, number, 1).permutation(n)] for s, n in ((0, 2), (1, 4))]
    for epoch in range(3):
        for place in rng(42, epoch).permutation(6):
            source = int(place >= 4)  # four of six draws are the first source's
            expected.append((source, int(orders[source].pop(0))))
    assert first(stream([2, 4], [2, 1], seed=42), 18) == expected


def test_neither_length_nor_sharding_matters_to_memory_of_passes() -> None:
    """A source of one row, of which each epoch has a thousand passes."""
    made = stream([1, 999], [0.999, 0.001])
    assert Counter(source for source, _ in first(made, 1000)) == {0: 999, 1: 1}
    assert len(made._passes[0]) <= 2


def test_without_weights_the_order_is_as_it_was() -> None:
    made = open_stream(list(range(9)), 40, 3, True)  # type: ignore[arg-type]
    assert isinstance(made, EpochStream)
    expected = [n for epoch in range(4) for n in np.random.default_rng([3, epoch]).permutation(9).tolist()]
    assert [made[n] for n in range(36)] == expected  # type: ignore[comparison-overlap]


def test_a_share_of_less_than_a_row() -> None:
    with pytest.raises(UserError, match=r"^data\.train: b:0\.001: its share of an epoch of 20 rows is less than one"):
        Mixture.of(["a", "b"], [1, 0.001], [10, 10], "data.train")


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a.jsonl, b.jsonl, the folder set, and odd:0.7, a file."""
    (tmp_path / "set").mkdir()
    for name in ("a.jsonl", "b.jsonl", "odd:0.7"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_weights_as_they_are_typed(here: Path) -> None:
    written = "data.train=[a.jsonl:0.7,set:0.1,set:train_sft:.2,org/name:3,org/name:test:3e-1,'/b c/d.jsonl:1.']"
    config = compose("train", ["algorithm=dpo", written])
    paths = ["a.jsonl", "set", "set:train_sft", "org/name", "org/name:test", "/b c/d.jsonl"]
    assert weighted_paths(config.data.train, "data.train") == (paths, [0.7, 0.1, 0.2, 3.0, 0.3, 1.0])
    assert path_list(config.data.train, "data.train") == paths


def test_what_has_no_weight(here: Path) -> None:
    """One path is all of an epoch; a file may be called as if it had one; a split is none."""
    for value in (["a.jsonl", "set:train"], "a.jsonl", ["odd:0.7", "a.jsonl"], "org/name:v1.0"):
        entries = [value] if isinstance(value, str) else value
        assert weighted_paths(value, "data.train") == (entries, None)
    assert weighted_paths("a.jsonl:0.7", "data.train") == (["a.jsonl"], None)
    assert weighted_paths(["odd:0.7:2", "a.jsonl:1"], "data.train") == (["odd:0.7", "a.jsonl"], [2.0, 1.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a.jsonl:0.7", "b.jsonl"], "data.train: b.jsonl has no weight but a.jsonl:0.7 has: give all of them one"),
        (["odd:0.7", "a.jsonl:1"], "data.train: odd:0.7 has no weight but a.jsonl:1 has"),
        (["a.jsonl:0", "b.jsonl:1"], "data.train: a.jsonl:0: the weight 0.0 must be positive"),
        (["a.jsonl:1", "b.jsonl:-2"], "data.train: b.jsonl:-2: the weight -2.0 must be positive"),
        (["a.jsonl:nan", "b.jsonl:1"], "data.train: a.jsonl:nan: the weight nan must be positive"),
        (["a.jsonl:1e999", "b.jsonl:1"], "data.train: a.jsonl:1e999: the weight inf must be positive"),
        ("a.jsonl:inf", "data.train: a.jsonl:inf: the weight inf must be positive"),
    ],
)
def test_mistakes_in_weights(here: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        weighted_paths(value, "data.train")
    assert str(caught.value).startswith(message)


def test_validation_takes_no_weights(here: Path) -> None:
    for value in ("a.jsonl:0.5", ["b.jsonl", "a.jsonl:0.5"]):
        with pytest.raises(UserError, match=r"^data\.validation: a\.jsonl:0\.5 ends with a weight"):
            path_list(value, "data.validation")


def test_saved_paths_keep_their_weights(here: Path) -> None:
    typed = ["a.jsonl:0.7", "set:train:.2", "org/name:test:3e-1", "odd:0.7", "odd:0.7:2", "no.jsonl:1"]
    expected = [f"{here}/a.jsonl:0.7", f"{here}/set:train:.2", typed[2], f"{here}/odd:0.7", f"{here}/odd:0.7:2"]
    assert absolute(typed) == [*expected, "no.jsonl:1"]
    _save_config(compose("train", ["algorithm=sft", "data.train=[a.jsonl:0.7,b.jsonl:0.3]"]), here)
    again = compose("train", [], base=here / "config.yaml")
    assert weighted_paths(again.data.train, "data.train") == ([f"{here}/a.jsonl", f"{here}/b.jsonl"], [0.7, 0.3])


def test_weights_of_a_stage(here: Path, tmp_path: Path) -> None:
    mine = Folder(tmp_path / "mine")
    found = mine.load("first.data.train=[a.jsonl:0.7,b.jsonl:0.3]", "judge.data.train=[org/name:tr:1,a.jsonl:2]")
    first, judge = (found.stage(name, "").config() for name in ("first", "judge"))
    assert list(first.data.train) == [f"{here}/a.jsonl:0.7", f"{here}/b.jsonl:0.3"]
    assert list(judge.data.train) == ["org/name:tr:1", f"{here}/a.jsonl:2"]


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_says_what_each_source_contributes(world: World, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in world.pairs.read_text().splitlines()]
    few, more = write_rows(tmp_path / "few.jsonl", rows[:1]), write_rows(tmp_path / "more.jsonl", rows[1:])
    options = [*world.online(), "trainer.max_steps=null", "trainer.max_epochs=3", f"data.train=[{more}:1,{few}:3]"]
    made = prepare_training(compose("train", options[1:]))
    assert made.mixture == Mixture(rows=(len(rows) - 1, 1), draws=(1, 3))
    assert [item.tokens.source for item in made.train] == [f"{more}:1", f"{more}:2", f"{more}:3", f"{few}:1"]
    assert made.max_steps == 3 * 4 // 2
    said = f"data.train: of the 4 rows of an epoch 1 (25 %) from {more}, which has 3, 3 (75 %) from {few}, which has 1"
    assert made.notes[-1] == said
    for path, count in ((more, 3), (few, 1)):
        assert sum(note.startswith(f"data.train: {count} pairs from {path}; ") for note in made.notes) == 1


def test_commands_that_take_each_row_once(world: World, capfd: pytest.CaptureFixture[str], fails: Fails) -> None:
    """`score` leaves weights alone; mistakes in them are mistakes there, too."""
    weighted = f"data.train=[{world.pairs}:0.7,{world.pairs}:0.3]"
    assert main([*world.score(), weighted]) == STARTED
    assert f"data.train: 8 pairs from {world.pairs}, {world.pairs}; " in capfd.readouterr().out
    message = fails(*world.score(), f"data.train=[{world.pairs}:0.7,{world.pairs}]")
    assert message.startswith(f"data.train: {world.pairs} has no weight but {world.pairs}:0.7 has")
    message = fails(*world.online(), f"data.validation=[{world.pairs}:0.7,{world.pairs}:0.3]")
    assert message.startswith(f"data.validation: {world.pairs}:0.7 ends with a weight")
