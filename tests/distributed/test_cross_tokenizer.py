"""A teacher with another tokenizer and template than the student's, from files to metrics, against a reference.

The reference is float64 transformers over each model's own ids, and a plain loop over characters; the losses are the
equations'. The learning rate is 0, so that every step starts from the same weights.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import torch
import torch.nn.functional as F
from rank_pool import Layout, RankPool
from training import import_checkpoint
from two_tokenizers import LENGTH, TwoTokenizers, states_at

from nemo_tvkd.commands.score import ScoringJob, prepare_scoring
from nemo_tvkd.config.compose import compose
from nemo_tvkd.prepare.training import prepare_training

BETA, ALPHA, STEP = 0.1, 0.7, 4
"""beta is tau too; STEP is the number of pairs in a step."""
ONE, TP2PP2 = Layout(), Layout(tp=2, pp=2)
NUMBERS = ("loss", "shaping/chosen", "shaping/rejected", "shaping/margins", "logps/chosen", "logps/rejected")


@dataclass(frozen=True)
class Rule:
    """A setting of algorithm.shaping."""

    value: str = "soft_value"
    form: str = "potential_difference"
    gamma: float = 1.0

    @property
    def overrides(self) -> list[str]:
        return [f"algorithm.shaping.{name}={getattr(self, name)}" for name in ("value", "form", "gamma")]


RULES = {
    "ends": Rule(),
    "discounted": Rule(gamma=0.9),
    "next_value": Rule(form="next_value"),
    "logprob": Rule("logprob"),
    "max": Rule("max", gamma=0.9),
}


@dataclass
class Models:
    """Both checkpoints as NeMo's, and the metrics of what was run."""

    world: TwoTokenizers
    paths: dict[str, Path] = field(default_factory=dict)
    ran: dict[Any, list[dict[str, float]]] = field(default_factory=dict)

    def data(self) -> list[str]:
        return [f"data.train={self.world.pairs}", f"data.max_length={LENGTH}", "data.shuffle=false"]


