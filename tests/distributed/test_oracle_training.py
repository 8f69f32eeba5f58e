"""Training on an oracle's rewards: from models beside the student, from score stores and from columns alike.

The learning rate is 0, so that every step starts from the same weights.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import torch
from oracle_settings import Oracles, make_oracles
from rank_pool import Layout, RankPool
from training import import_checkpoint, save_hf
from two_tokenizers import LENGTH, TEXTS

from nemo_tvkd.commands.score import ScoringJob, prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.noise import is_flipped
from nemo_tvkd.prepare.training import Prepared, prepare_training
from nemo_tvkd.scores.store import ScoreStore

ONE, TP2, PP2, DP2, TP2PP2 = Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2), Layout(tp=2, pp=2)
TOLERANCE = 1e-5
CORRELATION = rewards.CORRELATION
STEP = 4
"""Pairs in a step."""
NOISE = ["data.label_noise=0.5", "data.label_noise_seed=2"]


def score_task(config: Any, job: ScoringJob) -> None:
    """Task: the scoring that the parent prepared."""
    from nemo_tvkd.commands.score import score

    assert job.checkpoint is not None
    score(config, job, job.checkpoint)


def fit_task(config: Any, prepared: Prepared) -> None:
    """Task: the training that the parent prepared."""
    from nemo_tvkd.commands.train import fit

    fit(config, prepared)


@dataclasses.dataclass
class World:
    """The oracles with the student's and with another tokenizer, both larger than the student."""

    pool: RankPool
    oracles: Oracles
    models: dict[str, Any]
    """By name: the two oracles' layers, without their heads, and the reference."""
    paths: dict[str, Path]
    stores: dict[str, Path]
    runs: int = 0

    def train(self, layout: Layout, *settings: str, pairs: Path | None = None) -> list[dict[str, float]]:
        """The metrics of two steps."""
        self.runs += 1
        output = self.oracles.setting.folder / f"run-{self.runs}"
        overrides = [*layout.overrides(), f"student.path={self.paths['student']}", f"trainer.output_dir={output}"]
        overrides += [f"data.train={pairs or self.oracles.setting.two.pairs}", f"data.max_length={LENGTH}"]
        overrides += ["data.shuffle=false", "trainer.precision=fp32", f"trainer.global_batch_size={STEP}"]
        overrides += ["trainer.micro_batch_size=2", "logger.tensorboard=false", "optim.lr=0", *settings]
        config = compose("train", overrides)
        prepared = prepare_training(config)
        assert any(name.startswith("oracle") for name in prepared.frozen) == (config.oracle.mode == "online")
        assert (0 < len(prepared.flipped) < len(TEXTS)) == bool(config.data.label_noise)
        self.pool.run(layout, fit_task, config, prepared)
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def head_of(model: Any) -> torch.Tensor:
    return rewards.random_head(1, model.config.hidden_size)


@pytest.fixture(scope="module")
def world(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("oracles")
    oracles = make_oracles(folder)
    two = oracles.setting.two
    vocab = len(two.tokenizers["student"])
    larger = ref.tiny_llama(9, vocab=vocab, hidden=64, layers=4, heads=8)
    rewards.as_classifier(larger, head_of(larger)).save_pretrained(oracles.same)
    reference = ref.tiny_llama(11, vocab=vocab)
    sources = {"student": oracles.setting.student, "same": oracles.same, "other": oracles.other}
    sources["reference"] = save_hf(reference, folder / "reference")
    made = World(pool, oracles, {"same": larger, "other": two.teacher, "reference": reference}, {}, {})
    for name, source in sources.items():
        made.paths[name] = folder / f"{name}_nemo"
        pool.run(ONE, import_checkpoint, str(source), str(made.paths[name]))
    for name, layout in (("same", PP2), ("other", TP2PP2)):
        made.stores[name] = folder / f"scores_{name}"
        overrides = [*layout.overrides(), f"score.model={made.paths[name]}", f"score.output={made.stores[name]}"]
        overrides += [f"data.train={two.pairs}", f"data.max_length={LENGTH}", "score.precision=fp32"]
        config = compose("score", [*overrides, "score.what=[reward]", "score.part_size=3"])
        pool.run(layout, score_task, config, prepare_scoring(config))
    return made


def assert_same(runs: Sequence[list[dict[str, float]]]) -> None:
    """All that the loss reports of two steps and of a validation behind them, to 1e-5 of its size."""
    first, *others = runs
    for other in others:
        for one, row in zip(first, other, strict=True):
            names = [name for name in one if name.endswith("loss") or "/" in name]
            assert len({name.removeprefix("eval_") for name in names} & {"loss", "oracle/margins", CORRELATION}) == 3
            for name in names:
                assert row[name] == pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE), name


def with_columns(store: Path, world: World, file: Path) -> Path:
    """The pairs with a store's rewards as columns."""
    opened, pairs = ScoreStore.open(store), world.oracles.setting.two.pairs
    config = compose("score", [f"score.model={world.paths['same']}", f"data.train={pairs}", "score.what=[reward]"])
    config.data.max_length, config.score.output = LENGTH, str(file.parent / "none")
    lines = []
    for line, row in zip(pairs.read_text().splitlines(), prepare_scoring(config).rows, strict=True):
        chosen, rejected = opened.get(row.pair_id).scores["reward"]
        lines.append(json.dumps({**json.loads(line), "score_chosen": chosen, "score_rejected": rejected}) + "\n")
    file.write_text("".join(lines))
    return file


