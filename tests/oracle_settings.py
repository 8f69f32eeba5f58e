"""Models with reward heads and two tokenizers, and stores and columns of rewards that say whose they are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reference_rewards as rewards
from two_tokenizers import LENGTH, TEXTS, Setting

from nemo_tvkd.commands.score import prepare_scoring, writer_of
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import Item
from nemo_tvkd.prepare.training import Prepared
from nemo_tvkd.scores.shard import PairScores

Rewards = tuple[tuple[float, float], ...]
"""Of each oracle, of the chosen and the rejected response."""


def number(oracle: int, row: int, side: int) -> float:
    """A reward that says whose it is; of spread that differs from oracle to oracle."""
    return (oracle + 1) * (10 * row + 3 * side) + 0.5


@dataclass
class Oracles:
    """The two tokenizers with models that have reward heads, and stores of what these are made to say."""

    setting: Setting
    same: Path
    """With the student's tokenizer."""
    other: Path
    """With the teacher's."""
    judged: Path
    """The pairs with reward columns, which say what oracle 0 says."""

    def store(self, oracle: int, *options: object, model: Path | None = None, pairs: Path | None = None) -> Path:
        """`number` of each row, by the model with the student's tokenizer unless another one is given."""
        path = self.setting.folder / f"rewards-{len(list(self.setting.folder.iterdir()))}"
        overrides = [f"score.model={model or self.same}", f"data.train={pairs or self.setting.two.pairs}"]
        overrides += [f"score.output={path}", f"data.max_length={LENGTH}", "score.what=[reward]", *map(str, options)]
        config = compose("score", overrides)
        job = prepare_scoring(config)
        writer = writer_of(config.score, job)
        writer.prepare()
        made = [
            PairScores(row.pair_id, {"reward": (number(oracle, n, 0), number(oracle, n, 1))})
            for n, row in enumerate(job.rows)
        ]
        for part in writer.parts():
            writer.write_part(part, list(writer.part_rows(part, made)))
        writer.finish()
        return path

    def prepare(self, algorithm: str, *options: object, pairs: Path | None = None) -> Prepared:
        return self.setting.prepare(f"algorithm={algorithm}", "teacher.path=''", *options, pairs=pairs)

    def cached(self, *stores: Path, options: Sequence[object] = ()) -> Prepared:
        given = f"oracle.scores=[{','.join(map(str, stores))}]"
        return self.prepare("edpo", "oracle.mode=cached", given, *options)

    def columns(self, *options: object, pairs: Path | None = None) -> Prepared:
        return self.prepare("drdo", "oracle.mode=columns", *options, pairs=pairs or self.judged)


def make_oracles(folder: Path) -> Oracles:
    """Everything is written below `folder`."""
    setting = Setting(folder)
    paths = []
    for name in ("student", "teacher"):
        model = getattr(setting.two, name)
        paths.append(folder / f"oracle_of_{name}")
        rewards.as_classifier(model, rewards.random_head(1, model.config.hidden_size)).save_pretrained(paths[-1])
        setting.two.tokenizers[name].save_pretrained(paths[-1])
    rows = [json.loads(line) for line in setting.two.pairs.read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {"chosen_reward": number(0, n, 0), "rejected_reward": number(0, n, 1), "margin": n}
    judged = folder / "judged.jsonl"
    judged.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Oracles(setting, *paths, judged)


def expected(*of: int, rows: Sequence[int] = range(len(TEXTS)), scale: Sequence[float] = (1, 1, 1)) -> list[Rewards]:
    """What oracles say of rows, divided by `scale`."""
    return [tuple((number(k, n, 0) / scale[k], number(k, n, 1) / scale[k]) for k in of) for n in rows]


def found(items: Sequence[Item]) -> list[Any]:
    return [rewards_of(item) for item in items]


def responses(item: Item) -> tuple[tuple[int, ...], ...]:
    """The ids of the chosen and the rejected response."""
    return tuple(tuple(ids.tolist()) for _, ids in item.sequences())


def rewards_of(item: Any) -> tuple[tuple[float, float], ...] | None:
    """Each oracle's rewards of an item's chosen and rejected response; None where it has none."""
    return tuple(both for name, both in item.numbers.items() if name.startswith("oracle")) or None
