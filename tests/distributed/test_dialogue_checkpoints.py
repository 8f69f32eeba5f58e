"""What a run was told about conversations is in its checkpoints: later stages, scores and exports need not be told.

The chain of a recipe over base models: SFT of the student and of the teacher with the template and tokens given, scores
by the teacher's run, TVKD with the student's run or with the base student told again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dialogues import BOS, EOS, EOT, PAD, TOLD, base_model, side_files, write_rows
from rank_pool import Layout, RankPool
from training import export_checkpoint, import_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from nemo_tvkd.checkpoints.hf import HF_SIDE_DIR, find_checkpoint
from nemo_tvkd.commands.evaluate import prepare_evaluation
from nemo_tvkd.commands.score import ScoringJob, prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.prepare.training import prepare_training
from nemo_tvkd.scores.store import ScoreStore

ONE, TP2, PP2 = Layout(), Layout(tp=2), Layout(pp=2)
BASICS = ["trainer.precision=fp32", "trainer.global_batch_size=2", "logger.tensorboard=false", "data.shuffle=false"]
RENDERED = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def score_task(config: Any, job: ScoringJob) -> None:
    """Task: the scoring that the parent prepared."""
    from nemo_tvkd.commands.score import score

    assert job.checkpoint is not None
    score(config, job, job.checkpoint)


def train_task(config: Any, prepared: Any) -> None:
    """Task: the training that the parent prepared."""
    from nemo_tvkd.commands.train import fit

    fit(config, prepared)


@dataclass
class Chain:
    """Base models as NeMo checkpoints, the data, and the runs by name."""

    pool: RankPool
    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs = write_rows(self.folder / "pairs.jsonl")
        for seed, (name, width) in enumerate({"student": 32, "teacher": 48}.items(), 1):
            source = base_model(self.folder / f"{name}_hf", seed, hidden=width)
            self.paths[name] = self.folder / name
            self.pool.run(ONE, import_checkpoint, str(source), str(self.paths[name]))
            self.train(f"{name}_sft", "algorithm=sft", f"student.path={self.paths[name]}", *TOLD)

    def config(self, name: str, *options: object) -> Any:
        output = f"trainer.output_dir={self.folder / name}"
        return compose("train", [output, f"data.train={self.pairs}", *BASICS, *map(str, options)])

    def train(self, name: str, *options: object, layout: Layout = ONE) -> list[dict[str, Any]]:
        config = self.config(name, *layout.overrides(), *options)
        self.pool.run(layout, train_task, config, prepare_training(config))
        self.paths[name] = self.folder / name
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def score(self, name: str, layout: Layout, *options: object) -> Path:
        overrides = [f"score.output={self.folder / name}", f"data.train={self.pairs}", "score.precision=fp32"]
        config = compose("score", [*layout.overrides(), *overrides, "score.temperature=0.1", *map(str, options)])
        self.pool.run(layout, score_task, config, prepare_scoring(config))
        return self.folder / name

    def side(self, name: str) -> dict[str, bytes]:
        return side_files(find_checkpoint(str(self.paths[name]), name).hf_dir)


@pytest.fixture(scope="module")
def chain(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(pool, tmp_path_factory.mktemp("dialogue"))


@pytest.fixture(scope="module")
def store(chain: Chain) -> Path:
    """Of the teacher's run, which is told nothing."""
    return chain.score("store", TP2, f"score.model={chain.paths['teacher_sft']}")


def tvkd(chain: Chain, *options: object) -> list[str]:
    settings = ["algorithm.beta=0.1", f"teacher.path={chain.paths['teacher_sft']}", "optim.lr=1e-3"]
    return [*settings, *map(str, options)]


class Forced(LogitsProcessor):
    """The third new token is `token`; before and after it none that could end a text."""

    def __init__(self, start: int, token: int) -> None:
        self.start, self.token = start, token

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, [EOS, EOT]] = -torch.inf
        if ids.shape[1] == self.start + 2:
            scores[:] = -torch.inf
            scores[:, self.token] = 0.0
        return scores


