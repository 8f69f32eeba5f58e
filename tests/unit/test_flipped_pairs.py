"""data.label_noise from a configuration to a run's items: what was said of a response stays with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_input import nemo_stays_out
from oracle_settings import Oracles, make_oracles, number, responses, rewards_of
from two_tokenizers import TEXTS, states_at

from nemo_tvkd.commands.train import _LOCKS, _take
from nemo_tvkd.data.batch import Item, collate
from nemo_tvkd.data.noise import is_flipped
from nemo_tvkd.prepare.training import Prepared

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

Settings = dict[str, tuple[str, list[object]]]
"""A method and options that read all there is, by where it is read from."""
KINDS = ("columns", "stores", "zscore", "online", "teacher's store", "teacher")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    with nemo_stays_out():
        return make_oracles(tmp_path_factory.mktemp("oracles"))


def by_response(items: Sequence[Item]) -> dict[Any, Any]:
    """What is known of each response of each pair, whichever label it has."""
    known: dict[Any, Any] = {}
    for item in items:
        for side, response in enumerate(responses(item)):
            about: dict[str, Any] = {"rewards": [both[side] for both in rewards_of(item) or ()]}
            about["logp"] = item.numbers.get("reference.logprob") and item.numbers.get("reference.logprob")[side]
            about["values"] = item.numbers.get("teacher.value") and item.numbers.get("teacher.value")[side].tolist()
            for name, reading in item.readings.items():
                about[name] = responses(Item(reading.tokens))[side]
                about[f"{name} at"] = reading.states and reading.states[side].tolist()
            known[item.tokens.pair_id, response] = about
    assert len(known) == 2 * len(items)
    return known


@pytest.fixture(scope="module")
def settings(oracles: Oracles) -> Settings:
    setting = oracles.setting
    reference = [f"reference.scores={setting.store('score.what=[logprob]', model=setting.student)}"]
    reference.append("reference.mode=cached")
    teacher = [f"teacher.path={setting.teacher}", "algorithm.use_reference=true", "algorithm.shaping.gamma=0.9"]
    values = setting.store()
    stores = f"oracle.scores=[{oracles.store(0)},{oracles.store(1, model=oracles.other)}]"
    both = f"oracle.path=[{oracles.same},{oracles.other}]"
    return {
        "columns": ("edpo", [*reference, "oracle.mode=columns"]),
        "stores": ("edpo", [*reference, "oracle.mode=cached", stores, both]),
        "zscore": ("edpo", [*reference, "oracle.mode=cached", "oracle.normalize=zscore", stores, both]),
        "online": ("edpo", [*reference, both]),
        "teacher's store": ("tvkd", [*reference, *teacher, "teacher.mode=cached", f"teacher.scores={values}"]),
        "teacher": ("tvkd", [*reference, *teacher]),
    }


@pytest.mark.parametrize("where", KINDS)
def test_a_flipped_pair_keeps_what_was_said_of_each_response(oracles: Oracles, settings: Settings, where: str) -> None:
    algorithm, options = settings[where]

    def prepare(noise: float) -> Prepared:
        labels = [f"data.validation={oracles.judged}", f"data.label_noise={noise}", "data.label_noise_seed=2"]
        return oracles.prepare(algorithm, *options, *labels, pairs=oracles.judged)

    plain, some, all_of_them = prepare(0), prepare(0.5), prepare(1)
    chosen = [is_flipped(item.tokens.pair_id, 0.5, 2) for item in plain.train]
    assert 0 < sum(chosen) < len(TEXTS)
    for noisy, turned in ((some, chosen), (all_of_them, [True] * len(TEXTS))):
        assert by_response(noisy.train) == by_response(plain.train)
        for old, new, flipped in zip(plain.train, noisy.train, turned, strict=True):
            assert responses(new) == (responses(old)[::-1] if flipped else responses(old))
            assert new.tokens.pair_id == old.tokens.pair_id
        assert [item.tokens.source for item in noisy.flipped] == [
            item.tokens.source for item, flipped in zip(plain.train, turned, strict=True) if flipped
        ]
        pairs = zip(noisy.validation, plain.validation, strict=True)
        assert all(responses(one) == responses(other) for one, other in pairs)
        assert by_response(noisy.validation) == by_response(plain.validation)
    assert plain.flipped == []


def test_what_a_flipped_pair_holds(oracles: Oracles, settings: Settings) -> None:
    """Of the test above: the numbers are there, and those of the two responses differ."""
    prepared = {
        name: oracles.prepare(algorithm, *options, "data.label_noise=1", pairs=oracles.judged)
        for name, (algorithm, options) in settings.items()
    }
    for n, pair in enumerate(oracles.setting.two.readings):
        items = {name: made.train[n] for name, made in prepared.items()}
        assert rewards_of(items["columns"]) == ((number(0, n, 1), number(0, n, 0)),)
        assert rewards_of(items["stores"]) == tuple((number(k, n, 1), number(k, n, 0)) for k in (0, 1))
        assert items["columns"].numbers.get("reference.logprob") == (-n - 0.5, -n)
        reading = items["online"].readings["oracle/1"].tokens
        assert responses(Item(reading)) == tuple(tuple(oracle.response) for _, oracle in pair[::-1])
        states = items["teacher"].readings["teacher"].states
        assert states is not None
        assert [s.tolist() for s in states] == [states_at(*side) for side in pair[::-1]]
        values = items["teacher's store"].numbers.get("teacher.value")
        assert values is not None
        assert [v.tolist() for v in values] == [
            [1000 * n + start + state for state in states_at(*side)] for start, side in ((500, pair[1]), (0, pair[0]))
        ]


def test_a_margin_stays_the_label_s(oracles: Oracles) -> None:
    options = ["algorithm.use_margin=true", "data.label_noise=1"]
    items = oracles.prepare("reward", *options, pairs=oracles.judged).train
    assert collate(items)["columns"]["margin"].tolist() == [float(n) for n in range(len(TEXTS))]


def test_the_record_of_flipped_pairs(oracles: Oracles, tmp_path: Path) -> None:
    noise = ["data.label_noise=0.4", "data.label_noise_seed=1"]
    config = oracles.setting.training("algorithm=drdo", "oracle.mode=columns", *noise, pairs=oracles.judged)
    made = oracles.columns(*noise)
    ids = {item.tokens.source: item.tokens.pair_id for item in oracles.columns().train}
    flipped = [source for source, pair_id in ids.items() if is_flipped(pair_id, 0.4, 1)]
    assert 0 < len(flipped) < len(TEXTS)
    assert f"data.label_noise=0.4: {len(flipped)} of 8 training pairs are flipped (label_noise.json)" in made.notes
    _take(config, made, tmp_path)
    _LOCKS.pop(tmp_path)
    assert json.loads((tmp_path / "label_noise.json").read_text()) == {
        "label_noise": 0.4,
        "seed": 1,
        "pairs": 8,
        "flipped": len(flipped),
        "flipped_pairs": [{"pair_id": ids[source], "source": source} for source in flipped],
    }
    assert flipped == [f"{oracles.judged}:{line}" for line in sorted(int(source.split(":")[-1]) for source in flipped)]


def test_without_noise_there_is_no_record(oracles: Oracles, tmp_path: Path) -> None:
    config = oracles.setting.training("algorithm=drdo", "oracle.mode=columns", pairs=oracles.judged)
    _take(config, oracles.columns(), tmp_path)
    _LOCKS.pop(tmp_path)
    assert not (tmp_path / "label_noise.json").exists()
