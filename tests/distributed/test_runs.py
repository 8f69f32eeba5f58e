"""Whole runs: the same curve at every layout, repeated bit for bit, resumed exactly, stopped cleanly."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from rank_pool import Layout, RankPool
from training import VOCAB, make_items, run_training

LAYOUTS = [Layout(), Layout(tp=2, sp=True), Layout(tp=2, pp=2), Layout(dp=2)]
STEPS = 5
OPTIONS = ["algorithm.beta=0.1", "algorithm.shaping.gamma=0.95", "optim.weight_decay=0.1", "optim.schedule=cosine"]


@pytest.fixture(scope="module")
def five_steps() -> list[ref.RefPair]:
    return ref.random_pairs(11, 4 * STEPS, VOCAB)


def curve(
    pool: RankPool, models: Any, pairs: list, folder: Path, layout: Layout, micro: int = 1, **kwargs: Any
) -> list:
    arguments: dict[str, Any] = {
        "algorithm": "tvkd",
        "student": models.paths["student"],
        "items": make_items(pairs),
        "frozen": {"teacher": models.paths["teacher"]},
        "steps": STEPS,
    }
    arguments |= kwargs
    options = [*OPTIONS, f"trainer.micro_batch_size={micro}", *arguments.pop("options", [])]
    return run_training(pool, layout, folder, options=options, **arguments)


@pytest.fixture(scope="module")
def reference_curve(models: Any, five_steps: list[ref.RefPair]) -> list[float]:
    """The losses of the five steps in float64, by transformers and torch.optim alone."""
    import math

    rates = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]
    batches = [five_steps[4 * i : 4 * i + 4] for i in range(STEPS)]
    losses = [
        lambda m, b=batch: ref.tvkd_loss(m, models.teacher, b, beta=0.1, alpha=0.7, gamma=0.95)[0] for batch in batches
    ]
    return ref.adamw_losses(
        models.student, losses, lr=rates, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, clip_grad=1.0
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_five_step_curve_is_the_reference_at_every_layout(
    pool: RankPool, models: Any, five_steps: list, reference_curve: list[float], tmp_path: Path, layout: Layout
) -> None:
    rows = curve(pool, models, five_steps, tmp_path, layout)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["loss"] == pytest.approx(reference_curve[0], rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(reference_curve, rel=1e-4)


def test_micro_batches_do_not_matter(
    pool: RankPool, models: Any, five_steps: list, reference_curve: list[float], tmp_path: Path
) -> None:
    for micro in (2, 4):
        rows = curve(pool, models, five_steps, tmp_path / str(micro), Layout(tp=2), micro)
        assert [row["loss"] for row in rows] == pytest.approx(reference_curve, rel=1e-4)


def test_the_same_command_repeats_bit_for_bit(pool: RankPool, models: Any, five_steps: list, tmp_path: Path) -> None:
    first = curve(pool, models, five_steps, tmp_path / "a", Layout(tp=2, pp=2), options=["data.shuffle=true"])
    again = curve(pool, models, five_steps, tmp_path / "b", Layout(tp=2, pp=2), options=["data.shuffle=true"])
    assert without_speed(first) == without_speed(again)


def without_speed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def score_task(overrides: list[str], rows: list, checkpoint: str) -> None:
    """Task: fill a score store."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.commands import score as job
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.config.values import wanted_values
    from nemo_tvkd.scores.identity import Identity, data_fingerprint

    config = compose("score", overrides)
    what = tuple(sorted(config.score.what))
    ids = data_fingerprint([row.pair_id for row in rows])
    identity = Identity(
        model=checkpoint,
        weights="w",
        tokenizer="t",
        chat_template="c",
        what=what,
        values=wanted_values(config.score),
        max_length=99,
        max_prompt_length=98,
        data=ids,
        value_storage=config.score.value_storage,
    )
    found = find_checkpoint(checkpoint, "score.model")
    job.score(config, job.ScoringJob(found, rows, identity, 0), found)


