"""How a teacher with another tokenizer or template joins a run: what it reads, what is refused, which values meet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import nemo_stays_out
from two_tokenizers import LENGTH, TEXTS, Setting, states_at, write_pairs

from nemo_tvkd.data.batch import Item
from nemo_tvkd.errors import UserError

DISCOUNTED = "algorithm.shaping.gamma=0.9"
ALIGNED = (DISCOUNTED, "algorithm.shaping.form=next_value", "algorithm.shaping.value=max algorithm.shaping.gamma=1.1")
NOT_ALIGNED = ("algorithm.shaping.gamma=1", "algorithm.shaping.value=logit", "algorithm.shaping.value=logprob")

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    with nemo_stays_out():
        return Setting(tmp_path_factory.mktemp("needs"))


def refused(run: Callable[..., object], *options: object, **kwargs: Any) -> str:
    """The one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        run(*options, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cached(store: Path) -> list[str]:
    return ["teacher.mode=cached", f"teacher.scores={store}"]


def at(values: Any) -> list[list[int]]:
    """Which states of a response (see `Setting.store`) both sides' values are from."""
    return [(np.asarray(side) % 500).astype(int).tolist() for side in values]


# --- who reads in a way of its own ------------------------------------------------------------------------------------


def test_a_teacher_with_the_student_s_tokenizer_reads_its_ids(setting: Setting) -> None:
    """Whatever the rule; also one that has no tokenizer."""
    same = setting.copy(setting.student, "same")
    bare = setting.copy(setting.teacher, "bare", "tokenizer*", "special*", "chat_template*")
    for teacher in (same, bare):
        for rule in (DISCOUNTED, "algorithm.shaping.gamma=1"):
            needs, said = setting.needs(f"teacher.path={teacher}", rule)
            assert (needs.readers, needs.aligned, said) == ({}, set(), [])
            assert needs.frozen["teacher"].path == teacher
    items = setting.prepare(f"teacher.path={same}", DISCOUNTED).train
    assert [(item.readings, item.numbers.get("teacher.value")) for item in items] == [({}, None)] * len(TEXTS)


@pytest.mark.parametrize("rule", [*ALIGNED, *NOT_ALIGNED])
def test_its_own_reading_and_whether_it_is_aligned(setting: Setting, rule: str) -> None:
    """Its own template, not data.chat_template, which is the student's; or the one that it is given."""
    same = setting.copy(setting.student, "same")
    for options in (["data.chat_template=plain"], [f"teacher.path={same}", f"teacher.chat_template={setting.jinja}"]):
        needs, said = setting.needs(*options, *rule.split())
        assert "teacher" in needs.readers
        assert needs.aligned == ({"teacher"} if rule in ALIGNED else set())
        name = setting.jinja if len(options) == 2 else "tokenizer"
        how = "aligned to the student's states by characters" if needs.aligned else "read at its own states"
        assert said == [f"teacher.path reads pairs its own way (template {name}): its values are {how}"]


def test_a_tokenizer_given_to_the_teacher(setting: Setting) -> None:
    bare = setting.copy(setting.teacher, "bare", "tokenizer*", "special*", "chat_template*")
    needs, _ = setting.needs(f"teacher.path={bare}", f"teacher.tokenizer={setting.teacher}")
    assert "teacher" in needs.readers
    assert needs.readers["teacher"].template.name == "tokenizer"
    message = refused(setting.needs, f"teacher.path={bare}", "teacher.tokenizer=/no/such")
    assert message == "teacher.tokenizer: /no/such does not exist"
    narrow = setting.copy(setting.student, "narrow")
    message = refused(setting.needs, f"teacher.path={narrow}", f"teacher.tokenizer={setting.teacher}")
    assert message == "teacher.tokenizer: the tokenizer has 330 entries but the model's vocabulary has 300"


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_how_no_teacher_reads(setting: Setting, mode: str) -> None:
    store = setting.store()
    options = ["teacher.path=''", *(cached(store) if mode == "cached" else [])]
    for key, value in (("tokenizer", setting.teacher), ("chat_template", "plain")):
        message = refused(setting.prepare, *options, f"teacher.{key}={value}")
        assert message.startswith("teacher.path is not set: ")
        assert f"teacher.{key}" in message


def test_a_teacher_s_bad_template_is_named_by_its_key(setting: Setting) -> None:
    message = refused(setting.prepare, "teacher.chat_template=/no/such.jinja")
    assert message == "teacher.chat_template=/no/such.jinja is not one of auto, plain, tokenizer nor a jinja file"


# --- both readings of a row -------------------------------------------------------------------------------------------


def check_readings(item: Item, pair: Any) -> None:
    """The ids of both models, and the states as the loop over characters finds them."""
    assert "teacher" in item.readings
    assert item.readings["teacher"].states is not None
    for who, tokens in enumerate((item.tokens, item.readings["teacher"].tokens)):
        for side, made in enumerate((tokens.chosen_ids, tokens.rejected_ids)):
            assert tokens.prompt_ids.tolist() == pair[side][who].prompt
            assert made.tolist() == pair[side][who].response
        assert tokens.truncated == any(side[who].cut for side in pair)
    for (own, other), states in zip(pair, item.readings["teacher"].states, strict=True):
        assert states.tolist() == states_at(own, other)


def test_items_of_an_online_teacher(setting: Setting) -> None:
    """And with the two models' parts exchanged."""
    items = setting.prepare(DISCOUNTED).train
    for item, pair in zip(items, setting.two.readings, strict=True):
        check_readings(item, pair)
    items = setting.prepare(DISCOUNTED, f"student.path={setting.teacher}", f"teacher.path={setting.student}").train
    for item, pair in zip(items, setting.two.readings, strict=True):
        check_readings(item, [side[::-1] for side in pair])
    for rule in NOT_ALIGNED:
        for item in setting.prepare(rule).train:
            assert "teacher" in item.readings
            assert item.readings["teacher"].states is None


def test_items_of_a_cached_teacher(setting: Setting) -> None:
    """Its store has its own pair ids; a reference's beside it has the student's."""
    store = setting.store("score.value_kind=[soft_value,logprob]")
    reference = setting.store("score.what=[logprob]", model=setting.student)
    options = ["algorithm.use_reference=true", "reference.mode=cached", f"reference.scores={reference}"]
    items = setting.prepare(DISCOUNTED, *cached(store), *options).train
    own = setting.prepare(*cached(store)).train
    actions = setting.prepare(*cached(store), "algorithm.shaping.value=logprob").train
    for n, pair in enumerate(setting.two.readings):
        assert at(items[n].numbers.get("teacher.value")) == [states_at(*side) for side in pair]
        assert at(own[n].numbers.get("teacher.value")) == [[*range(len(other.read))] for _, other in pair]
        assert at(actions[n].numbers.get("teacher.value")) == [[*range(len(other.response))] for _, other in pair]
        assert items[n].numbers.get("reference.logprob") == (-n, -n - 0.5)
        assert not items[n].readings
        values = items[n].numbers.get("teacher.value")
        assert values is not None
        assert [int(side[0]) for side in values] == [1000 * n, 1000 * n + 500]


def test_alignment_to_itself_changes_nothing(setting: Setting) -> None:
    """Where each state is alone with its characters; of a character in pieces it takes the last state."""
    same = setting.copy(setting.student, "same")
    template = f"data.chat_template={setting.jinja}"
    options = [template, DISCOUNTED, f"teacher.path={same}", *cached(setting.store(template, model=same))]
    plain = setting.prepare(*options).train
    same_way = setting.prepare(*options, f"teacher.chat_template={setting.jinja}")  # the student's: nothing of its own
    assert "its own way" not in " ".join(same_way.notes)
    twin = Path(f"{setting.jinja}.twin")
    twin.write_text(Path(setting.jinja).read_text() + "{# another file, the same text #}")
    template = f"data.chat_template={twin}"
    options = [*options[:3], *cached(setting.store(template, model=same))]
    forced = setting.prepare(*options, f"teacher.chat_template={twin}")
    assert forced.notes[0].endswith("aligned to the student's states by characters")
    whole = 0
    for one, other, pair in zip(plain, forced.train, setting.two.readings, strict=True):
        assert one.tokens.pair_id == other.tokens.pair_id
        assert one.numbers.get("teacher.value") is not None
        assert other.numbers.get("teacher.value") is not None
        for expected, found, (own, _) in zip(
            one.numbers.get("teacher.value"), other.numbers.get("teacher.value"), pair, strict=True
        ):
            assert len(expected) == len(own.read)
            alone = np.array([own.read[1:].count(read) == 1 for read in own.read])
            alone[0] = True
            assert np.array_equal(found[alone], expected[alone])
            whole += bool(alone.all())
            assert at([found, found])[0] == states_at(own, own)
    assert whole >= 5


# --- stores that do not fit -------------------------------------------------------------------------------------------


def test_a_store_of_a_teacher_that_is_not_named(setting: Setting) -> None:
    store = setting.store()
    message = refused(setting.prepare, "teacher.path=''", *cached(store))
    assert message.startswith(f"teacher.scores: the score store {store} was made with another tokenizer than student.")
    assert "set teacher.path to the model that scored" in message
    same = setting.store(model=setting.copy(setting.student, "same"))
    assert len(setting.prepare("teacher.path=''", DISCOUNTED, *cached(same)).train) == len(TEXTS)


def test_a_store_with_another_template(setting: Setting) -> None:
    store = setting.store()
    message = refused(setting.prepare, *cached(store), f"teacher.chat_template={setting.jinja}")
    assert message.startswith(f"teacher.scores: the score store {store} ")
    assert " does not fit: chat_template is " in message
    other = setting.store(f"data.chat_template={setting.jinja}")
    assert " does not fit: chat_template is " in refused(setting.prepare, *cached(other))
    assert setting.prepare(*cached(other), f"teacher.chat_template={setting.jinja}").train
    message = refused(setting.prepare, *cached(store), "teacher.chat_template=plain", "data.max_length=64")
    assert " does not fit: chat_template is " in message
    assert f"max_length is {LENGTH} in the store and 64 is expected" in message


def test_a_store_of_the_ends(setting: Setting) -> None:
    store = setting.store("score.value_storage=ends")
    for item, pair in zip(setting.prepare(*cached(store)).train, setting.two.readings, strict=True):
        assert at(item.numbers.get("teacher.value")) == [[0, len(other.read) - 1] for _, other in pair]
    for rule, said in (
        (DISCOUNTED, "gamma=0.9 and form=potential_difference"),
        (ALIGNED[1], "gamma=1 and form=next_value"),
    ):
        message = refused(setting.prepare, *cached(store), rule)
        assert message.startswith(f"teacher.scores: the score store {store} holds V(s_1) and V(s_{{T+1}}) alone")
        assert said in message
        assert "score.value_storage=all" in message


# --- rows that one of them cannot use ---------------------------------------------------------------------------------

LONG = {"teacher": "world " * 12, "student": "the others " * 9}
"""Prompts that fill data.max_length in one's tokens alone."""


@pytest.mark.parametrize("who", LONG)
@pytest.mark.parametrize("mode", ["online", "cached"])
def test_rows_that_only_one_can_use(setting: Setting, tmp_path: Path, who: str, mode: str) -> None:
    texts = [TEXTS[0], (LONG[who], "one", "two"), TEXTS[2], TEXTS[5]]
    file = write_pairs(tmp_path / "pairs.jsonl", texts)
    skip = "data.on_bad_row=skip"
    store = cached(setting.store(skip, pairs=file)) if mode == "cached" else []
    message = refused(setting.prepare, *store, pairs=file)
    assert message.startswith(f"{file}:2: the prompt's ")
    assert message.endswith(f" tokens fill data.max_length={LENGTH}")
    made = setting.prepare(*store, skip, DISCOUNTED, pairs=file)
    assert [item.tokens.source for item in made.train] == [f"{file}:{line}" for line in (1, 3, 4)]
    about = {note.startswith("for the teacher: "): note for note in made.notes if "data.train: " in note}
    assert f"skipped: 1 bad rows, first {message}" in about[who == "teacher"]
    assert about[who != "teacher"].endswith("skipped: 0 bad rows")
    for item, n in zip(made.train, (0, 2, 5), strict=True):
        if mode == "online":
            check_readings(item, setting.two.readings[n])
        else:
            assert at(item.numbers.get("teacher.value")) == [states_at(*side) for side in setting.two.readings[n]]


def test_no_row_that_both_can_use(setting: Setting, tmp_path: Path) -> None:
    texts = [(ask, "one", "two") for ask in LONG.values()]
    file = write_pairs(tmp_path / "pairs.jsonl", texts)
    message = refused(setting.prepare, "data.on_bad_row=skip", pairs=file)
    assert message == "data.train: no pair is usable with the student's and the teacher's tokenizer alike"
    message = refused(setting.prepare, "data.on_bad_row=skip", f"data.validation={file}")
    assert message.startswith("data.validation: no pair is usable ")


def test_pairs_that_are_cut_for_one_of_them(setting: Setting, tmp_path: Path) -> None:
    def warnings(*options: object) -> list[str]:
        return [note for note in setting.prepare(*options).notes if note.startswith("warning: ")]

    for rule in (DISCOUNTED, "algorithm.shaping.gamma=1"):
        (said,) = warnings(rule)
        assert said.startswith("warning: data.train: 2 of 8 pairs are cut to length by the student's tokens or the tea")
    file = write_pairs(tmp_path / "pairs.jsonl", TEXTS[-2:])
    assert [said.split(" are ")[0] for said in warnings(f"data.validation={file}")] == [
        "warning: data.train: 2 of 8 pairs",
        "warning: data.validation: 2 of 2 pairs",
    ]
    assert warnings("data.max_length=100") == []


def test_a_teacher_whose_tokenizer_is_damaged_or_missing(setting: Setting) -> None:
    damaged = setting.copy(setting.teacher, "damaged")
    next(Path(damaged).rglob("tokenizer.json")).write_text("{")
    assert refused(setting.prepare, f"teacher.path={damaged}").startswith("teacher.path: the tokenizer in ")
    bare = setting.copy(setting.student, "bare")
    for file in [*Path(bare).rglob("tokenizer*"), *Path(bare).rglob("special*"), *Path(bare).rglob("chat_template*")]:
        file.unlink()
    assert setting.prepare(f"teacher.path={bare}").train[0].readings == {}  # it reads what the student reads
    message = refused(setting.prepare, f"teacher.path={bare}", f"teacher.chat_template={setting.jinja}")
    assert message == "teacher.tokenizer is not set, and teacher.path has none for teacher.chat_template"


def test_a_teacher_that_is_said_to_have_the_students_tokenizer(setting: Setting) -> None:
    own = setting.prepare("teacher.path=" + str(setting.teacher))
    assert own.train[0].readings.keys() == {"teacher"}
    told = setting.prepare(f"teacher.path={setting.teacher}", f"teacher.tokenizer={setting.student}")
    assert told.train[0].readings == {}
