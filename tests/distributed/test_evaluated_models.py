"""Several checkpoints with a reference and a teacher, in the rank pool, against float64 transformers.

Student and teacher have tokenizers of their own, so that each reads the pairs its own way.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from rank_pool import Layout, RankPool
from training import import_checkpoint, save_hf
from two_tokenizers import LENGTH, TwoTokenizers, states_at

from nemo_tvkd.commands.evaluate.figures import Judgement, Others
from nemo_tvkd.commands.evaluate.job import report
from nemo_tvkd.commands.evaluate.prepare import Evaluation, prepare_evaluation
from nemo_tvkd.commands.score import prepare_scoring
from nemo_tvkd.config.compose import compose

BETA, TOLERANCE = 0.1, 1e-5
ONE, TP2PP2 = Layout(), Layout(tp=2, pp=2)


@dataclass
class Checkpoints:
    world: TwoTokenizers
    models: dict[str, Any]
    paths: dict[str, Path] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def config(self, layout: Layout, *options: object) -> Any:
        """An evaluation of the student, another one with its tokenizer, and the teacher."""
        names = ",".join(str(self.paths[name]) for name in ("student", "other", "teacher"))
        data = [f"data.validation={self.world.pairs}", f"data.max_length={LENGTH}", "micro_batch_size=3"]
        options = (f"checkpoint=[{names}]", *data, f"beta={BETA}", "precision=fp32", "resamples=50", *options)
        return compose("evaluate", [*layout.overrides(), *map(str, options)])

    def logps(self, name: str) -> np.ndarray:
        """[P, 2] of a model over what its tokenizer makes of the pairs."""
        if name not in self.told:
            side, twin = int(name == "teacher"), ref.as_float64(self.models[name])
            read = [[both[side] for both in pair] for pair in self.world.readings]
            with torch.no_grad():
                rows = [[float(ref.response_logp(twin, r.prompt, r.response)) for r in pair] for pair in read]
            self.told[name] = np.array(rows)
        return self.told[name]

    def shaping(self, value: str, form: str, gamma: float) -> np.ndarray:
        """[P, 2] Psi of the teacher, at the student's states where it does not telescope."""
        twin, rows = ref.as_float64(self.models["teacher"]), []
        for pair in self.world.readings:
            for student, teacher in pair:
                with torch.no_grad():
                    values = ref.state_values(twin, teacher.prompt, teacher.response, value, BETA)
                if value not in ref.ACTION_KINDS and (gamma, form) != (1.0, "potential_difference"):
                    values = values[states_at(student, teacher)]
                rows.append(float(ref.shaping(values, value, form, "bootstrap", gamma)))
        return np.array(rows).reshape(-1, 2)