def test_cached_equals_online(pool: RankPool, models: Any, five_steps: list, tmp_path: Path) -> None:
    """Teacher and reference from a store written at another layout, against both in the job."""
    from nemo_tvkd.parallel.statistic import Statistic
    from nemo_tvkd.prepare.needs import Needs
    from nemo_tvkd.scores.store import ScoreStore

    items = make_items(five_steps)
    layout = Layout(pp=2, dp=2)
    overrides = [*layout.overrides(), f"score.output={tmp_path / 'store'}", "score.what=[value,logprob]"]
    overrides += ["score.precision=fp32", "score.temperature=0.1", "score.micro_batch_size=3", "score.part_size=6"]
    pool.run(layout, score_task, overrides, [i.tokens for i in items], str(models.paths["teacher"]))
    store = ScoreStore.open(tmp_path / "store")
    rows = [i.tokens for i in items]
    stems = {"value": store.value_stem(Statistic("soft_value", 0.1), "")}
    stores = {"teacher": (store, stems), "reference": (store, {"logprob": "logprob"})}
    cached = Needs(None, True, stores=stores).join(rows)
    both = {"teacher": models.paths["teacher"], "reference": models.paths["teacher"]}
    options = ["algorithm.use_reference=true"]
    layout = Layout(tp=2, pp=2)
    online = curve(pool, models, five_steps, tmp_path / "online", layout, frozen=both, options=options)
    offline = curve(pool, models, five_steps, tmp_path / "cached", layout, frozen={}, items=cached, options=options)
    for a, b in zip(online, offline, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["shaping/margins"] == pytest.approx(b["shaping/margins"], rel=1e-5, abs=1e-5)


RESUME = ["data.shuffle=true", "optim.schedule=constant"]


@pytest.fixture(scope="module")
def six_steps(
    pool: RankPool, models: Any, five_steps: list, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list, Path]:
    """The rows of six steps in one run at TP2 x PP2, and the folder of a run that made three of them."""
    folder, layout = tmp_path_factory.mktemp("six_steps"), Layout(tp=2, pp=2)
    whole = curve(pool, models, five_steps, folder / "whole", layout, steps=6, options=RESUME)
    curve(pool, models, five_steps, folder / "parts", layout, steps=3, options=RESUME)
    return whole, folder / "parts"


def test_six_steps_are_three_and_three(
    pool: RankPool, models: Any, five_steps: list, six_steps: tuple[list, Path], tmp_path: Path
) -> None:
    layout = Layout(tp=2, pp=2)
    whole, parts = six_steps
    folder = Path(shutil.copytree(parts, tmp_path / "parts"))
    unfinished = folder / "checkpoints" / ".step-00000005" / "weights"
    unfinished.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 4, "loss": 123.0}\n{"step": 5, "lo')  # what a killed run leaves
    rows = curve(pool, models, five_steps, folder, layout, steps=6, options=RESUME)
    assert without_speed(rows) == without_speed(whole)
    assert not unfinished.exists()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, sp=True), Layout(pp=2, dp=2)], ids=lambda lay: lay.name)
def test_resume_at_another_layout(
    pool: RankPool, models: Any, five_steps: list, six_steps: tuple[list, Path], tmp_path: Path, layout: Layout
) -> None:
    whole, parts = six_steps
    shutil.copytree(parts, tmp_path / "parts")
    rows = curve(pool, models, five_steps, tmp_path / "parts", layout, steps=6, options=RESUME)
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in whole], rel=1e-4)
    assert [r["grad_norm"] for r in rows] == pytest.approx([r["grad_norm"] for r in whole], rel=1e-3)


def test_checkpoints_are_kept_and_pruned(pool: RankPool, models: Any, five_steps: list, tmp_path: Path) -> None:
    options = ["trainer.save_interval=1", "trainer.keep_checkpoints=2"]
    curve(pool, models, five_steps, tmp_path, Layout(), options=options)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def signal_at_step(signum: int, step: int, rank: int) -> Any:
    """A callback that sends this process a signal during a step, on one rank."""
    import lightning.pytorch as pl
    import torch.distributed as dist

    class SignalAtStep(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step + 1 == step and dist.get_rank() == rank:
                os.kill(os.getpid(), signum)

    return SignalAtStep()


WARMED = ["data.shuffle=true", "optim.schedule=cosine", "optim.warmup_ratio=0.4"]


@pytest.fixture(scope="module")
def warmed(pool: RankPool, models: Any, five_steps: list, tmp_path_factory: pytest.TempPathFactory) -> list:
    """The rows of a run at TP2 that nothing disturbs."""
    return curve(pool, models, five_steps, tmp_path_factory.mktemp("warmed"), Layout(tp=2), options=WARMED)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_saves_and_stops_all(
    pool: RankPool, models: Any, five_steps: list, warmed: list, tmp_path: Path, signum: int
) -> None:
    with pytest.raises(AssertionError, match="Preempted: stopped by a signal after step 2"):
        curve(
            pool,
            models,
            five_steps,
            tmp_path / "run",
            Layout(tp=2),
            options=WARMED,
            hook=partial(signal_at_step, signum, step=2, rank=1),
        )
    rows = curve(pool, models, five_steps, tmp_path / "run", Layout(tp=2), options=WARMED)
    assert without_speed(rows) == without_speed(warmed)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    pool: RankPool, models: Any, five_steps: list, tmp_path: Path
) -> None:
    items = make_items(five_steps)
    for index, item in enumerate(items):
        tokens = item.tokens
        item.numbers["teacher.value"] = tuple(
            np.full(len(ids) + 1, np.nan if index == 13 else 1.0, dtype=np.float32)
            for ids in (tokens.chosen_ids, tokens.rejected_ids)
        )
    options = ["trainer.save_interval=2"]
    with pytest.raises(AssertionError) as stopped:
        curve(pool, models, five_steps, tmp_path, Layout(tp=2, pp=2), items=items, frozen={}, options=options)
    message = str(stopped.value)
    assert message.count("UserError: the loss is not finite at step 4") == 4, "every rank stops, none hangs"
    assert "step-00000002" in message
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_packing_fillers_change_nothing(pool: RankPool, models: Any, tmp_path: Path) -> None:
    """Rows whose length is no multiple of TP get a filler sequence under sequence parallelism."""
    pairs = [ref.RefPair([5, 6, 7], [8, 2], [9, 10, 2]), ref.RefPair([5], [2], [11, 12, 13, 2])]
    expected = ref.tvkd_loss(models.student, models.teacher, pairs, beta=0.1, alpha=0.7, gamma=0.95)[0]
    options = ["trainer.global_batch_size=2"]
    for layout in (Layout(), Layout(tp=2, sp=True)):
        rows = curve(pool, models, pairs, tmp_path / layout.name, layout, steps=1, options=options)
        assert rows[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, sp=True), Layout(pp=2)], ids=lambda lay: lay.name)