@pytest.fixture(scope="module")
def both(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(TwoTokenizers(tmp_path_factory.mktemp("two_tokenizers")))
    for name, source in made.world.hf.items():
        made.paths[name] = made.world.folder / f"{name}_nemo"
        pool.run(ONE, import_checkpoint, str(source), str(made.paths[name]))
    return made


@pytest.fixture(scope="module")
def stores(pool: RankPool, both: Models) -> dict[str, Path]:
    """What `nemo-tvkd score` writes: everything of every state; the two ends alone."""
    kinds = "score.value_kind=[soft_value,max,logprob]"
    return {
        "all": score(pool, both, TP2PP2, both.world.folder / "all", kinds, "score.part_size=3"),
        "ends": score(pool, both, ONE, both.world.folder / "ends", "score.value_storage=ends"),
    }


def score(pool: RankPool, both: Models, layout: Layout, output: Path, *options: str) -> Path:
    overrides = [*layout.overrides(), f"score.model={both.paths['teacher']}", f"score.output={output}", *both.data()]
    overrides += [f"score.temperature={BETA}", "score.precision=fp32", *options]
    config = compose("score", overrides)
    pool.run(layout, score_task, config, prepare_scoring(config))
    return output


def score_task(config: Any, job: ScoringJob) -> None:
    """Task: the scoring that the parent prepared."""
    from nemo_tvkd.commands.score import score

    assert job.checkpoint is not None
    score(config, job, job.checkpoint)


def train_task(config: Any, prepared: Any) -> None:
    """Task: the training that the parent prepared."""
    from nemo_tvkd.commands.train import fit

    fit(config, prepared)


def train(
    pool: RankPool, both: Models, rule: str, layout: Layout, store: Path | None = None, options: tuple[str, ...] = ()
) -> list[dict[str, float]]:
    """The metrics of two steps; of equal runs, those of the first."""
    if (rule, layout, store, options) in both.ran:
        return both.ran[rule, layout, store, options]
    output = both.world.folder / f"run-{len(both.ran)}"
    cached = ["teacher.mode=cached", f"teacher.scores={store}"] if store else []
    overrides = [
        *(f"{name}.path={path}" for name, path in both.paths.items()),
        *(*layout.overrides(), *both.data(), *RULES[rule].overrides, *cached),
        *(f"algorithm.beta={BETA}", f"algorithm.alpha={ALPHA}", f"trainer.output_dir={output}"),
        *("trainer.precision=fp32", f"trainer.global_batch_size={STEP}", "trainer.micro_batch_size=2"),
        *("logger.tensorboard=false", "optim.lr=0", *options),
    ]
    config = compose("train", overrides)
    prepared = prepare_training(config)
    assert any(note.startswith("teacher.path reads pairs its own way") for note in prepared.notes)
    assert bool(prepared.frozen) == (store is None)
    pool.run(layout, train_task, config, prepared)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    both.ran[rule, layout, store, options] = rows
    return rows


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logps(both: Models) -> torch.Tensor:
    """The student's, [pairs, 2]."""
    twin = ref.as_float64(both.world.student)
    with torch.no_grad():
        rows = [[ref.response_logp(twin, own.prompt, own.response) for own, _ in pair] for pair in both.world.readings]
    return torch.tensor(rows, dtype=torch.float64)


def shaping(both: Models, rule: Rule) -> torch.Tensor:
    """Psi [pairs, 2] by the definition of each rule."""
    twin = ref.as_float64(both.world.teacher)
    rows = []
    for pair in both.world.readings:
        rows.append([])
        for student, teacher in pair:
            with torch.no_grad():
                values = ref.state_values(twin, teacher.prompt, teacher.response, rule.value, BETA)
            if rule == RULES["ends"]:
                psi = values[-1] - values[0]
            elif rule.value == "logprob":
                psi = values.sum()
            else:
                at = [values[state] for state in states_at(student, teacher)]
                before = at[:-1] if rule.form == "potential_difference" else [0.0] * (len(at) - 1)
                psi = sum(rule.gamma * after - v for v, after in zip(before, at[1:], strict=True))
            rows[-1].append(float(psi))
    return torch.tensor(rows, dtype=torch.float64)


def expected(logps: torch.Tensor, psi: torch.Tensor, pairs: slice) -> dict[str, float]:
    """The means over some pairs."""
    logps, psi = logps[pairs], psi[pairs]
    margin = BETA * (logps[:, 0] - logps[:, 1]) - ALPHA * (psi[:, 0] - psi[:, 1])
    means = (-F.logsigmoid(margin).mean(), *psi.mean(0), (psi[:, 0] - psi[:, 1]).mean(), *logps.mean(0))
    return dict(zip(NUMBERS, map(float, means), strict=True))


def assert_rows(rows: list[dict[str, float]], logps: torch.Tensor, psi: torch.Tensor) -> None:
    """Both steps, and the validation over all pairs behind them if there is one."""
    scale = psi.abs().mean().item()  # of which the margins are a small difference
    for row, pairs in zip(rows, (slice(0, STEP), slice(STEP, 2 * STEP), slice(0, 2 * STEP)), strict=False):
        prefix = "eval_" if f"eval_{NUMBERS[0]}" in row else ""
        for name, number in expected(logps, psi, pairs).items():
            size = {"abs": 1e-5 * scale} if name.startswith("shaping") else {}
            assert row[prefix + name] == pytest.approx(number, rel=1e-5, **size), (name, pairs)


# --- the runs ---------------------------------------------------------------------------------------------------------


def test_the_rows_are_worth_reading(both: Models) -> None:
    """Lengths differ, some states are shared and some are skipped, and one response is cut on each side alone."""
    sides = [side for pair in both.world.readings for side in pair]
    assert [(own.cut, other.cut) for own, other in sides if own.cut or other.cut] == [(True, False), (False, True)]
    shared = [len(set(states_at(own, other))) < len(own.read) for own, other in sides]
    skipped = [len(set(states_at(own, other))) < len(other.read) for own, other in sides]
    assert sum(shared) > 8
    assert sum(skipped) > 8
    assert {len(own.response) == len(other.response) for own, other in sides} == {True, False}


CASES = [*((rule, ONE) for rule in RULES), ("ends", TP2PP2), ("max", Layout(tp=2, sp=True))]


@pytest.mark.parametrize(("rule", "layout"), CASES, ids=[f"{rule}-{layout.name}" for rule, layout in CASES])
def test_online(pool: RankPool, both: Models, logps: torch.Tensor, rule: str, layout: Layout) -> None:
    rows = train(pool, both, rule, layout)
    assert len(rows) == 2
    assert_rows(rows, logps, shaping(both, RULES[rule]))


def test_validation_and_two_replicas(pool: RankPool, both: Models, logps: torch.Tensor) -> None:
    """Every replica's stages read their own rows both ways."""
    options = (f"data.validation={both.world.pairs}",)
    for layout in (TP2PP2, Layout(pp=2, dp=2)):
        rows = train(pool, both, "discounted", layout, options=options)
        assert len(rows) == 3
        assert_rows(rows, logps, shaping(both, RULES["discounted"]))


@pytest.mark.parametrize(("rule", "store"), [*((rule, "all") for rule in RULES), ("ends", "ends")])
def test_cached_equals_online(pool: RankPool, both: Models, stores: dict[str, Path], rule: str, store: str) -> None:
    online = train(pool, both, rule, ONE)
    cached = train(pool, both, rule, ONE, stores[store])
    scale = max(abs(row["shaping/chosen"]) for row in online)
    for a, b in zip(online, cached, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        for name in NUMBERS[1:]:
            assert a[name] == pytest.approx(b[name], rel=1e-6, abs=1e-6 * scale), name
