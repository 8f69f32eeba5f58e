"""data.streaming from a configuration to a run's items: the same as in memory, whatever joins them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import nemo_stays_out
from oracle_settings import Oracles, make_oracles
from streaming import STREAMING, assert_same_elements, plain
from two_tokenizers import TEXTS, write_pairs

from nemo_tvkd.commands.score import prepare_scoring, writer_of
from nemo_tvkd.commands.train import _LOCKS, _take
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import micro_batches
from nemo_tvkd.data.lazy import Chained, Lazy, Mapped, Selected
from nemo_tvkd.data.noise import is_flipped
from nemo_tvkd.data.readings import pair_ids, tokens_of, with_others
from nemo_tvkd.prepare.training import Prepared, check_output

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks", "cache")

NOISE = ["data.label_noise=0.5", "data.label_noise_seed=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("NEMO_TVKD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    with nemo_stays_out():
        return make_oracles(tmp_path_factory.mktemp("oracles"))


@pytest.fixture(scope="module")
def settings(oracles: Oracles) -> dict[str, tuple[str, list[object]]]:
    """A method and options that read all there is, by where it is read from."""
    setting = oracles.setting
    reference = [
        f"reference.scores={setting.store('score.what=[logprob]', 'score.part_size=3', model=setting.student)}"
    ]
    reference.append("reference.mode=cached")
    teacher = [f"teacher.path={setting.teacher}", "algorithm.use_reference=true", "algorithm.shaping.gamma=0.9"]
    stores = f"oracle.scores=[{oracles.store(0, 'score.part_size=3')},{oracles.store(1, model=oracles.other)}]"
    both = f"oracle.path=[{oracles.same},{oracles.other}]"
    zscore = "oracle.normalize=zscore"
    return {
        "columns": ("edpo", [*reference, "oracle.mode=columns", zscore]),
        "margins": ("reward", ["algorithm.use_margin=true"]),
        "stores": ("edpo", [*reference, "oracle.mode=cached", stores, both]),
        "zscore": ("edpo", [*reference, "oracle.mode=cached", zscore, stores, both]),
        "online": ("edpo", [*reference, both]),
        "teacher's store": ("tvkd", [*reference, *teacher, "teacher.mode=cached", f"teacher.scores={setting.store()}"]),
        "teacher": ("tvkd", [*reference, *teacher]),
        "examples": ("sft", []),
    }


WHERE = ("columns", "margins", "stores", "zscore", "online", "teacher's store", "teacher", "examples")


def both(oracles: Oracles, algorithm: str, *options: object) -> tuple[Prepared, Prepared]:
    """Streaming, and in memory."""
    made = [
        oracles.prepare(algorithm, *options, streaming, pairs=oracles.judged)
        for streaming in (STREAMING, "data.streaming=false")
    ]
    return made[0], made[1]


@pytest.mark.parametrize("where", WHERE)
def test_items_are_those_of_memory(oracles: Oracles, settings: dict[str, Any], where: str) -> None:
    """With weights and a validation set; and with label noise where there are pairs."""
    algorithm, options = settings[where]
    weights = f"data.train=[{oracles.judged}:0.4,{oracles.setting.two.pairs}:0.6]"
    mixed = [] if where in ("columns", "margins") else [weights]
    noise = [] if algorithm == "sft" else NOISE
    lazy, listed = both(oracles, algorithm, *options, f"data.validation={oracles.judged}", *mixed, *noise)
    assert isinstance(lazy.train, Lazy)
    assert isinstance(lazy.validation, Lazy)
    assert_same_elements(lazy.train, listed.train)  # type: ignore[arg-type]
    assert_same_elements(lazy.validation, listed.validation)  # type: ignore[arg-type]
    assert [plain(item) for item in lazy.flipped] == [plain(item) for item in listed.flipped]
    assert bool(noise) == bool(lazy.flipped)
    assert (lazy.notes, lazy.max_steps, lazy.mixture) == (listed.notes, listed.max_steps, listed.mixture)
    assert (lazy.mixture is not None) == bool(mixed)
    for ranks in (1, 2):
        shares = [
            [plain_batch(batch) for batch in micro_batches(made.train, 3, 4, ranks - 1, ranks)]
            for made in (lazy, listed)
        ]
        assert shares[0] == shares[1]


def plain_batch(batch: dict[str, Any]) -> Any:
    return {name: str(value) for name, value in batch.items() if name != "readings"}


def test_rows_that_only_some_tokenizers_can_read(oracles: Oracles, tmp_path: Path) -> None:
    """A prompt that fills the teacher's length only, and one that fills the student's only."""
    setting = oracles.setting
    file = write_pairs(tmp_path / "some.jsonl", [TEXTS[0], ("x" * 120, "a", "b"), *TEXTS[1:], ("é ï " * 12, "a", "b")])
    options = [f"teacher.path={setting.teacher}", "data.on_bad_row=skip", "algorithm.shaping.gamma=0.9"]
    lazy, listed = (
        setting.prepare(*options, streaming, pairs=file) for streaming in (STREAMING, "data.streaming=false")
    )
    assert 0 < len(listed.train) < len(TEXTS) + 2
    assert_same_elements(lazy.train, listed.train)  # type: ignore[arg-type]
    assert lazy.notes == listed.notes


def test_the_record_of_label_noise(oracles: Oracles, tmp_path: Path) -> None:
    written = []
    for name, streaming in (("one", STREAMING), ("two", "data.streaming=false")):
        config = oracles.setting.training("algorithm=drdo", "oracle.mode=columns", *NOISE, pairs=oracles.judged)
        made = oracles.columns(*NOISE, streaming)
        _take(config, made, tmp_path / name)
        _LOCKS.pop(tmp_path / name)
        written.append((tmp_path / name / "label_noise.json").read_bytes())
    assert written[0] == written[1]
    pairs = json.loads(written[0])["flipped_pairs"]
    assert all(is_flipped(pair["pair_id"], 0.5, 2) for pair in pairs)


def test_a_run_may_change_to_streaming_and_back(oracles: Oracles, tmp_path: Path) -> None:
    """Also one that was saved before there was such a key."""
    step = tmp_path / "run" / "checkpoints" / "step-1"
    (step / "weights").mkdir(parents=True)
    (step / "weights" / "metadata.json").write_text("{}")
    for saved in (True, False):
        config = oracles.setting.training(f"trainer.output_dir={tmp_path / 'run'}", f"data.streaming={saved}")
        (tmp_path / "run" / "config.yaml").write_text(_yaml(config))
        config.data.streaming = not saved
        check_output(config)


def _yaml(config: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(config)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_scoring_reads_the_same_rows(oracles: Oracles, tmp_path: Path) -> None:
    """Those of the validation set that are no training pairs come after these."""
    more = write_pairs(tmp_path / "more.jsonl", [TEXTS[3], ("Another?", "It is.", "Is it?"), TEXTS[0]])
    jobs = []
    for streaming in (STREAMING, "data.streaming=false"):
        options = [f"score.model={oracles.same}", f"data.train={oracles.setting.two.pairs}", f"data.validation={more}"]
        config = compose("score", [*options, "score.what=[reward]", "score.part_size=4", "score.output=x", streaming])
        jobs.append((prepare_scoring(config), config))
    (lazy, config), (listed, _) = jobs
    assert len(lazy.rows) == len(TEXTS) + 1
    assert_same_elements(lazy.rows, listed.rows)  # type: ignore[arg-type]
    assert lazy.identity == listed.identity
    writers = [writer_of(config.score, job) for job, _ in jobs]
    for part in writers[1].parts():
        assert list(writers[0].part_pair_ids(part)) == writers[1].part_pair_ids(part)
        assert [plain(row) for row in writers[0].part_rows(part, lazy.rows)] == [
            plain(row) for row in writers[1].part_rows(part, listed.rows)
        ]


# --- sequences --------------------------------------------------------------------------------------------------------


def test_lazy_sequences(oracles: Oracles) -> None:
    """Selections of selections, chains with empty parts, and what they say of their columns."""
    lazy, listed = both(oracles, "dpo", "reference.path=''")
    rows, expected = tokens_of(lazy.train), tokens_of(listed.train)
    assert isinstance(rows, Mapped)
    parts = Chained([rows[:0], rows[2:5], rows[5:5], rows[::-3]])
    wanted = expected[2:5] + expected[::-3]
    assert_same_elements(parts, wanted)
    assert_same_elements(parts[1:], wanted[1:])
    assert list(pair_ids(parts[::2])) == [row.pair_id for row in wanted[::2]]
    assert isinstance(parts[1:][1:], Selected)
    assert parts[1:][1:].base is parts  # however often it is sliced
    for wrong in (len(wanted), -len(wanted) - 1):
        with pytest.raises(IndexError):
            parts[wrong]
    joined = with_others(rows[:3], rows)
    assert [row.source for row in joined] == [row.source for row in expected]