def test_bf16_follows_fp32(
    pool: RankPool, models: Any, five_steps: list, reference_curve: list[float], tmp_path: Path, layout: Layout
) -> None:
    """bf16 parameters with fp32 master weights: close to the float64 curve, and (at TP2) resumable bit for bit."""
    bf16 = ["trainer.precision=bf16"]
    rows = curve(pool, models, five_steps, tmp_path / "run", layout, options=bf16)
    assert [row["loss"] for row in rows] == pytest.approx(reference_curve, rel=0.05)
    assert [row["loss"] for row in rows] != pytest.approx(reference_curve, rel=1e-6), "this did run in bf16"
    if layout.tp == 1:
        return
    whole = curve(pool, models, five_steps, tmp_path / "whole", layout, steps=4, options=[*bf16, *RESUME])
    curve(pool, models, five_steps, tmp_path / "parts", layout, steps=2, options=[*bf16, *RESUME])
    parts = curve(pool, models, five_steps, tmp_path / "parts", layout, steps=4, options=[*bf16, *RESUME])
    assert without_speed(parts) == without_speed(whole)


def test_recomputed_activations_give_the_same_curve(
    pool: RankPool, models: Any, five_steps: list, reference_curve: list[float], tmp_path: Path
) -> None:
    for layout in (Layout(tp=2, pp=2), Layout(tp=2, sp=True)):
        options = ["trainer.recompute=true"]
        rows = curve(pool, models, five_steps, tmp_path / layout.name, layout, 2, options=options)
        assert [row["loss"] for row in rows] == pytest.approx(reference_curve, rel=1e-4)


def test_a_run_that_is_extended_follows_the_longer_schedule(
    pool: RankPool, models: Any, five_steps: list, tmp_path: Path
) -> None:
    """max_steps 3, then 6: the checkpoint's learning rate (0, the end of the short schedule) is not used."""
    curve(pool, models, five_steps, tmp_path, Layout(), steps=3)
    rows = curve(pool, models, five_steps, tmp_path, Layout(), steps=6)
    rates = [1e-3 * 0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert [row["lr"] for row in rows[3:]] == pytest.approx(rates[3:], rel=1e-6)


@pytest.mark.parametrize("layout", [Layout(tp=2, pp=2), Layout(dp=2)], ids=lambda lay: lay.name)
def test_validation_figures(pool: RankPool, models: Any, tmp_path: Path, layout: Layout) -> None:
    """At learning rate 0 the validation of the training pairs repeats the training metrics; 7 pairs do not divide."""
    pairs = ref.random_pairs(21, 4, VOCAB)
    more = [*pairs, *ref.random_pairs(22, 3, VOCAB)]
    options = ["optim.lr=0", "trainer.val_interval=1"]
    rows = curve(pool, models, pairs, tmp_path / "same", layout, steps=2, options=options, validation=make_items(pairs))
    trained, validated = rows[0], rows[1]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "shaping/margins"):
        assert validated[f"eval_{name}"] == pytest.approx(trained[name], rel=1e-6, abs=1e-9), name
    rows = curve(pool, models, pairs, tmp_path / "more", layout, steps=1, options=options, validation=make_items(more))
    expected = ref.tvkd_loss(models.student, models.teacher, more, beta=0.1, alpha=0.7, gamma=0.95)[0]
    assert rows[-1]["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_one_run_at_a_time_in_a_directory(pool: RankPool, models: Any, five_steps: list, tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match="another run is writing to"):
            curve(pool, models, five_steps, tmp_path, Layout(tp=2))
    assert curve(pool, models, five_steps, tmp_path, Layout(tp=2))


def schedule_factors(schedule: str, warmup: int, steps: int, least: float) -> list[float]:
    """Task: the learning rate of every update, as a fraction of the peak."""
    from nemo_tvkd.training.trainer import WarmupSchedule

    rule = WarmupSchedule(schedule, warmup, steps, least)
    return [rule.factor(update) for update in range(steps + 1)]


def test_learning_rate_schedules(pool: RankPool) -> None:
    """Against transformers' schedules, and by hand where there is a floor."""
    import torch
    from transformers import get_scheduler

    for schedule, theirs in (("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=3, num_training_steps=10)
        expected = []
        for _ in range(11):
            expected.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        assert pool.run(Layout(), schedule_factors, schedule, 3, 10, 0.0)[0] == pytest.approx(expected, abs=1e-12)
    floor = pool.run(Layout(), schedule_factors, "linear", 0, 4, 0.2)[0]
    assert floor == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