@pytest.fixture(scope="module")
def made(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    world = TwoTokenizers(tmp_path_factory.mktemp("evaluated"))
    other = ref.tiny_llama(9, vocab=world.student.config.vocab_size, tie=True)
    world.tokenizers["student"].save_pretrained(save_hf(other, world.folder / "other"))
    found = Checkpoints(world, {"student": world.student, "teacher": world.teacher, "other": other})
    for name in found.models:
        found.paths[name] = world.folder / "nemo" / name
        pool.run(ONE, import_checkpoint, str(world.folder / name), str(found.paths[name]))
    return found


def judge_task(config: Any, job: Evaluation) -> tuple[dict[str, Judgement], Others]:
    """Task: the evaluation that the parent prepared."""
    from nemo_tvkd.commands.evaluate.job import judge

    return judge(config, job, job.models)


def judged(pool: RankPool, layout: Layout, config: Any) -> tuple[Evaluation, dict[str, Judgement], Others]:
    job = prepare_evaluation(config)
    answers = pool.run(layout, judge_task, config, job)
    for one, _ in answers[1:]:
        for key in job.names:
            np.testing.assert_array_equal(one[key].rewards["rewards"], answers[0][0][key].rewards["rewards"])
    return job, *answers[0]


@pytest.mark.parametrize("layout", [ONE, TP2PP2], ids=["one", "tp2-pp2"])
def test_checkpoints_with_their_own_tokenizers_and_a_teacher(
    pool: RankPool, made: Checkpoints, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers, and the files, which are one process's up to rounding."""
    output, pairs = tmp_path / "e.json", tmp_path / "p.jsonl"
    options = (f"teacher.path={made.paths['teacher']}", f"output={output}", f"pairs_output={pairs}")
    config = made.config(layout, *options)
    job, found, others = judged(pool, layout, config)
    for key, name in zip(job.names, ("student", "other", "teacher"), strict=True):
        np.testing.assert_allclose(found[key].logps, made.logps(name), rtol=TOLERANCE)
        side = int(name == "teacher")
        lengths = [[len(both[side].response) for both in pair] for pair in made.world.readings]
        assert found[key].lengths.tolist() == lengths
    expected = made.shaping("soft_value", "potential_difference", 1.0)
    np.testing.assert_allclose(others.shaping, expected, rtol=TOLERANCE, atol=1e-5)
    report(config, job, found, others)
    assert "less student" in capsys.readouterr().out
    written = json.loads(output.read_text())
    psi = expected[:, 0] - expected[:, 1]
    for entry, name in zip(written["checkpoints"], ("student", "other", "teacher"), strict=True):
        margins = BETA * (made.logps(name)[:, 0] - made.logps(name)[:, 1])
        assert entry["rewards/teacher_agreement"] == np.mean(margins * psi > 0)
        assert entry["rewards/teacher_correlation"] == pytest.approx(np.corrcoef(margins, psi)[0, 1], abs=1e-4)
        assert entry["shaping/accuracies"] == np.mean(psi > 0)
        assert entry["rewards/nll"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    assert [row["checkpoint"] for row in written["comparisons"]] == [str(made.paths[n]) for n in ("other", "teacher")]
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert [row["source"] for row in rows] == [f"{made.world.pairs}:{n}" for n in range(1, len(psi) + 1)]
    for row, margin in zip(rows, psi, strict=True):
        assert row["shaping_margin"] == pytest.approx(margin, abs=1e-4)
        assert len(row["checkpoints"]) == 3
    if "written" in made.told:
        assert_same(written, made.told["written"])
    made.told["written"] = written


def assert_same(one: Any, other: Any) -> None:
    """Two JSON files, up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    else:
        assert one == (pytest.approx(other, rel=1e-3, abs=1e-4) if isinstance(other, float) else other)


RULES = [
    ("soft_value", "potential_difference", 0.9),
    ("max", "next_value", 1.0),
    ("logprob", "potential_difference", 1),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_teacher_by_other_rules_online_and_stored(pool: RankPool, made: Checkpoints, rule: Any) -> None:
    value, form, gamma = rule
    settings = [f"shaping.value={value}", f"shaping.form={form}", f"shaping.gamma={gamma}"]
    settings += [f"checkpoint={made.paths['student']}", f"teacher.path={made.paths['teacher']}"]
    job, _, online = judged_alone(pool, made.config(ONE, *settings))
    np.testing.assert_allclose(online.shaping, made.shaping(value, form, float(gamma)), rtol=TOLERANCE, atol=1e-4)
    if value != "soft_value":
        return
    store = made.world.folder / "store"
    scoring = [f"score.model={made.paths['teacher']}", f"score.output={store}", f"data.train={made.world.pairs}"]
    scoring += [f"data.max_length={LENGTH}", f"score.temperature={BETA}", "score.precision=fp32"]
    config = compose("score", scoring)
    pool.run(ONE, score_task, config, prepare_scoring(config))
    job, _, stored = judged_alone(pool, made.config(ONE, *settings, f"teacher.scores={store}"))
    assert "teacher.path" not in job.models
    np.testing.assert_allclose(stored.shaping, online.shaping, rtol=1e-6, atol=1e-6)


def judged_alone(pool: RankPool, config: Any) -> Any:
    job = prepare_evaluation(config)
    return job, *pool.run(ONE, judge_task, config, job)[0]


def score_task(config: Any, job: Any) -> None:
    """Task: the scoring that the parent prepared."""
    from nemo_tvkd.commands.score import score

    score(config, job, job.checkpoint)


def test_a_teacher_that_vanishes_has_no_opinion(pool: RankPool, made: Checkpoints) -> None:
    settings = ["shaping.terminal=zero", f"teacher.path={made.paths['teacher']}"]
    _, _, others = judged_alone(pool, made.config(ONE, *settings, f"checkpoint={made.paths['student']}"))
    assert others.shaping is not None
    np.testing.assert_array_equal(others.shaping[:, 0], others.shaping[:, 1])
    assert np.abs(others.shaping).max() > 0, "-V(s_1) of both"


def test_one_checkpoint_against_a_reference(
    pool: RankPool, made: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "e.json"
    options = [f"checkpoint={made.paths['student']}", f"reference={made.paths['other']}", f"output={output}"]
    config = made.config(ONE, *options)
    job, found, others = judged_alone(pool, config)
    report(config, job, found, others)
    written = json.loads(output.read_text())
    ratio = BETA * (made.logps("student") - made.logps("other"))
    assert written["checkpoint"] == str(made.paths["student"])
    assert written["rewards/chosen"] == pytest.approx(ratio[:, 0].mean(), rel=1e-4)
    assert written["rewards/accuracies"] == np.mean(ratio[:, 0] > ratio[:, 1])
    assert written["logps/chosen"] == pytest.approx(made.logps("student")[:, 0].mean(), rel=TOLERANCE)
    assert f"reference {made.paths['other']}" in "".join(capsys.readouterr().out.splitlines())


def freed_task(config: Any, job: Evaluation) -> list[bool]:
    """Task: whether each model was gone when the next one was loaded, and the last at the end."""
    import weakref

    from nemo_tvkd.commands.evaluate.job import judge
    from nemo_tvkd.models import frozen

    loaded: list[Any] = []
    gone: list[bool] = []
    load = frozen.load_frozen

    def watched(*args: Any, **kwargs: Any) -> Any:
        gone.extend(reference() is None for reference in loaded[-1:])
        module = load(*args, **kwargs)
        loaded.append(weakref.ref(module))
        return module

    frozen.load_frozen = watched  # type: ignore[assignment]
    try:
        judge(config, job, job.models)
    finally:
        frozen.load_frozen = load
    return [*gone, loaded[-1]() is None]


def test_a_models_memory_is_free_before_the_next_is_loaded(pool: RankPool, made: Checkpoints) -> None:
    config = made.config(ONE, f"teacher.path={made.paths['teacher']}")
    assert pool.run(ONE, freed_task, config, prepare_evaluation(config)) == [[True] * 4]


def test_a_broken_checkpoint_is_told_by_its_first_pair(pool: RankPool, made: Checkpoints) -> None:
    broken = ref.tiny_llama(3, vocab=made.world.student.config.vocab_size)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    made.world.tokenizers["student"].save_pretrained(save_hf(broken, made.world.folder / "broken"))
    path = made.world.folder / "nemo" / "broken"
    pool.run(ONE, import_checkpoint, str(made.world.folder / "broken"), str(path))
    config = made.config(ONE, f"checkpoint=[{made.paths['student']},{path}]")
    with pytest.raises(AssertionError) as error:
        judged_alone(pool, config)
    said = f"says nan for the log-probability of the chosen response of {made.world.pairs}:1 (8 of 8 pairs"
    assert f"UserError: checkpoint[1]: {path} {said}" in str(error.value)
