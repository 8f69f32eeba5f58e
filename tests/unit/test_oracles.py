"""Which rewards end on which response: of columns, stores and oracles that read pairs their own way; their scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import nemo_stays_out, write_rows
from oracle_settings import Oracles, Rewards, expected, found, make_oracles, number, responses, rewards_of
from two_tokenizers import TEXTS, write_pairs

from nemo_tvkd.data.batch import Item, collate

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    with nemo_stays_out():
        return make_oracles(tmp_path_factory.mktemp("oracles"))


# --- columns and stores -----------------------------------------------------------------------------------------------


def test_columns_are_the_rewards_of_their_responses(oracles: Oracles) -> None:
    made = oracles.columns(f"data.validation={oracles.judged}")
    assert found(made.train) == found(made.validation) == expected(0)
    assert made.frozen == {}
    assert rewards_of(oracles.prepare("edpo", "oracle.mode=columns", pairs=oracles.judged).train[3]) == expected(0)[3]
    assert found(oracles.prepare("reward", pairs=oracles.judged).train) == [None] * len(TEXTS)


def test_a_store_is_joined_by_pair(oracles: Oracles, tmp_path: Path) -> None:
    """Whatever their order, also of pairs that are there twice and of some that are not."""
    store, order = oracles.store(0), [5, 2, 2, 7, 0]
    file = write_pairs(tmp_path / "some.jsonl", [TEXTS[n] for n in order])
    options = [f"data.train={file}", f"data.validation={oracles.setting.two.pairs}"]
    made = oracles.cached(store, options=options)
    assert found(made.train) == expected(0, rows=order)
    assert found(made.validation) == expected(0)


def test_several_stores_keep_their_order(oracles: Oracles) -> None:
    stores = [oracles.store(k) for k in range(3)]
    for order in ([0, 1, 2], [2, 0, 1], [1, 1]):
        items = oracles.cached(*(stores[k] for k in order)).train
        assert found(items) == [tuple(all_of_them[k] for k in order) for all_of_them in expected(0, 1, 2)]
        batch = torch.stack(list(collate(items[2:5])["numbers"].values()))
        wanted = [[number(k, n, side) for side in (0, 1) for n in (2, 3, 4)] for k in order]
        assert torch.equal(batch, torch.tensor(wanted, dtype=torch.float64))
    many = oracles.cached(*[stores[k % 3] for k in range(12)]).train  # oracle/10 comes after oracle/9
    assert found(many)[1] == tuple(expected(0, 1, 2)[1][k % 3] for k in range(12))


def test_the_margin_is_read_where_it_is_used(oracles: Oracles) -> None:
    items = oracles.prepare("reward", "algorithm.use_margin=true", pairs=oracles.judged).train
    assert collate(items)["columns"]["margin"].tolist() == [float(n) for n in range(len(TEXTS))]
    assert "columns" not in collate(oracles.prepare("reward", pairs=oracles.judged).train)


# --- oracle.normalize=zscore ------------------------------------------------------------------------------------------


def spread(oracle: int, rows: Sequence[int] = range(len(TEXTS))) -> float:
    """The population standard deviation of all rewards of rows."""
    return float(np.std([number(oracle, n, side) for n in rows for side in (0, 1)]))


def equal(one: list[Any], other: list[Rewards]) -> bool:
    return np.allclose(np.array(one), np.array(other), rtol=1e-12, atol=0)


def test_zscore_of_a_store_is_that_of_all_its_pairs(oracles: Oracles, tmp_path: Path) -> None:
    """Also of those that are not trained on; and of each oracle by its own."""
    stores = [oracles.store(k) for k in range(2)]
    file = write_pairs(tmp_path / "some.jsonl", [TEXTS[n] for n in (1, 6)])
    options = [f"data.train={file}", f"data.validation={oracles.setting.two.pairs}", "oracle.normalize=zscore"]
    made = oracles.cached(*stores, options=options)
    scale = [spread(0), spread(1)]
    assert scale[1] == pytest.approx(2 * scale[0])
    assert equal(found(made.train), expected(0, 1, rows=(1, 6), scale=scale))
    assert equal(found(made.validation), expected(0, 1, scale=scale))
    said = [note for note in made.notes if note.startswith("oracle.normalize=zscore: ")]
    assert [note.split()[-1] for note in said] == [f"{one:.6g}" for one in scale]
    assert found(oracles.cached(*stores).train) == expected(0, 1)


@pytest.mark.parametrize("noise", [0, 0.5, 1])
def test_zscore_of_columns_is_that_of_the_training_rows(oracles: Oracles, tmp_path: Path, noise: float) -> None:
    """Of those alone, and by it the validation's are divided too; which label they have changes nothing."""
    lines = oracles.judged.read_text().splitlines(keepends=True)
    file = write_rows(tmp_path / "some.jsonl", [lines[n].rstrip() for n in (0, 3, 4)])
    options = [f"data.validation={oracles.judged}", "oracle.normalize=zscore", f"data.label_noise={noise}"]
    made = oracles.columns(*options, pairs=file)
    scale = [spread(0, (0, 3, 4))]
    assert scale[0] != pytest.approx(spread(0))
    turned = {pair.tokens.source for pair in made.flipped}
    own = [rewards_of(item)[0][:: -1 if item.tokens.source in turned else 1] for item in made.train]
    assert equal([(both,) for both in own], expected(0, rows=(0, 3, 4), scale=scale))
    assert equal(found(made.validation), expected(0, scale=scale))


