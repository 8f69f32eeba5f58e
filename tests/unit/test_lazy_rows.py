"""Rows of token caches on their way to a run's items: joined, selected, chained, sent to ranks."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from bad_input import nemo_stays_out
from cached_rows import plain
from omegaconf import OmegaConf
from oracle_settings import Oracles, make_oracles
from two_tokenizers import TEXTS, write_pairs

from nemo_tvkd.commands.score import prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import micro_batches
from nemo_tvkd.data.lazy import Chained, Selected
from nemo_tvkd.data.noise import is_flipped
from nemo_tvkd.data.readings import pair_ids, tokens_of, with_others
from nemo_tvkd.prepare.training import check_output

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks", "tokens")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    with nemo_stays_out():
        return make_oracles(tmp_path_factory.mktemp("oracles"))


def test_items_are_made_of_stores_columns_and_other_readings(oracles: Oracles) -> None:
    """Sent to ranks they are a few kilobytes, whatever joins them; both sources, flipped pairs and held-out ones."""
    setting = oracles.setting
    reference = setting.store("score.what=[logprob]", "score.part_size=3", model=setting.student)
    cached = [f"reference.scores={reference}", "reference.mode=cached"]
    weights = f"data.train=[{oracles.judged}:0.4,{setting.two.pairs}:0.6]"
    noise = ["data.label_noise=0.5", "data.label_noise_seed=2", f"data.validation={oracles.judged}"]
    stores = f"oracle.scores=[{oracles.store(0, 'score.part_size=3')},{oracles.store(1, model=oracles.other)}]"
    both = f"oracle.path=[{oracles.same},{oracles.other}]"
    teacher = [f"teacher.path={setting.teacher}", "algorithm.use_reference=true", "algorithm.shaping.gamma=0.9"]
    for algorithm, options in (
        ("edpo", [*cached, "oracle.mode=columns", "oracle.normalize=zscore"]),
        ("edpo", [*cached, "oracle.mode=cached", "oracle.normalize=zscore", stores, both, weights]),
        ("tvkd", [*cached, *teacher, weights]),
    ):
        made = oracles.prepare(algorithm, *options, *noise, pairs=oracles.judged)
        assert made.train
        assert made.validation
        expected = [plain(item) for item in made.train]
        assert [plain(item) for item in pickle.loads(pickle.dumps(made.train))] == expected
        flips = [is_flipped(row.pair_id, 0.5, 2) for row in tokens_of(made.train)]
        assert [plain(item) for item in made.flipped] == [e for e, flip in zip(expected, flips, strict=True) if flip]
        shares = [[pair for batch in micro_batches(made.train, 3, 4, rank, 2) for pair in [batch]] for rank in (0, 1)]
        assert sum(batch["count"] for share in shares for batch in share) == len(made.train)


def test_rows_that_only_some_tokenizers_can_read(oracles: Oracles, tmp_path: Path) -> None:
    """A prompt that fills the teacher's length only, and one that fills the student's only."""
    setting = oracles.setting
    file = write_pairs(tmp_path / "some.jsonl", [TEXTS[0], ("x" * 120, "a", "b"), *TEXTS[1:], ("é ï " * 12, "a", "b")])
    options = [f"teacher.path={setting.teacher}", "data.on_bad_row=skip", "algorithm.shaping.gamma=0.9"]
    train = setting.prepare(*options, pairs=file).train
    assert [item.tokens.source for item in train] == [f"{file}:{n + (n > 1)}" for n in range(1, len(TEXTS) + 1)]
    assert all(item.tokens.source == item.readings["teacher"].tokens.source for item in train)


def test_lazy_sequences(oracles: Oracles) -> None:
    """Selections of selections, chains with empty parts, and what they say of their columns."""
    rows = tokens_of(oracles.prepare("dpo", "reference.path=''", pairs=oracles.judged).train)
    listed = list(rows)
    parts = Chained([rows[:0], rows[2:5], rows[5:5], rows[::-3]])  # type: ignore[list-item]
    expected = listed[2:5] + listed[::-3]
    assert [plain(row) for row in parts] == [plain(row) for row in expected]
    assert [plain(row) for row in parts[1:][::-2]] == [plain(row) for row in expected[1:][::-2]]
    assert list(pair_ids(parts[::2])) == [row.pair_id for row in expected[::2]]
    assert isinstance(parts[1:][1:], Selected)
    assert parts[1:][1:].base is parts  # however often it is sliced
    for wrong in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            parts[wrong]
    joined = with_others(rows[:3], rows)  # type: ignore[arg-type]
    assert [row.source for row in joined] == [row.source for row in listed]


def test_scoring_takes_held_out_pairs_once(oracles: Oracles, tmp_path: Path) -> None:
    """Those of the validation set that are no training pairs come after these."""
    more = write_pairs(tmp_path / "more.jsonl", [TEXTS[3], ("Another?", "It is.", "Is it?"), TEXTS[0]])
    options = [f"score.model={oracles.same}", f"data.train={oracles.setting.two.pairs}", f"data.validation={more}"]
    job = prepare_scoring(compose("score", [*options, "score.what=[reward]", "score.output=x"]))
    assert [row.source for row in job.rows][len(TEXTS) :] == [f"{more}:2"]


def test_a_run_that_was_saved_with_streaming_goes_on(oracles: Oracles, tmp_path: Path) -> None:
    """The key data.streaming is gone."""
    step = tmp_path / "run" / "checkpoints" / "step-1"
    (step / "weights").mkdir(parents=True)
    (step / "weights" / "metadata.json").write_text("{}")
    config: Any = oracles.setting.training(f"trainer.output_dir={tmp_path / 'run'}")
    saved = OmegaConf.to_container(config)
    for streaming in (True, False):
        saved["data"]["streaming"] = streaming  # type: ignore[index, call-overload]
        file = tmp_path / "run" / "config.yaml"
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
        check_output(config)
        assert "streaming" not in compose("train", [], base=file).data
