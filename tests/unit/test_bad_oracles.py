"""Oracles that are none, heads that are missing, oracles that are too many; and what is warned of."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import STARTED, Fails, World

from nemo_tvkd.__main__ import main

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

Starts = Callable[..., list[str]]
ONLY_EDPO = "names 2 models: algorithm=drdo reads one"
NO_LM_HEAD = "is a reward model without an output layer: give a language model"
NO_REWARD_HEAD = "has no reward head: give a checkpoint that algorithm=reward or algorithm=drdo trained, or "


@pytest.fixture
def starts(capfd: pytest.CaptureFixture[str]) -> Starts:
    """Run a command that is to start its ranks; what it warned of."""

    def run(*arguments: object) -> list[str]:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == STARTED
        error = capfd.readouterr().err
        warnings = error.splitlines()
        assert all(line.startswith("warning: ") for line in warnings), error
        return warnings

    return run


def edpo(world: World, mode: str = "online") -> list[str]:
    return [*world.drdo(mode), "algorithm=edpo"]


def nemo_checkpoint(folder: Path, hf: Path, **heads: bool) -> Path:
    """What can be seen of a NeMo checkpoint from outside."""
    (folder / "weights").mkdir(parents=True)
    (folder / "context" / "hf").mkdir(parents=True)
    for file in hf.iterdir():
        if file.suffix != ".safetensors":
            (folder / "context" / "hf" / file.name).write_bytes(file.read_bytes())
    (folder / "context" / "nemo_tvkd.json").write_text(json.dumps(heads))
    return folder


# --- which heads a model has ------------------------------------------------------------------------------------------


def test_every_mode_starts_without_mistakes(world: World, starts: Starts) -> None:
    for mode in ("online", "cached", "columns"):
        assert starts(*world.drdo(mode)) == []
        assert starts(*edpo(world, mode)) == []
    for name in ("student", "teacher"):
        assert starts(*world.drdo(), f"oracle.path={world.with_reward_head(name)}") == []
    assert starts(*world.drdo("cached"), f"oracle.path={world.oracle}") == []


def test_an_oracle_without_a_reward_head(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.drdo(), f"oracle.path={world.teacher}")
    assert message.startswith(f"oracle.path: {world.teacher} {NO_REWARD_HEAD}")
    message = fails(*edpo(world), f"oracle.path=[{world.oracle},{world.teacher}]")
    assert message.startswith(f"oracle.path[1]: {world.teacher} {NO_REWARD_HEAD}")
    policy = nemo_checkpoint(tmp_path / "policy", world.student)
    assert fails(*world.drdo(), f"oracle.path={policy}").startswith(f"oracle.path: {policy} {NO_REWARD_HEAD}")


def test_a_classifier_with_two_labels(world: World, fails: Fails) -> None:
    two = world.variant("two_labels", "oracle", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    said = "a classifier with 2 labels: a reward model has num_labels=1"
    assert fails(*world.drdo(), f"oracle.path={two}") == f"oracle.path: {said}"
    assert fails(*edpo(world), f"oracle.path=[{world.oracle},{two}]") == f"oracle.path[1]: {said}"
    assert fails(*world.score(), f"score.model={two}", "score.what=[reward]") == f"score.model: {said}"
    assert fails(*world.drdo(), f"student.path={two}", "algorithm=reward") == f"student.path: {said}"


@pytest.mark.parametrize("what", ["[reward]", "[value,reward]", "[logprob,reward]"])
def test_rewards_of_a_model_without_a_reward_head(world: World, fails: Fails, starts: Starts, what: str) -> None:
    message = fails(*world.score(), f"score.what={what}")
    assert message.startswith(f"score.model: {world.teacher} {NO_REWARD_HEAD}")
    assert starts(*world.score(), f"score.what={what}", f"score.model={world.with_reward_head()}") == []


@pytest.mark.parametrize("what", ["[value]", "[logprob]", "[value,logprob]", "[value,reward]", "[logprob,reward]"])
def test_what_a_reward_model_cannot_say(world: World, fails: Fails, starts: Starts, tmp_path: Path, what: str) -> None:
    trained = nemo_checkpoint(tmp_path / "reward", world.student, lm_head=False, reward_head=True)
    for model in (world.oracle, trained):
        message = fails(*world.score(), f"score.what={what}", f"score.model={model}")
        assert message == f"score.model: {model} {NO_LM_HEAD}"
        assert starts(*world.score(), "score.what=[reward]", f"score.model={model}") == []


@pytest.mark.parametrize(
    "settings",
    [
        "algorithm=tvkd",
        "algorithm=dpo",
        "algorithm=sft",
        "algorithm=drdo",
        "algorithm=drdo algorithm.student_reward=implicit",
        "algorithm=drdo algorithm.alpha=0",
        "algorithm=edpo",
        "algorithm=reward",
        "algorithm=reward algorithm.alpha_sft=1e-9",
    ],
)
def test_a_student_that_must_be_a_language_model(world: World, fails: Fails, tmp_path: Path, settings: str) -> None:
    command = [*world.drdo(), f"teacher.path={world.teacher}", *settings.split()]
    assert fails(*command, f"student.path={world.oracle}") == f"student.path: {world.oracle} {NO_LM_HEAD}"
    trained = nemo_checkpoint(tmp_path / "reward", world.student, lm_head=False, reward_head=True)
    assert fails(*command, f"student.path={trained}") == f"student.path: {trained} {NO_LM_HEAD}"


def test_a_student_that_need_not_be_one(world: World, starts: Starts) -> None:
    """Without a language-modelling term a reward model can be trained on."""
    reward = ["train", f"data.train={world.pairs}", "trainer.global_batch_size=2", "algorithm=reward"]
    reward += [f"trainer.output_dir={world.folder / 'run'}"]
    for student in (world.oracle, world.student, world.with_reward_head()):
        assert starts(*reward, f"student.path={student}", "algorithm.alpha_sft=0") == []
    for student in (world.student, world.with_reward_head()):
        assert starts(*reward, f"student.path={student}") == []


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("teacher.path", "algorithm=tvkd"),
        ("reference.path", "algorithm=tvkd algorithm.use_reference=true"),
        ("reference.path", "algorithm=dpo"),
        ("reference.path", "algorithm=edpo"),
    ],
)
def test_a_frozen_model_that_must_be_a_language_model(world: World, fails: Fails, key: str, settings: str) -> None:
    command = [*world.drdo(), f"teacher.path={world.teacher}", *settings.split()]
    assert fails(*command, f"{key}={world.oracle}") == f"{key}: {world.oracle} {NO_LM_HEAD}"


def test_oracles_that_do_not_fit_the_layout_or_the_tokens(world: World, fails: Fails) -> None:
    odd = world.variant("odd_oracle", "oracle", num_hidden_layers=3)
    parallel = "parallel.pipeline_model_parallel_size"
    for key, path in (("oracle.path", odd), ("oracle.path[1]", f"[{world.oracle},{odd}]")):
        message = fails(*edpo(world), f"{parallel}=2", f"oracle.path={path}")
        assert message == f"{parallel}=2 does not divide the 3 layers of {key}"
    size = len(world.tokenizer)
    narrow = world.variant("narrow_oracle", "oracle", vocab_size=size - 1)
    message = fails(*world.drdo(), f"oracle.path={narrow}")
    assert message == f"oracle.path: the tokenizer has {size} entries but the model's vocabulary has {size - 1}"
    files = ("tokenizer*", "special*", "chat_template*")
    bare = world.variant("narrow_bare_oracle", "oracle", files, vocab_size=size - 1)
    message = fails(*world.drdo(), f"oracle.path={bare}")
    assert message.startswith(f"oracle.path: its vocabulary of {size - 1} is smaller than the {size} token ids")
    message = fails(*world.drdo(), f"oracle.path={bare}", "oracle.chat_template=plain")
    assert message == "oracle.tokenizer is not set, and oracle.path has none for oracle.chat_template"


# --- how many oracles, and where they are -----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["''", "[]", "null", "['']", "[null]"])
def test_no_oracle(world: World, fails: Fails, nothing: str) -> None:
    message = fails(*world.drdo(), f"oracle.path={nothing}")
    assert message == "oracle.path is not set: give a Hugging Face directory, a hub id or a NeMo checkpoint"
    for path in (nothing, world.oracle):
        message = fails(*edpo(world, "cached"), f"oracle.scores={nothing}", f"oracle.path={path}")
        assert message.startswith("oracle.scores is not set: oracle.mode=cached reads a score store that ")
    message = fails(*world.drdo("columns"), f"data.train={world.pairs}", f"oracle.path={nothing}")
    assert message.startswith(f"{world.pairs}:1: missing columns chosen_reward and rejected_reward (or ")


def test_paths_that_the_mode_does_not_read(world: World, fails: Fails) -> None:
    for name in ("path", "scores", "tokenizer", "chat_template"):
        message = fails(*world.drdo("columns"), f"oracle.{name}={world.oracle}")
        assert message == f"oracle.{name} is set but oracle.mode=columns reads the data's: choose online or cached"
    said = "oracle.scores is set but oracle.mode=online would not read it: set oracle.mode=cached"
    for command in (world.drdo(), edpo(world), [*world.drdo(), "oracle.path=''"]):
        assert fails(*command, f"oracle.scores={world.rewards}") == said
    for name in ("tokenizer", "chat_template"):
        message = fails(*world.drdo("cached"), f"oracle.{name}=plain")
        assert message.startswith("oracle.path is not set: oracle.tokenizer and oracle.chat_template say how ")


def test_several_oracles_are_edpos(world: World, fails: Fails, starts: Starts) -> None:
    two = {"path": f"[{world.oracle},{world.with_reward_head()}]", "scores": f"[{world.rewards},{world.rewards}]"}
    for mode, name in (("online", "path"), ("cached", "scores")):
        assert fails(*world.drdo(mode), f"oracle.{name}={two[name]}") == f"oracle.{name} {ONLY_EDPO}"
        assert starts(*edpo(world, mode), f"oracle.{name}={two[name]}") == []
        one = world.oracle if name == "path" else world.rewards
        assert starts(*world.drdo(mode), f"oracle.{name}=[{one}]") == []
    message = fails(*edpo(world, "cached"), f"oracle.scores={two['scores']}", f"oracle.path={world.oracle}")
    assert message == "oracle.path has 1 models and oracle.scores 2 stores: give one for each"
    message = fails(*edpo(world, "cached"), f"oracle.path={two['path']}")
    assert message == "oracle.path has 2 models and oracle.scores 1 stores: give one for each"
    both = f"[{world.oracle},{world.oracle}]"
    assert starts(*edpo(world, "cached"), f"oracle.scores={two['scores']}", f"oracle.path={both}") == []


def test_the_oracle_among_several_that_is_wrong_is_named(world: World, fails: Fails) -> None:
    assert fails(*edpo(world), f"oracle.path=[{world.oracle},/no/such]") == "oracle.path[1]: /no/such does not exist"
    message = fails(*edpo(world, "cached"), f"oracle.scores=[{world.rewards},{world.rewards},/no/such]")
    assert message.startswith("oracle.scores[2]: no score store at /no/such")
    message = fails(*edpo(world, "cached"), f"oracle.scores=[{world.rewards},{world.store}]")
    assert message.startswith(f"oracle.scores[1]: the score store {world.store} ")


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_a_rule_that_rewards_likely_rejected_responses(world: World, starts: Starts) -> None:
    """That of the released code, which its name does not say."""
    (said,) = starts(*world.drdo(), "algorithm.logprob=mean")
    assert said.startswith("warning: algorithm.logprob=mean with algorithm.contrast=ratio rewards a likely rejected ")
    for free in ("algorithm.contrast=product", "algorithm.alpha=0", "algorithm.logprob=sum"):
        assert starts(*world.drdo(), "algorithm.logprob=mean", free) == []


@pytest.mark.parametrize("algorithm", ["tvkd", "dpo", "sft", "reward"])
def test_an_oracle_that_nothing_reads(world: World, starts: Starts, algorithm: str) -> None:
    command = [*world.online(), f"algorithm={algorithm}", *["teacher.path=''"] * (algorithm != "tvkd")]
    for name in ("path", "scores", "tokenizer", "chat_template"):
        said = f"warning: oracle.{name} is set but algorithm={algorithm} does not read the oracle"
        assert starts(*command, f"oracle.{name}=/no/such") == [said]
    assert len(starts(*command, "oracle.path=[a,b]", "oracle.scores=[a]", "oracle.mode=cached")) == 2
    assert starts(*command, "oracle.mode=columns") == []
