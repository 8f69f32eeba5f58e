"""Every mistake a user can make before ranks start: exit code 2 and one line on stderr that names key, file or row.

The commands run in this process with the start of ranks replaced by a sentinel, so that a mistake that goes unnoticed
shows as that, and NeMo is never imported.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from omegaconf import OmegaConf

from nemo_tvkd.__main__ import RUNNERS, main
from nemo_tvkd.compose import compose
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.tvkd import FORMS, TERMINALS
from nemo_tvkd.parallel.vocab import VALUE_KINDS
from nemo_tvkd.runtime.exits import guarded
from nemo_tvkd.scores.job import prepare_scoring
from nemo_tvkd.scores.store import PairScores, StoreWriter
from nemo_tvkd.values import CHOICES, NOT_NEGATIVE, POSITIVE, RANGES

REPOSITORY = Path(__file__).resolve().parents[2]
STARTED = 77
"""What a command returns here when it found no mistake and would start its ranks."""

PAIRS = [
    {"prompt": f"What colour is the {thing}?", "chosen": f"The {thing} is painted red.", "rejected": "A dull question."}
    for thing in ("lamp", "box", "chair", "table")
]


# --- the world: real checkpoints, a tokenizer, pairs, a store ------------------------------------------------------


class World:
    """Tiny checkpoints with a real tokenizer, four pairs and a score store, all of which fit together."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(REPOSITORY / "launch"))
        try:
            from demo_data import make_tokenizer
        finally:
            sys.path.pop(0)
        self.folder = folder
        self.scored = 0
        self.tokenizer = make_tokenizer()
        size = len(self.tokenizer)
        self.student = self._checkpoint("student", ref.tiny_llama(1, vocab=size))
        self.teacher = self._checkpoint("teacher", ref.tiny_llama(2, vocab=size, hidden=48, layers=4))
        self.pairs = write_rows(folder / "pairs.jsonl", PAIRS)
        self.store = self.make_store("store")

    def _checkpoint(self, name: str, model: Any) -> Path:
        model.save_pretrained(self.folder / name)
        self.tokenizer.save_pretrained(self.folder / name)
        return self.folder / name

    def variant(self, name: str, source: str = "student", without: tuple[str, ...] = (), **config: Any) -> Path:
        """A copy of a checkpoint with other entries in its config.json; its weights are never read here."""
        path = self.folder / name
        if not path.exists():
            shutil.copytree(getattr(self, source), path)
            for pattern in without:
                for file in path.glob(pattern):
                    file.unlink()
            entries = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(entries | config))
        return path

    def other_tokenizer(self) -> Path:
        """The teacher with two words of its vocabulary exchanged: of equal size, and yet another tokenizer."""
        path = self.variant("other_tokenizer", "teacher")
        content = json.loads((path / "tokenizer.json").read_text())
        words = content["model"]["vocab"]
        one, two = list(words)[-2:]
        words[one], words[two] = words[two], words[one]
        (path / "tokenizer.json").write_text(json.dumps(content))
        return path

    def make_store(self, name: str, **changed: Any) -> Path:
        """A finished store of the teacher's values; `changed` fields of its identity do not fit."""
        path = self.folder / name
        job = prepare_scoring(compose("score", self.score()[1:]))
        identity = replace(job.identity, **changed)
        writer = StoreWriter(path, identity, [row.pair_id for row in job.rows], part_size=3)
        writer.prepare()
        rows = []
        for row in job.rows:
            assert row.rejected_ids is not None
            scores = PairScores(row.pair_id)
            if "value" in identity.what:
                scores.chosen_value = np.zeros(len(row.chosen_ids) + 1, dtype=np.float32)
                scores.rejected_value = np.zeros(len(row.rejected_ids) + 1, dtype=np.float32)
            if "logprob" in identity.what:
                scores.chosen_logprob = scores.rejected_logprob = -1.0
            rows.append(scores)
        for part in writer.parts():
            writer.write_part(part, rows[3 * part : 3 * part + 3])
        writer.finish()
        return path

    def online(self) -> list[str]:
        """A training command without mistakes."""
        arguments = [f"student.path={self.student}", f"teacher.path={self.teacher}", f"data.train={self.pairs}"]
        return ["train", *arguments, "trainer.global_batch_size=2", f"trainer.output_dir={self.folder / 'run'}"]

    def cached(self) -> list[str]:
        return [*self.online(), "teacher.mode=cached", f"teacher.scores={self.store}"]

    def score(self) -> list[str]:
        self.scored += 1
        arguments = [f"score.model={self.teacher}", f"data.train={self.pairs}"]
        return ["score", *arguments, f"score.output={self.folder / f'new_store_{self.scored}'}"]

    def evaluate(self) -> list[str]:
        return ["evaluate", f"checkpoint={self.student}", f"data.validation={self.pairs}"]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; a row that is text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def _without_nemo() -> Iterator[None]:
    """Nothing in this file may import NeMo (whatever ran in this process before)."""
    before = "nemo" in sys.modules
    yield
    assert before or "nemo" not in sys.modules


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_tvkd.runtime import launch

    def joined(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this process would become a rank")

    monkeypatch.setattr(launch, "run", lambda entry, args, ranks: STARTED)
    monkeypatch.setattr(launch, "join", joined)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # conversions set it
    for name in [*os.environ]:
        if name in ("RANK", "WORLD_SIZE", "NEMO_TVKD_DEBUG") or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


Fails = Callable[..., str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must find a mistake; its line without the "nemo-tvkd: "."""

    def run(*arguments: Any) -> str:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        error = capfd.readouterr().err
        assert code == 2, f"exit code {code}, stderr: {error}"
        assert error.endswith("\n")
        assert error.count("\n") == 1, f"not one line: {error}"
        assert error.startswith("nemo-tvkd: ")
        return error.removeprefix("nemo-tvkd: ").rstrip("\n")

    return run


def test_commands_without_mistakes_start(world: World) -> None:
    for command in (world.online(), world.cached(), world.score(), world.evaluate()):
        assert main(command) == STARTED
    assert main([*world.online(), "algorithm=dpo", "algorithm.label_smoothing=0.1"]) == STARTED
    assert main([*world.online(), "algorithm=sft"]) == STARTED


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train trainer.max_step=3", "unknown key trainer.max_step; did you mean trainer.max_steps?"),
        ("train traner.seed=3", "unknown key traner.seed; did you mean trainer.seed?"),
        ("train algoritm=dpo", "unknown key algoritm; did you mean algorithm?"),
        ("train trainer.lr=1", "unknown key trainer.lr; did you mean optim.lr?"),
        ("train algorithm.gamma=1", "unknown key algorithm.gamma; did you mean algorithm.shaping.gamma?"),
        ("train beta=1", "unknown key beta; did you mean algorithm.beta?"),
        ("train algorithm=dpo algorithm.alpha=1", "unknown key algorithm.alpha; did you mean "),
        ("train zzz=1", "unknown key zzz; see --cfg job for all keys"),
        ("train trainer={seeed:1}", "trainer.seeed: Key 'seeed' not in 'TrainerConfig'"),
        ("score score.waht=[value]", "unknown key score.waht; did you mean score.what?"),
        ("score algorithm=dpo", "unknown key algorithm; "),
        ("evaluate chekpoint=a", "unknown key chekpoint; did you mean checkpoint?"),
        ("import-hf sorce=a", "unknown key sorce; did you mean source?"),
        ("export-hf chekpoint=a", "unknown key chekpoint; did you mean checkpoint?"),
    ],
)
def test_unknown_key_names_the_nearest(fails: Fails, arguments: str, message: str) -> None:
    assert fails(*arguments.split()).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("zzz", "unknown command zzz; see --help"),
        ("train algorithm=foo", "algorithm=foo is none of the known algorithms: tvkd, dpo, sft"),
        ("train algorithm=", "algorithm= is none of the known algorithms: tvkd, dpo, sft"),
        ("train algorithm.name=dpo", "algorithm.name=dpo: choose the method by algorithm=tvkd|dpo|sft"),
        ("train trainer.max_steps=abc", "trainer.max_steps: Value 'abc' of type 'str' could not be converted"),
        ("train trainer.max_steps=1.5", "trainer.max_steps: Value '1.5' of type 'float' could not be converted"),
        ("train optim.lr=fast", "optim.lr: Value 'fast' of type 'str' could not be converted"),
        ("train optim.betas=[a,b]", "optim.betas[0]: Value 'a' of type 'str' could not be converted"),
        ("train optim.betas=0.9", "optim.betas: Invalid value assigned"),
        ("train parallel.sequence_parallel=maybe", "parallel.sequence_parallel: Value 'maybe' is not a valid bool"),
        ("train trainer=3", "trainer: Invalid type assigned"),
        ("train student.path=null", "field 'student.path' is not Optional"),
        ("train data.train=a=b", "data.train: 'a=b' cannot be read: text is quoted twice, as in \"data.train='a=b'\""),
        ("train data.train=[a", "data.train: '[a' cannot be read"),
        ("train student.path='a", 'student.path: "\'a" cannot be read'),
        ("train data.train=a,b", "data.train: 'a,b' is several values: a list is written [a,b], text as "),
        ("train data.train=${foo}", "data.train: Interpolation key 'foo' not found"),
        ("train data.train=[a,${oc.env:NO_SUCH}]", "data.train: KeyError raised while resolving interpolation"),
        ("train trainer.seed=???", "trainer.seed: Missing mandatory value"),
        ("train trainer.seed", "'trainer.seed' is no override: write key=value"),
        ("train --verbose", "'--verbose' is no override: write key=value"),
        ("train =3", "'=3' is no override: write key=value"),
        ("train ~trainer.seed=42", "'~trainer.seed=42' is no override: write key=value"),
        ("train ++zzz=1", "'++zzz=1' is no override: write key=value"),
        ("train algorithm={name:foo}", "algorithm.name=foo: choose the method by algorithm=tvkd|dpo|sft"),
        ("train --from", "--from needs a value"),
        ("train --from /no/such/run", "--from: /no/such/run/config.yaml does not exist"),
        ("train --cfg all", "--cfg all is not known: --cfg job"),
        ("score --from run", "--from repeats a training run; score has none"),
    ],
)
def test_command_line(fails: Fails, arguments: str, message: str) -> None:
    assert fails(*arguments.split()).startswith(message)


@pytest.mark.parametrize("content", ["a: [", "", "- 1\n", "trainer: {seed: 1}\n", "algorithm: 3\n"])
def test_from_a_file_that_is_no_configuration(fails: Fails, tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert fails("train", "--from", tmp_path) == f"--from: {file} is not the config.yaml of a run"


COMMAND_OF_SECTION = {"score": "score", "precision": "evaluate", "micro_batch_size": "evaluate", "beta": "evaluate"}


@pytest.fixture(scope="module")
def defaults() -> dict[tuple[str, ...], Any]:
    """The configurations of some commands, so that a hundred values are tried in seconds."""
    commands = (("train",), ("train", "algorithm=dpo"), ("score",), ("evaluate",))
    return {command: compose(command[0], list(command[1:])) for command in commands}


@pytest.fixture
def refused(defaults: dict[tuple[str, ...], Any], capfd: pytest.CaptureFixture[str]) -> Callable[[str, Any], str]:
    """The line with which the command that has this key refuses the value."""

    def run(key: str, value: Any) -> str:
        command = COMMAND_OF_SECTION.get(key.split(".")[0], "train")
        method = ["algorithm=dpo"] if key == "algorithm.label_smoothing" else []
        config = deepcopy(defaults[(command, *method)])
        OmegaConf.update(config, key, value)
        assert guarded(RUNNERS[command], config) == 2
        error = capfd.readouterr().err
        assert error.startswith("nemo-tvkd: ")
        assert error.count("\n") == 1
        return error.removeprefix("nemo-tvkd: ").rstrip()

    return run


@pytest.mark.parametrize("key", CHOICES)
def test_choices(refused: Callable, key: str) -> None:
    assert refused(key, "wrong") == f"{key}=wrong is none of {', '.join(CHOICES[key])}"


def test_choices_are_the_documented_ones(fails: Fails) -> None:
    assert CHOICES["trainer.precision"] == ("bf16", "fp32")
    assert set(VALUE_KINDS) == {"soft_value", "max", "margin", "expectation", "logit", "logprob"}
    assert set(FORMS) == {"potential_difference", "next_value"}
    assert set(TERMINALS) == {"bootstrap", "zero"}
    assert fails("train", "optim.schedule=fast") == "optim.schedule=fast is none of constant, linear, cosine"


@pytest.mark.parametrize("key", POSITIVE)
def test_what_must_be_positive(refused: Callable, key: str) -> None:
    for value in (0, -1):
        assert refused(key, value) in (f"{key}={value} must be positive", f"{key}={float(value)} must be positive")


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_what_must_not_be_negative(refused: Callable, key: str) -> None:
    assert refused(key, -1) in (f"{key}=-1 must be 0 or positive", f"{key}=-1.0 must be 0 or positive")


@pytest.mark.parametrize("key", RANGES)
def test_what_must_lie_in_a_range(refused: Callable, key: str) -> None:
    for value in (-0.1, 1.1, math.nan):
        assert refused(key, value).startswith(f"{key}={value} must lie between 0 and ")


@pytest.mark.parametrize("key", ["optim.lr", "algorithm.beta", "algorithm.alpha", "optim.clip_grad"])
def test_numbers_are_finite(refused: Callable, key: str) -> None:
    for value in (math.nan, math.inf):
        assert refused(key, value).startswith(f"{key}={value} must be ")


@pytest.mark.parametrize("value", [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, 0.9, 0.9]])
def test_betas(refused: Callable, value: list[float]) -> None:
    assert refused("optim.betas", value) == f"optim.betas={value} must be two numbers of at least 0 and less than 1"


@pytest.mark.parametrize("command", ["online", "score", "evaluate"])
def test_parallel_combinations(world: World, fails: Fails, command: str) -> None:
    arguments = getattr(world, command)()
    assert fails(*arguments, "parallel.sequence_parallel=true").startswith("parallel.sequence_parallel=true needs ")
    assert fails(*arguments, "parallel.context_parallel_size=2").startswith("parallel.context_parallel_size > 1 is not")


# --- checkpoints --------------------------------------------------------------------------------------------------

CHECKPOINT_KEYS = {
    "student.path": "online",
    "teacher.path": "online",
    "score.model": "score",
    "checkpoint": "evaluate",
    "reference": "evaluate",
}


@pytest.mark.parametrize("key", CHECKPOINT_KEYS)
def test_paths_that_are_no_checkpoint(world: World, fails: Fails, tmp_path: Path, key: str) -> None:
    command = getattr(world, CHECKPOINT_KEYS[key])()
    if key != "reference":  # which may be empty
        assert fails(*command, f"{key}=''").startswith(f"{key} is not set: give a Hugging Face directory")
    assert fails(*command, f"{key}=/no/such/model") == f"{key}: /no/such/model does not exist"
    assert fails(*command, f"{key}=some/model").startswith(f"{key}: some/model is neither a local path nor a hub id")
    assert fails(*command, f"{key}={tmp_path}").startswith(f"{key}: {tmp_path} is no checkpoint: expected")
    bare = world.variant("bare", without=("*.safetensors",))
    assert fails(*command, f"{key}={bare}") == f"{key}: {bare} has a config.json but no *.safetensors weights"
    message = fails(*command, f"{key}={world.variant('gpt2', model_type='gpt2')}")
    assert message == f"{key}: model type 'gpt2' is not supported: llama and mistral are"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_bias": True}, "attention_bias and mlp_bias are not supported"),
        ({"mlp_bias": True}, "attention_bias and mlp_bias are not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: silu is"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' is not supported: default, linear and llama3 are",
        ),
    ],
)
def test_architectures(world: World, fails: Fails, config: dict[str, Any], message: str) -> None:
    path = world.variant(f"architecture-{next(iter(config))}", **config)
    assert fails(*world.online(), f"student.path={path}") == f"student.path: {message}"


def test_damaged_checkpoints(world: World, fails: Fails, tmp_path: Path) -> None:
    unknown = world.variant("unknown_type", model_type="zzz")
    message = fails(*world.online(), f"student.path={unknown}")
    assert message.startswith(f"{unknown}/config.json is not a model's config: ")
    assert "zzz" in message
    broken = world.variant("broken")
    (broken / "config.json").write_text("{")
    message = fails(*world.online(), f"student.path={broken}")
    assert message.startswith(f"{broken}/config.json is not a model's config: ")
    sharded = world.variant("sharded")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    message = fails(*world.online(), f"student.path={sharded}")
    assert message == f"student.path: {sharded} lacks model-2.safetensors, one of the 2 files in {index.name}"
    index.write_text("{")
    message = fails(*world.online(), f"student.path={sharded}")
    assert message == f"student.path: {index} is not a readable index of weight files"


def test_nemo_checkpoints(world: World, fails: Fails, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-00000002.incomplete").mkdir(parents=True)
    message = fails(*world.online(), f"student.path={run}")
    assert message == f"student.path: {run} is a run without a complete checkpoint"
    foreign = tmp_path / "foreign"
    (foreign / "weights").mkdir(parents=True)
    (foreign / "context").mkdir()
    message = fails(*world.online(), f"student.path={foreign}")
    assert message.startswith(f"student.path: NeMo checkpoint {foreign} has no context/hf/config.json")


def test_tokenizers(world: World, fails: Fails, tmp_path: Path) -> None:
    for command, key in (("online", "student.tokenizer"), ("score", "score.tokenizer"), ("evaluate", "tokenizer")):
        arguments = getattr(world, command)()
        assert fails(*arguments, f"{key}=/no/such") == f"{key}: /no/such does not exist"
        assert fails(*arguments, f"{key}={tmp_path}").startswith(f"{key}: {tmp_path} is no tokenizer: give ")
    size = len(world.tokenizer)
    narrow = world.variant("narrow", vocab_size=size - 1)
    message = fails(*world.online(), f"student.path={narrow}")
    wrong = f"the tokenizer has {size} entries but the model's vocabulary has {size - 1}"
    assert message == f"student.tokenizer: {wrong}"
    assert fails(*world.score(), f"score.model={narrow}") == f"score.tokenizer: {wrong}"
    assert fails(*world.evaluate(), f"checkpoint={narrow}") == f"tokenizer: {wrong}"
    without = world.variant("without_tokenizer", without=("tokenizer*", "special*", "chat_template*"))
    assert fails(*world.online(), f"student.path={without}").startswith(f"student.tokenizer: {without} is no tokenizer")


def test_vocabularies_of_online_models(world: World, fails: Fails) -> None:
    size = len(world.tokenizer)
    narrow = world.variant("narrow_teacher", "teacher", vocab_size=size - 1)
    message = fails(*world.online(), f"teacher.path={narrow}")
    assert message == (
        f"teacher.path: its vocabulary of {size - 1} is smaller than the {size} token ids it would read: "
        "it must share student.path's tokenizer"
    )
    other = world.other_tokenizer()
    message = fails(*world.online(), f"teacher.path={other}")
    assert message == "teacher.path: its tokenizer is not student.path's, whose token ids it would read"
    message = fails(*world.online(), "algorithm=dpo", f"reference.path={other}")
    assert message == "reference.path: its tokenizer is not student.path's, whose token ids it would read"


def test_vocabularies_that_may_differ(world: World) -> None:
    """A model may have more columns than tokens, and a method that has no teacher does not look at one."""
    wide = world.variant("wide_teacher", "teacher", vocab_size=1000)
    assert main([*world.online(), f"teacher.path={wide}"]) == STARTED
    assert main([*world.online(), "algorithm=dpo", "teacher.path=/no/such"]) == STARTED


# --- layouts and batches -------------------------------------------------------------------------------------------

TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        ({}, f"{TP}=3", f"{TP}=3 does not divide the 4 attention heads of "),
        ({}, f"{TP}=4", f"{TP}=4 does not divide the 2 key/value heads of "),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            f"{TP}=3",
            f"{TP}=3 does not divide the 1024 padded vocabulary entries of ",
        ),
        ({"intermediate_size": 65}, f"{TP}=2", f"{TP}=2 does not divide the 65 feed-forward columns of "),
        ({"num_hidden_layers": 3}, f"{PP}=2", f"{PP}=2 does not divide the 3 layers of "),
    ],
)
@pytest.mark.parametrize("key", ["student.path", "score.model", "checkpoint"])
def test_layouts(world: World, fails: Fails, key: str, config: dict, layout: str, message: str) -> None:
    path = world.variant("layout-" + "-".join(config), **config)
    assert fails(*getattr(world, CHECKPOINT_KEYS[key])(), layout, f"{key}={path}") == message + key


@pytest.mark.parametrize("key", ["teacher.path", "reference"])
def test_layouts_of_the_other_model(world: World, fails: Fails, key: str) -> None:
    """Where the student fits, it is the teacher that is named."""
    odd = world.variant("odd", num_hidden_layers=3)
    assert fails(*getattr(world, CHECKPOINT_KEYS[key])(), f"{PP}=2", f"{key}={odd}") == (
        f"{PP}=2 does not divide the 3 layers of {key}"
    )


def test_batches(world: World, fails: Fails) -> None:
    two = "parallel.data_parallel_size=2"
    message = fails(*world.online(), two, "trainer.global_batch_size=4", "trainer.micro_batch_size=4")
    assert message == (
        "trainer.global_batch_size=4 is not divisible by trainer.micro_batch_size=4 x 2 data-parallel replicas"
    )
    message = fails(*world.online(), two, "trainer.global_batch_size=3")
    assert message.startswith("trainer.global_batch_size=3 is not divisible by trainer.micro_batch_size=1 x 2 ")
    assert main([*world.online(), two, "trainer.global_batch_size=4", "trainer.micro_batch_size=2"]) == STARTED
    message = fails(*world.online(), "trainer.global_batch_size=64")
    assert message.startswith("trainer.global_batch_size=64 is more than the 4 rows of 1 epochs")
    assert main([*world.online(), "trainer.global_batch_size=8", "trainer.max_epochs=2"]) == STARTED


def test_launcher_that_does_not_fit(world: World, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for command in (world.online(), world.score(), world.evaluate()):
        message = fails(*command, f"{TP}=2")
        assert message.startswith("3 ranks were started but parallel.tensor_model_parallel_size x ")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main([*world.online(), f"{TP}=2"]) == STARTED
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert fails(*world.online(), f"{TP}=2").startswith("3 ranks were started but ")


def test_only_rank_zero_speaks(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*world.online(), "student.path=/no/such"]) == 2
    assert capfd.readouterr() == ("", "")


def test_used_output_directory(world: World, fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    command = [*world.online(), f"trainer.output_dir={tmp_path}"]
    message = fails(*command, "trainer.resume=never")
    assert message.startswith(f"trainer.output_dir: {tmp_path} holds a run; remove it, or use trainer.resume=auto")
    assert main(command) == STARTED


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": }', "unreadable JSON: Expecting value at column 12"),
        ("[1, 2]", "the row is a list, not an object with named columns"),
        ({"prompt": "a", "chosen": "b"}, "missing column rejected: a pair needs chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected: the response is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are identical: 'b'"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is null"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected is a number: it must be text"),
    ],
)
@pytest.mark.parametrize("command", ["online", "score", "evaluate", "validation"])
def test_bad_rows(world: World, fails: Fails, tmp_path: Path, command: str, bad: Any, message: str) -> None:
    file = write_rows(tmp_path / "bad.jsonl", [*PAIRS[:2], bad, PAIRS[2], PAIRS[3]])
    key = "data.validation" if command in ("evaluate", "validation") else "data.train"
    arguments = world.online() if command == "validation" else getattr(world, command)()
    assert fails(*arguments, f"{key}={file}").startswith(f"{file}:3: {message}")
    assert main([*arguments, f"{key}={file}", "data.on_bad_row=skip"]) == STARTED


def test_prompt_that_fills_max_length(world: World, fails: Fails, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "long.jsonl", [PAIRS[0], {**PAIRS[1], "prompt": "lamp " * 40}])
    message = fails(*world.online(), f"data.train={file}", "data.max_length=30")
    assert message.startswith(f"{file}:2: the prompt's ")
    assert message.endswith(" tokens fill data.max_length=30")
    assert main([*world.online(), f"data.train={file}", "data.max_length=30", "data.max_prompt_length=20"]) == STARTED


@pytest.mark.parametrize("command", ["online", "score", "evaluate", "validation"])
def test_files(world: World, fails: Fails, tmp_path: Path, command: str) -> None:
    key = "data.validation" if command in ("evaluate", "validation") else "data.train"
    arguments = world.online() if command == "validation" else getattr(world, command)()
    if command != "validation":  # training needs none
        for nothing in ("''", "[]", "null"):
            assert fails(*arguments, f"{key}={nothing}").startswith(f"{key} is not set: give a JSONL or Parquet file")
    for wrong in ("3", "{a:b}", "[1]", "true"):
        assert fails(*arguments, f"{key}={wrong}").endswith(" must be a path or a list of paths")
    assert fails(*arguments, f"{key}=/no/such.jsonl") == f"{key}: /no/such.jsonl does not exist"
    both = fails(*arguments, f"{key}=[{world.pairs},/no/such.jsonl]")
    assert both == f"{key}: /no/such.jsonl does not exist"
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert fails(*arguments, f"{key}={empty}") == f"{key}: {empty} is empty: it holds no rows"
    text = write_rows(tmp_path / "pairs.txt", PAIRS)
    assert fails(*arguments, f"{key}={text}").startswith(f"{key}: {text} has an unknown extension; known are .jsonl")
    parquet = write_rows(tmp_path / "pairs.parquet", ["no parquet"])
    assert fails(*arguments, f"{key}={parquet}").startswith(f"{key}: {parquet} cannot be read: ")


def test_chat_templates(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.online(), "data.chat_template=/no/such.jinja")
    assert message.startswith("data.chat_template=/no/such.jinja is none of auto, plain, tokenizer and no readable")
    template = tmp_path / "wrong.jinja"
    template.write_text("{% for %}")
    assert fails(*world.online(), f"data.chat_template={template}").startswith(f"data.chat_template={template}: line 1")
    bare = world.variant("without_template", without=("chat_template.jinja",))
    message = fails(*world.online(), f"student.path={bare}", "data.chat_template=tokenizer")
    assert message.startswith("data.chat_template=tokenizer: the tokenizer has no chat template")


# --- score stores -------------------------------------------------------------------------------------------------


def test_cached_teacher_without_a_store(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails(*world.cached(), "teacher.scores=''")
    assert message.startswith("teacher.scores is not set: teacher.mode=cached reads a score store")
    message = fails(*world.cached(), f"teacher.scores={tmp_path}")
    assert message.startswith(f"teacher.scores: no score store at {tmp_path}")
    message = fails(*world.cached(), "algorithm=dpo", "reference.mode=cached")
    assert message.startswith("reference.scores is not set: reference.mode=cached reads a score store")


def test_damaged_stores(world: World, fails: Fails, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(world.store, unfinished)
    (unfinished / "manifest.json").unlink()
    message = fails(*world.cached(), f"teacher.scores={unfinished}")
    assert message.startswith(f"teacher.scores: the score store {unfinished} is unfinished")
    truncated = tmp_path / "truncated"
    shutil.copytree(world.store, truncated)
    shard = truncated / "part-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    message = fails(*world.cached(), f"teacher.scores={truncated}")
    assert message.startswith(f"teacher.scores: {shard} is truncated or corrupted")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.5}, "temperature is 0.5 in the store and 0.01 is expected"),
        ({"value_kind": "max", "temperature": 1.0}, 'value_kind is "max" in the store and "soft_value" is expected'),
        ({"max_length": 512}, "max_length is 512 in the store and 1024 is expected"),
        ({"max_prompt_length": 100}, "max_prompt_length is 100 in the store and 1023 is expected"),
        ({"what": ("logprob",)}, 'what is ["logprob"] in the store and ["value"] is missing'),
        ({"weights": "0" * 64}, f'weights is "{"0" * 64}" in the store and "'),
        ({"tokenizer": "other"}, 'tokenizer is "other" in the store and "'),
        ({"chat_template": "plain"}, 'chat_template is "plain" in the store and "'),
    ],
)
def test_stores_that_do_not_fit(world: World, fails: Fails, changed: dict[str, Any], message: str) -> None:
    name = "store-" + "-".join(changed)
    store = world.make_store(name, **changed)
    said = fails(*world.cached(), f"teacher.scores={store}")
    assert said.startswith(f"teacher.scores: the score store {store} (scored by {world.teacher}) does not fit: ")
    assert message in said


def test_store_of_another_teacher(world: World, fails: Fails) -> None:
    """The weights are what counts: the same ones under another name fit, and without teacher.path nobody asks."""
    message = fails(*world.cached(), f"teacher.path={world.student}")
    assert message.startswith("teacher.scores: the score store ")
    assert " weights is " in message
    assert main([*world.cached(), f"teacher.path={world.variant('renamed', 'teacher')}"]) == STARTED
    assert main([*world.cached(), "teacher.path=''"]) == STARTED


def test_settings_that_leave_the_store(world: World, fails: Fails) -> None:
    message = fails(*world.cached(), "algorithm.beta=0.1")
    assert "temperature is 0.01 in the store and 0.1 is expected" in message
    assert main([*world.cached(), "algorithm.beta=0.1", "algorithm.shaping.temperature=0.01"]) == STARTED
    message = fails(*world.cached(), "algorithm.shaping.value=margin")
    assert 'value_kind is "soft_value" in the store and "margin" is expected' in message
    assert "max_length is 1024 in the store and 256 is expected" in fails(*world.cached(), "data.max_length=256")
    assert "chat_template is " in fails(*world.cached(), "data.chat_template=plain")
    free = ["alpha=2", "shaping.gamma=0.9", "shaping.form=next_value", "shaping.terminal=zero"]
    assert main([*world.cached(), *(f"algorithm.{option}" for option in free)]) == STARTED


def test_store_of_other_data(world: World, fails: Fails, tmp_path: Path) -> None:
    new = {**PAIRS[0], "chosen": "The lamp is painted blue."}
    file = write_rows(tmp_path / "more.jsonl", [*PAIRS, new, {**new, "rejected": "No."}])
    message = fails(*world.cached(), f"data.train={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")
    message = fails(*world.cached(), f"data.validation={file}")
    assert message.startswith(f"teacher.scores: 2 of 6 pairs are not in the store {world.store}, first {file}:5; ")


def test_score(world: World, fails: Fails) -> None:
    assert fails(*world.score(), "score.what=[value,foo]") == "score.what=foo is none of value, logprob"
    assert fails(*world.score(), "score.what=[]") == "score.what is empty: choose from value, logprob"
    assert fails(*world.score(), "score.what=value").startswith("score.what: Invalid value assigned")
    assert fails(*world.score(), "score.output=''").startswith("score.output is not set: give the directory")


def test_score_into_another_store(world: World, fails: Fails) -> None:
    message = fails(*world.score(), f"score.output={world.store}", "score.temperature=0.5", "score.part_size=3")
    assert message.startswith(f"score.output: {world.store} holds other scores: temperature is 0.01 there and 0.5 here")
    message = fails(*world.score(), f"score.output={world.student}")
    assert message.startswith(f"score.output: {world.student} is not empty and holds no score store")


# --- conversions --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nemo_checkpoint(world: World) -> Path:
    """What a NeMo checkpoint looks like from outside."""
    path = world.folder / "nemo"
    (path / "weights").mkdir(parents=True)
    shutil.copytree(world.student, path / "context" / "hf")
    return path


def test_import(world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path) -> None:
    output = f"output={tmp_path / 'new'}"
    assert fails("import-hf", output).startswith("source is not set: give ")
    assert fails("import-hf", "source=/no/such", output) == "source: /no/such does not exist"
    assert fails("import-hf", f"source={tmp_path}", output).startswith(f"source: {tmp_path} is no checkpoint")
    message = fails("import-hf", f"source={nemo_checkpoint}", output)
    assert message == f"source: {nemo_checkpoint} is a NeMo checkpoint already"
    gpt2 = world.variant("gpt2", model_type="gpt2")
    assert fails("import-hf", f"source={gpt2}", output).startswith("source: model type 'gpt2' is not supported")
    assert fails("import-hf", f"source={world.student}").startswith("output is not set: give ")
    message = fails("import-hf", f"source={world.student}", f"output={tmp_path}")
    assert message == f"output: {tmp_path} exists; remove it or choose another name"


def test_import_with_a_tokenizer_that_is_none(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails("import-hf", f"source={world.student}", f"output={tmp_path / 'new'}", "tokenizer=/no/such")
    assert message == "tokenizer: /no/such does not exist"


def test_export(world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path) -> None:
    output = f"output={tmp_path / 'new'}"
    assert fails("export-hf", output).startswith("checkpoint is not set: give ")
    assert fails("export-hf", "checkpoint=/no/such", output) == "checkpoint: /no/such does not exist"
    message = fails("export-hf", f"checkpoint={world.student}", output)
    assert message == f"checkpoint: {world.student} is a Hugging Face directory already"
    assert fails("export-hf", f"checkpoint={nemo_checkpoint}").startswith("output is not set: give ")
    message = fails("export-hf", f"checkpoint={nemo_checkpoint}", f"output={tmp_path}")
    assert message == f"output: {tmp_path} exists; remove it or choose another name"


def test_conversions_are_one_process(
    world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = f"output={tmp_path / 'new'}"
    for command in (["import-hf", f"source={world.student}"], ["export-hf", f"checkpoint={nemo_checkpoint}"]):
        assert fails(*command, output).startswith("conversions run as one process")


def test_evaluate_reference_with_another_vocabulary(world: World, fails: Fails) -> None:
    narrow = world.variant("narrow_teacher", "teacher", vocab_size=len(world.tokenizer) - 1)
    assert fails(*world.evaluate(), f"reference={narrow}").startswith("reference: its vocabulary of ")
    other = world.other_tokenizer()
    assert fails(*world.evaluate(), f"reference={other}").startswith("reference: its tokenizer is not checkpoint's")


# --- how mistakes and help are shown ------------------------------------------------------------------------------


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NEMO_TVKD_DEBUG", "1")
    assert main(["train", "student.path=/no/such"]) == 2
    error = capfd.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.rstrip().endswith("UserError: student.path: /no/such does not exist")


def test_a_message_is_one_line_whatever_it_quotes(fails: Fails) -> None:
    assert fails("train", "student.path='/no\nsuch'") == "student.path: /no such does not exist"


def test_messages_are_raised_as_user_errors() -> None:
    with pytest.raises(UserError, match=r"^unknown key trainer\.sed; did you mean trainer\.seed\?$"):
        compose("train", ["trainer.sed=1"])


def run_python(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, **kwargs
    )


def test_a_mistake_in_a_fresh_process_is_one_line(world: World, tmp_path: Path) -> None:
    """Libraries warn while they are imported: none of it may show."""
    command = [*world.online(), f"data.train={tmp_path}/none.jsonl"]
    done = run_python("-m", "nemo_tvkd", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"nemo-tvkd: data.train: {tmp_path}/none.jsonl does not exist\n"
    assert done.stdout == ""


def test_help_is_quick_and_light() -> None:
    program = (
        "import sys\nfrom nemo_tvkd.__main__ import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'nemo', 'transformers', 'hydra', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    start = time.perf_counter()
    done = run_python("-c", program)
    elapsed = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert elapsed < 2
    for command in ("train", "score", "import-hf", "export-hf", "evaluate"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["train", "score", "import-hf", "export-hf", "evaluate"])
def test_help_of_a_command(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert f"\nexample: nemo-tvkd {command} " in out
    example = next(line for line in out.splitlines() if line.startswith("example: ")).split()[3:]
    compose(command, example)  # and what it shows is right
    assert err == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]])
def test_a_closed_pipe_is_no_crash(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nemo_tvkd", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141