@pytest.mark.parametrize("noise", [[], NOISE], ids=["", "label_noise"])
def test_drdo_reads_the_same_rewards_from_everywhere(world: World, tmp_path: Path, noise: list[str]) -> None:
    """The student's head is drawn from the seed: it is the same at every layout, too."""
    cached = ["oracle.mode=cached", f"oracle.scores={world.stores['same']}"]
    columns = with_columns(world.stores["same"], world, tmp_path / "columns.jsonl")
    runs = [
        world.train(TP2PP2, "algorithm=drdo", f"oracle.path={world.paths['same']}", *noise),
        world.train(ONE, "algorithm=drdo", *cached, f"oracle.path={world.paths['same']}", *noise),
        world.train(DP2, "algorithm=drdo", "oracle.mode=columns", *noise, pairs=columns),
    ]
    assert_same(runs)
    assert abs(runs[0][0]["oracle/margins"] - runs[0][1]["oracle/margins"]) > 1e3 * TOLERANCE


def read_as(world: World, who: int) -> list[ref.RefPair]:
    """The pairs as one of the two tokenizers reads them, without nemo_tvkd."""
    pairs = [[side[who] for side in pair] for pair in world.oracles.setting.two.readings]
    return [ref.RefPair(chosen.prompt, chosen.response, rejected.response) for chosen, rejected in pairs]


def judged_by(world: World, name: str) -> torch.Tensor:
    """[pairs, 2] rewards of the oracle that reads its own ids."""
    model = world.models[name]
    return rewards.oracle_rewards(model, head_of(model), read_as(world, int(name == "other")))


def assert_rows(rows: list[dict[str, float]], steps: list[tuple[torch.Tensor, dict[str, float]]]) -> None:
    """Both steps, and a validation behind them, are the reference's."""
    for row, (loss, metrics) in zip(rows, steps, strict=True):
        prefix = "eval_" if "eval_loss" in row else ""
        assert row[f"{prefix}loss"] == pytest.approx(loss.item(), rel=TOLERANCE)
        for name, value in metrics.items():
            assert row[prefix + name] == pytest.approx(value, rel=1e-4, abs=TOLERANCE), name


@pytest.mark.parametrize("ensemble", ["mean", "min"])
def test_edpo_reads_the_same_rewards_from_everywhere(world: World, ensemble: str) -> None:
    """Of two oracles, one of which has a tokenizer of its own; also those of the validation's pairs."""
    both = f"oracle.path=[{world.paths['same']},{world.paths['other']}]"
    settings = [f"algorithm.ensemble={ensemble}", f"reference.path={world.paths['reference']}", both]
    settings.append(f"data.validation={world.oracles.setting.two.pairs}")
    stores = f"oracle.scores=[{world.stores['same']},{world.stores['other']}]"
    online = world.train(TP2, "algorithm=edpo", *settings)
    assert_same([online, world.train(TP2PP2, "algorithm=edpo", *settings, "oracle.mode=cached", stores)])
    judged, pairs = torch.stack([judged_by(world, name) for name in ("same", "other")]), read_as(world, 0)
    student, reference = world.oracles.setting.two.student, world.models["reference"]
    steps = [slice(0, STEP), slice(STEP, 2 * STEP), slice(0, 2 * STEP)]
    expected = [rewards.edpo_loss(student, reference, judged[:, s], pairs[s], ensemble=ensemble) for s in steps]
    assert_rows(online, expected)
    if ensemble == "min":  # not the first one, and not the mean
        first = [rewards.edpo_loss(student, reference, judged[:1, s], pairs[s])[0].item() for s in steps]
        mean = [rewards.edpo_loss(student, reference, judged[:, s], pairs[s])[0].item() for s in steps]
        chosen = [loss.item() for loss, _ in expected]
        assert any(abs(a - b) > 1e-3 for a, b in zip(chosen, first, strict=True))
        assert all(abs(a - b) > 1e-3 for a, b in zip(chosen, mean, strict=True))


@pytest.mark.parametrize("noise", [[], NOISE], ids=["", "label_noise"])
def test_an_oracle_with_another_tokenizer(world: World, noise: list[str]) -> None:
    """Online, cached and by the reference, in which each model reads its own ids."""
    settings = ["algorithm=drdo", "algorithm.student_reward=implicit", f"oracle.path={world.paths['other']}", *noise]
    cached = ["oracle.mode=cached", f"oracle.scores={world.stores['other']}"]
    online = world.train(TP2, *settings)
    assert_same([online, world.train(ONE, *settings, *cached)])
    pairs, judged = read_as(world, 0), judged_by(world, "other")
    ids = [item.tokens.pair_id for item in world.oracles.prepare("reward").train]
    for n in (n for n, pair_id in enumerate(ids) if noise and is_flipped(pair_id, 0.5, 2)):
        pairs[n], judged[n] = ref.RefPair(pairs[n].prompt, pairs[n].rejected, pairs[n].chosen), judged[n].flip(0)
    student, steps = world.oracles.setting.two.student, [slice(start, start + STEP) for start in (0, STEP)]
    rule = {"student_reward": "implicit"}
    assert_rows(online, [rewards.drdo_loss(student, None, judged[s], pairs[s], **rule) for s in steps])
