"""A world without mistakes, for the tests that make one: checkpoints, pairs and a store that fit, and the commands."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reference as ref
import reference_rewards as rewards
from demo_data import make_tokenizer
from safetensors.torch import save_file

from nemo_tvkd.commands.score import prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.writer import StoreWriter

STARTED = 77
"""What a command returns here when it found no mistake and would start its ranks."""

PAIRS = [
    {"prompt": f"What colour is the {thing}?", "chosen": f"The {thing} is painted red.", "rejected": "A dull question."}
    for thing in ("lamp", "box", "chair", "table")
]

JUDGED = [{**pair, "chosen_reward": 1.0 + n, "rejected_reward": -n / 2} for n, pair in enumerate(PAIRS)]
"""The same with the columns of oracle.mode=columns."""

CHECKPOINT_KEYS = {
    "student.path": "online",
    "teacher.path": "online",
    "oracle.path": "drdo",
    "score.model": "score",
    "checkpoint": "evaluate",
    "reference": "evaluate",
}

Fails = Callable[..., str]
"""The fixture `fails`: the line with which a command refuses its arguments."""


class World:
    """Tiny checkpoints with a real tokenizer, four pairs and a score store, all of which fit together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scored = 0
        self.tokenizer = make_tokenizer()
        size = len(self.tokenizer)
        self.student = self._checkpoint("student", ref.tiny_llama(1, vocab=size))
        self.teacher = self._checkpoint("teacher", ref.tiny_llama(2, vocab=size, hidden=48, layers=4))
        self.pairs = write_rows(folder / "pairs.jsonl", PAIRS)
        self.judged = write_rows(folder / "judged.jsonl", JUDGED)
        self.store = self.make_store("store")
        judge = ref.tiny_llama(3, vocab=size, hidden=48, layers=4)
        self.oracle = self._checkpoint("oracle", rewards.as_classifier(judge, rewards.random_head(3, 48)))
        self.rewards = self.make_rewards("rewards")

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
        path = self.folder / "other_tokenizer"
        if path.exists():
            return path
        self.variant("other_tokenizer", "teacher")
        content = json.loads((path / "tokenizer.json").read_text())
        words = content["model"]["vocab"]
        one, two = list(words)[-2:]
        words[one], words[two] = words[two], words[one]
        (path / "tokenizer.json").write_text(json.dumps(content))
        return path

    def with_reward_head(self, source: str = "student") -> Path:
        """A causal LM that has a reward head beside its weights."""
        path = self.variant(f"{source}_with_head", source)
        width = json.loads((path / "config.json").read_text())["hidden_size"]
        save_file({"weight": rewards.random_head(4, width)}, path / "reward_head.safetensors")
        return path

    def make_rewards(self, name: str, *numbers: tuple[float, float], data: Path | None = None, **changed: Any) -> Path:
        """A finished store of the oracle's rewards: `numbers` of the pairs, which are repeated as often as needed."""
        options = [f"score.model={self.oracle}", "score.what=[reward]", f"data.train={data or self.pairs}"]
        return self.make_store(name, *options, rewards=numbers or ((1.0, -0.5), (2.0, 0.0)), **changed)

    def make_store(self, name: str, *options: str, rewards: Any = ((0.0, 0.0),), **changed: Any) -> Path:
        """A finished store of the teacher's values; `changed` fields of its identity do not fit."""
        path = self.folder / name
        job = prepare_scoring(compose("score", [*self.score()[1:], *options]))
        identity = replace(job.identity, **changed)
        writer = StoreWriter(path, identity, [row.pair_id for row in job.rows], part_size=3)
        writer.prepare()
        rows = []
        for row, both in zip(job.rows, itertools.cycle(rewards), strict=False):
            assert row.rejected_ids is not None
            ends = identity.value_storage == "ends"
            states = [2 if ends else len(ids) + 1 for ids in (row.chosen_ids, row.rejected_ids)]
            values = tuple(np.zeros(count, dtype=np.float32) for count in states)
            numbers = {"logprob": (-1.0, -1.0), "reward": both}
            rows.append(PairScores(row.pair_id, {stem: numbers.get(stem, values) for stem in identity.stems}))
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

    def drdo(self, mode: str = "online") -> list[str]:
        """A command that reads an oracle, without mistakes."""
        student = [f"student.path={self.student}", f"data.train={self.pairs}", f"trainer.output_dir={self.folder}/run"]
        oracle = {"online": [f"oracle.path={self.oracle}"], "cached": [f"oracle.scores={self.rewards}"], "columns": []}
        pairs = [f"data.train={self.judged}"] if mode == "columns" else []
        settings = ["algorithm=drdo", "trainer.global_batch_size=2", f"oracle.mode={mode}"]
        return ["train", *student, *settings, *oracle[mode], *pairs]

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


@contextmanager
def nemo_stays_out() -> Iterator[None]:
    """Nothing in here may import NeMo (whatever ran in this process before)."""
    before = "nemo" in sys.modules
    yield
    assert before or "nemo" not in sys.modules


def run_python(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, **kwargs
    )