# --- an oracle that reads pairs its own way ---------------------------------------------------------------------------


def test_a_store_of_an_oracle_with_another_tokenizer(oracles: Oracles) -> None:
    """It is joined by the oracle's own pairs; one with the student's tokenizer beside it by the student's."""
    own, other = oracles.store(0), oracles.store(1, model=oracles.other)
    made = oracles.cached(own, other, options=[f"oracle.path=[{oracles.same},{oracles.other}]"])
    assert found(made.train) == expected(0, 1)
    assert [item.readings for item in made.train] == [{}] * len(TEXTS)
    assert "oracle.path[1] reads pairs its own way (template tokenizer)" in made.notes
    assert not [note for note in made.notes if note.startswith("oracle.path reads")]
    (cut,) = [note for note in made.notes if note.startswith("warning: ")]
    assert cut.startswith("warning: data.train: 2 of 8 pairs are cut to length")
    assert "oracle[1]'s reward" in cut


def test_a_store_of_an_oracle_with_another_template(oracles: Oracles) -> None:
    template = oracles.setting.jinja
    store = oracles.store(0, f"data.chat_template={template}")
    options = [f"oracle.path={oracles.same}", f"oracle.chat_template={template}"]
    assert found(oracles.cached(store, options=options).train) == expected(0)


@pytest.mark.parametrize("algorithm", ["drdo", "edpo"])
def test_readings_of_an_online_oracle(oracles: Oracles, algorithm: str) -> None:
    (path, name) = (oracles.other, "oracle")
    if algorithm == "edpo":
        path, name = f"[{oracles.same},{oracles.other}]", "oracle/1"
    made = oracles.prepare(algorithm, f"oracle.path={path}")
    assert made.frozen[name].path == oracles.other
    assert {*made.frozen} == {"drdo": {"oracle"}, "edpo": {"oracle", "oracle/1", "reference"}}[algorithm]
    for item, pair in zip(made.train, oracles.setting.two.readings, strict=True):
        assert rewards_of(item) is None
        assert [*item.readings] == [name]
        assert item.readings[name].states is None
        tokens = item.readings[name].tokens
        assert responses(item) == tuple(tuple(student.response) for student, _ in pair)
        assert responses(Item(tokens)) == tuple(tuple(oracle.response) for _, oracle in pair)
        assert tokens.prompt_ids.tolist() == pair[0][1].prompt
