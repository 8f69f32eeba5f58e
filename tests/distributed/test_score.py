"""The scoring job in the rank pool: the float64 reference's scores, and the store's bytes at every layout."""

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_pool import Layout, RankPool
from teacher import DP2, KINDS, ONE, PAIRS, STATISTICS, TOLERANCE, TP2PP2, Teacher
from training import import_checkpoint, save_hf

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.commands.score import ScoringJob
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.shard import MANIFEST
from nemo_tvkd.scores.store import ScoreStore


def score_task(output: str, job: ScoringJob, micro: int, part_size: int) -> str:
    """Task: `score` as the command runs it; the user error, if any."""
    from nemo_tvkd.commands.score import score
    from nemo_tvkd.config.compose import compose

    values = job.identity.values
    asked = {
        "value_kind": sorted({value.kind for value in values}),
        "temperature": [value.temperature for value in values if value.kind == "soft_value"],
    }
    overrides = [
        f"score.what=[{','.join(job.identity.what)}]",
        *(f"score.{key}=[{','.join(map(str, entries))}]" for key, entries in asked.items() if entries),
        f"score.value_storage={job.identity.value_storage}",
        f"score.output={output}",
        f"score.micro_batch_size={micro}",
        f"score.part_size={part_size}",
        "score.precision=fp32",
    ]
    try:
        score(compose("score", overrides), job, job.checkpoint)
    except UserError as error:
        return str(error)
    return ""


def score_kinds_task(folder: str, jobs: dict[str, ScoringJob], micro: int, part_size: int) -> None:
    """Task: several stores, one after the other."""
    for name, job in jobs.items():
        assert not score_task(str(Path(folder, name)), job, micro, part_size)


def assert_values(store: ScoreStore, stem: str, teacher: Teacher, name: str) -> None:
    """The stored values, or ends of values, are the reference's."""
    expected = teacher.values(name)
    scale = float(np.sqrt(np.mean(np.concatenate([v for pair in expected for v in pair]) ** 2)))
    for row, pair in zip(teacher.rows, expected, strict=True):
        for got, values in zip(store.get(row.pair_id).scores[stem], pair, strict=True):
            wanted = values[[0, -1]] if store.identity.value_storage == "ends" else values
            assert got.dtype == np.float32
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() <= TOLERANCE * scale


SCORING = [
    # layout, micro batch, part size: parts of one and of two trips through the schedule, uneven last ones
    (ONE, 4, 1024),
    (Layout(tp=2), 3, 8),
    (Layout(pp=2), 1, 18),
    (DP2, 2, 5),
    (TP2PP2, 4, 8),
    (Layout(tp=2, dp=2), 1, 20),
    (Layout(pp=2, dp=2), 8, 7),
]


@pytest.mark.parametrize(("layout", "micro", "part_size"), SCORING, ids=[case[0].name for case in SCORING])
def test_scores_are_the_references(
    pool: RankPool, teacher: Teacher, tmp_path: Path, layout: Layout, micro: int, part_size: int
) -> None:
    jobs = {name: teacher.job(value) for name, value in STATISTICS.items()}
    pool.run(layout, score_kinds_task, str(tmp_path), jobs, micro, part_size)
    for name in KINDS:
        store = ScoreStore.open(tmp_path / name)
        assert len(store) == PAIRS
        assert_values(store, "value", teacher, name)
        extra = 0 if name in ("logit", "logprob") else 1
        for pair, row, logps in zip(teacher.pairs, teacher.rows, teacher.logps, strict=True):
            scores = store.get(row.pair_id).scores
            assert [len(v) for v in scores["value"]] == [len(y) + extra for y in (pair.chosen, pair.rejected)]
            assert scores["logprob"] == pytest.approx(logps, rel=TOLERANCE)


@pytest.mark.parametrize("layout", [ONE, TP2PP2, DP2], ids=lambda layout: layout.name)
def test_one_pass_scores_everything(pool: RankPool, teacher: Teacher, tmp_path: Path, layout: Layout) -> None:
    """All values of states and actions, and the log-probability; then the ends alone, with and without it."""
    of_states = [value for value in STATISTICS.values() if value.kind not in ("logit", "logprob")]
    jobs = {
        "all": teacher.job(*STATISTICS.values()),
        "ends": teacher.job(*of_states, value_storage="ends"),
        "ends only": teacher.job(*of_states, what=("value",), value_storage="ends"),
        "one end": teacher.job(STATISTICS["max"], what=("value",), value_storage="ends"),
        "actions": teacher.job(STATISTICS["logprob"], STATISTICS["logit"]),
    }
    pool.run(layout, score_kinds_task, str(tmp_path), jobs, 4, 8)
    for folder, job in jobs.items():
        store = ScoreStore.open(tmp_path / folder)
        for name, value in STATISTICS.items():
            if value in job.identity.values:
                assert_values(store, store.value_stem(value, "k"), teacher, name)
        if "logprob" in job.identity.what:
            for row, logps in zip(teacher.rows, teacher.logps, strict=True):
                assert store.get(row.pair_id).scores["logprob"] == pytest.approx(logps, rel=TOLERANCE)