def test_an_export_generates_as_it_was_trained(chain: Chain, tmp_path: Path) -> None:
    """By transformers alone: its template, a batch with padding, and an end where the run or the base model has one."""
    chain.pool.run(ONE, export_checkpoint, str(chain.paths["student_sft"]), str(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, EOT, PAD)
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED
    batch = tokenizer([text, RENDERED[17:]], padding=True, add_special_tokens=False, return_tensors="pt")
    start = batch.input_ids.shape[1]
    assert batch.input_ids[1, 0] == PAD
    for token in (EOT, EOS):
        made = model.generate(**batch, max_new_tokens=9, logits_processor=[Forced(start, token)], do_sample=False)
        assert made.shape == (2, start + 3)
        assert made[:, -1].tolist() == [token] * 2
    made = model.generate(**batch, max_new_tokens=9, logits_processor=[Forced(start, 99)], do_sample=False)
    assert made.shape == (2, start + 9)
    assert model.generation_config.temperature == 0.6  # what the base model's says otherwise


def test_only_what_was_told_differs(chain: Chain) -> None:
    before, after = chain.side("student"), chain.side("student_sft")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {
        *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    }


@pytest.mark.parametrize("setting", ["auto", "plain"])
def test_a_run_that_is_told_nothing_changes_nothing(chain: Chain, setting: str) -> None:
    """Of a base model, and of a run that was told."""
    for name in ("student", "student_sft"):
        run = f"{name}_{setting}"
        chain.train(run, "algorithm=sft", f"student.path={chain.paths[name]}", f"data.chat_template={setting}")
        assert chain.side(run) == chain.side(name)


def test_told_again_it_changes_nothing(chain: Chain) -> None:
    chain.train("again", "algorithm=sft", f"student.path={chain.paths['student_sft']}", *TOLD)
    assert chain.side("again") == chain.side("student_sft")


def test_a_resumed_run_carries_it(chain: Chain) -> None:
    """And makes the steps of one that was not stopped."""
    options = ["algorithm=sft", f"student.path={chain.paths['student']}", *TOLD, "optim.schedule=constant"]
    whole = chain.train("whole", *options, "trainer.max_steps=2")
    chain.train("resumed", *options, "trainer.max_steps=1")
    rows = chain.train("resumed", *options, "trainer.max_steps=2")
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]
    assert chain.side("resumed") == chain.side("whole") == chain.side("student_sft")


def test_later_stages_read_alike(chain: Chain, store: Path) -> None:
    """The run told nothing, the base model told again: the same ids, and the store is of both."""
    cached = tvkd(chain, "teacher.mode=cached", f"teacher.scores={store}")
    ways = [
        [f"student.path={chain.paths['student_sft']}"],
        [f"student.path={chain.paths['student']}", *TOLD],
        [f"student.path={chain.folder / 'student_hf'}", *TOLD],
        [f"student.path={chain.paths['student']}", *TOLD[:2], "teacher.path=''"],
    ]
    made = [prepare_training(chain.config("none", *cached, *way)) for way in ways]
    for prepared in made:
        assert not any("its own way" in note or note.startswith("warning") for note in prepared.notes)
        for item, first in zip(prepared.train, made[0].train, strict=True):
            assert item.tokens.pair_id == first.tokens.pair_id
            assert item.tokens.chosen_ids[-1] == EOT
            assert item.numbers.get("teacher.value") is not None
            assert first.numbers.get("teacher.value") is not None
            assert np.array_equal(item.numbers.get("teacher.value")[0], first.numbers.get("teacher.value")[0])
    for model in ("teacher_sft", "teacher"):  # told again, and the base model told: the same identity but for weights
        job = prepare_scoring(
            compose(
                "score", [f"score.model={chain.paths[model]}", f"data.train={chain.pairs}", "score.output=x", *TOLD]
            )
        )
        there = ScoreStore.open(store).identity
        assert (job.identity.tokenizer, job.identity.chat_template) == (there.tokenizer, there.chat_template)
        assert job.identity.data == there.data
        assert (job.identity.weights == there.weights) == (model == "teacher_sft")


def test_tvkd_cached_equals_online(chain: Chain, store: Path) -> None:
    """With the student's run, and with the base student told again (whose weights are other ones)."""
    for name, way in (("student_sft", []), ("student", TOLD)):
        options = tvkd(chain, f"student.path={chain.paths[name]}", *way)
        online = chain.train(f"online_{name}", *options, layout=PP2)
        cached = chain.train(f"cached_{name}", *options, "teacher.mode=cached", f"teacher.scores={store}")
        for one, other in zip(online, cached, strict=True):
            for number in ("loss", "shaping/chosen", "shaping/rejected", "logps/chosen"):
                assert one[number] == pytest.approx(other[number], rel=1e-5), number
        assert chain.side(f"cached_{name}") == chain.side("student_sft")


def test_evaluation_reads_the_runs_own(chain: Chain) -> None:
    """Also against the base model, which has the same vocabulary and another end token."""
    reference = [f"reference={chain.paths['student']}", f"data.validation={chain.pairs}"]
    job = prepare_evaluation(compose("evaluate", [f"checkpoint={chain.paths['student_sft']}", *reference]))
    for row in job.rows:
        assert row.prompt_ids[:2].tolist() == [BOS, 3]
        assert row.chosen_ids[-1] == EOT
    exported = find_checkpoint(str(chain.paths["student_sft"]), "")
    assert exported.hf_dir == exported.path / HF_SIDE_DIR