def test_the_reference_tells_neighbours_apart(teacher: Teacher) -> None:
    """Of the test above: another pair's, response's or state's numbers are far from the right ones."""
    for name in KINDS:
        expected = teacher.values(name)
        scale = float(np.sqrt(np.mean(np.concatenate([v for pair in expected for v in pair]) ** 2)))
        flat = np.concatenate([v for pair in expected for v in pair])
        assert np.median(np.abs(np.diff(flat))) > 1e3 * TOLERANCE * scale, name
    gaps = np.abs(np.diff(sorted(v for pair in teacher.logps for v in pair)))
    assert np.median(gaps) > 1e3 * TOLERANCE


@pytest.mark.parametrize("what", [("value",), ("logprob",)], ids=lambda what: what[0])
def test_only_what_is_asked_for_is_stored(
    pool: RankPool, teacher: Teacher, tmp_path: Path, what: tuple[str, ...]
) -> None:
    job = teacher.job(STATISTICS["soft_value"], what=what)
    assert pool.run(Layout(tp=2), score_task, str(tmp_path / "store"), job, 4, 8) == ["", ""]
    store = ScoreStore.open(tmp_path / "store")
    for row, values, logps in zip(teacher.rows, teacher.values("soft_value"), teacher.logps, strict=True):
        scores = store.get(row.pair_id).scores
        assert tuple(scores) == what
        if what == ("value",):
            assert scores["value"][1] == pytest.approx(values[1], rel=TOLERANCE)
        else:
            assert scores["logprob"] == pytest.approx(logps, rel=TOLERANCE)


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("layout", [ONE, TP2PP2, DP2], ids=lambda layout: layout.name)
def test_a_repeated_and_a_resumed_job_write_the_same_bytes(
    pool: RankPool, teacher: Teacher, tmp_path: Path, layout: Layout
) -> None:
    job, store = teacher.job(STATISTICS["sharp soft_value"]), tmp_path / "store"
    run = lambda path: pool.run(layout, score_task, str(path), job, 3, 8)  # noqa: E731
    run(store)
    first = read_files(store)
    assert sorted(first) == [MANIFEST, "part-000000.parquet", "part-000001.parquet", "part-000002.parquet", "plan.json"]
    run(tmp_path / "again")
    assert read_files(tmp_path / "again") == first

    times = {file.name: file.stat().st_mtime_ns for file in store.iterdir()}
    run(store)  # finished: nothing is written
    assert {file.name: file.stat().st_mtime_ns for file in store.iterdir()} == times

    (store / "part-000001.parquet").unlink()  # with a manifest that lists it, as after an accident
    run(store)
    assert read_files(store) == first

    killed = tmp_path / "killed"  # as a killed job leaves it: no manifest, one part half-written under another name
    shutil.copytree(store, killed)
    (killed / MANIFEST).unlink()
    (killed / "part-000002.parquet").rename(killed / ".part-000002.parquet.4242.tmp")
    kept = (killed / "part-000000.parquet").stat().st_mtime_ns
    run(killed)
    assert read_files(killed) == first
    assert (killed / "part-000000.parquet").stat().st_mtime_ns == kept


def test_replicas_change_no_byte(pool: RankPool, teacher: Teacher, tmp_path: Path) -> None:
    """A job begun with one replica and finished with two."""
    job = teacher.job(STATISTICS["expectation"])
    pool.run(ONE, score_task, str(tmp_path / "one"), job, 3, 4)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name in (MANIFEST, "part-000001.parquet", "part-000002.parquet", "part-000005.parquet"):
        (tmp_path / "two" / name).unlink()
    pool.run(DP2, score_task, str(tmp_path / "two"), job, 3, 4)
    assert read_files(tmp_path / "two") == read_files(tmp_path / "one")


def test_more_replicas_than_parts(pool: RankPool, teacher: Teacher, tmp_path: Path) -> None:
    job = teacher.job(STATISTICS["max"], count=3)
    assert pool.run(Layout(tp=2, dp=2), score_task, str(tmp_path / "store"), job, 2, 1024) == [""] * 4
    assert len(ScoreStore.open(tmp_path / "store")) == 3


def test_other_scores_in_the_directory_end_every_rank(pool: RankPool, teacher: Teacher, tmp_path: Path) -> None:
    pool.run(ONE, score_task, str(tmp_path / "store"), teacher.job(Statistic("soft_value", 0.1)), 4, 8)
    before = read_files(tmp_path / "store")
    answers = pool.run(TP2PP2, score_task, str(tmp_path / "store"), teacher.job(Statistic("soft_value", 0.2)), 4, 8)
    assert len(set(answers)) == 1
    assert "temperature" in answers[0]
    assert "\n" not in answers[0]
    assert read_files(tmp_path / "store") == before


def test_a_damaged_model_ends_every_rank_with_one_message(pool: RankPool, teacher: Teacher, tmp_path: Path) -> None:
    """Only rank 0 prints a user's mistake, and numbers arise on the last pipeline stage: it must hear of it."""
    damaged = copy.deepcopy(teacher.model)
    with torch.no_grad():
        damaged.lm_head.weight[5, 3] = float("nan")
    pool.run(ONE, import_checkpoint, str(save_hf(damaged, tmp_path / "hf")), str(tmp_path / "nemo"))
    job = dataclasses.replace(
        teacher.job(STATISTICS["max"]), checkpoint=find_checkpoint(str(tmp_path / "nemo"), "score.model")
    )
    answers = pool.run(Layout(pp=2), score_task, str(tmp_path / "store"), job, 4, 8, timeout=30)
    assert len(set(answers)) == 1
    assert "NaN" in answers[0]
    assert any(row.pair_id in answers[0] for row in teacher.rows)
