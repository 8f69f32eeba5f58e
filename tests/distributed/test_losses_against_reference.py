"""The losses and gradients of real NeMo training steps against plain transformers in float64."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from rank_pool import Layout, RankPool
from training import gradients_as_hf, run_training

TOLERANCE = 1e-5
TP2PP2 = Layout(tp=2, pp=2)
TP2SP = Layout(tp=2, sp=True)
PP2 = Layout(pp=2)
DP2 = Layout(dp=2)
ONE = Layout()


def check_step(
    pool: RankPool, models: Any, folder: Path, layout: Layout, algorithm: str, expected: torch.Tensor, **kwargs: Any
) -> dict[str, Any]:
    """One training step: loss and every parameter's gradient within 1e-5 of the reference."""
    gradients = str(folder / "gradients")
    rows = run_training(
        pool,
        layout,
        folder / "run",
        algorithm=algorithm,
        student=models.paths["student"],
        items=models.items,
        gradients=gradients,
        **kwargs,
    )
    assert rows[0]["loss"] == pytest.approx(expected.item(), rel=TOLERANCE)
    got = pool.run(ONE, gradients_as_hf, gradients, str(models.paths["student"]))[0]
    want = ref.gradients(expected, models.student)
    assert set(got) == set(want)
    scale = max(g.norm().item() for g in want.values())
    for name, gradient in want.items():
        difference = (got[name].double() - gradient).norm().item()
        assert difference <= TOLERANCE * max(gradient.norm().item(), 1e-3 * scale), name
    total = torch.stack([g.norm() for g in want.values()]).norm().item()
    assert rows[0]["grad_norm"] == pytest.approx(total, rel=TOLERANCE)
    return rows[0]


TVKD_CASES = [
    # layout, micro batch, kind, form, terminal, gamma, temperature
    (ONE, 4, "soft_value", "potential_difference", "bootstrap", 1.0, None),
    (TP2PP2, 1, "soft_value", "potential_difference", "bootstrap", 1.0, None),
    (TP2SP, 2, "soft_value", "potential_difference", "bootstrap", 0.9, 1.0),
    (PP2, 2, "soft_value", "potential_difference", "zero", 0.9, None),
    (DP2, 1, "soft_value", "next_value", "bootstrap", 1.0, None),
    (TP2PP2, 2, "soft_value", "next_value", "zero", 0.95, 1.0),
    (Layout(tp=2), 2, "max", "potential_difference", "bootstrap", 1.0, None),
    (TP2SP, 1, "margin", "potential_difference", "bootstrap", 0.9, None),
    (TP2PP2, 4, "expectation", "potential_difference", "bootstrap", 1.0, None),
    (PP2, 1, "logit", "potential_difference", "bootstrap", 1.0, None),
    (Layout(tp=2), 4, "logprob", "potential_difference", "bootstrap", 1.0, None),
]


@pytest.mark.parametrize(("layout", "micro", "kind", "form", "terminal", "gamma", "temperature"), TVKD_CASES)
def test_tvkd(
    pool: RankPool,
    models: Any,
    tmp_path: Path,
    layout: Layout,
    micro: int,
    kind: str,
    form: str,
    terminal: str,
    gamma: float,
    temperature: float | None,
) -> None:
    beta, alpha = 0.1, 0.7
    rule = {"kind": kind, "form": form, "terminal": terminal, "gamma": gamma, "temperature": temperature}
    expected, metrics = ref.tvkd_loss(models.student, models.teacher, models.pairs, beta=beta, alpha=alpha, **rule)
    options = [
        f"algorithm.beta={beta}",
        f"algorithm.alpha={alpha}",
        f"algorithm.shaping.value={kind}",
        f"algorithm.shaping.form={form}",
        f"algorithm.shaping.terminal={terminal}",
        f"algorithm.shaping.gamma={gamma}",
        f"algorithm.shaping.temperature={'null' if temperature is None else temperature}",
        f"trainer.micro_batch_size={micro}",
    ]
    row = check_step(
        pool,
        models,
        tmp_path,
        layout,
        "tvkd",
        expected,
        options=options,
        frozen={"teacher": models.paths["teacher"]},
    )
    for name, value in metrics.items():
        assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def test_tvkd_with_a_reference_policy(pool: RankPool, models: Any, tmp_path: Path) -> None:
    expected, _ = ref.tvkd_loss(
        models.student, models.teacher, models.pairs, beta=0.1, alpha=0.7, reference=models.teacher
    )
    check_step(
        pool,
        models,
        tmp_path,
        Layout(tp=2),
        "tvkd",
        expected,
        options=["algorithm.beta=0.1", "algorithm.use_reference=true"],
        frozen={"teacher": models.paths["teacher"], "reference": models.paths["teacher"]},
    )


@pytest.mark.parametrize(("layout", "smoothing"), [(ONE, 0.0), (TP2PP2, 0.1)])
def test_dpo(pool: RankPool, models: Any, tmp_path: Path, layout: Layout, smoothing: float) -> None:
    expected, metrics = ref.dpo_loss(models.student, models.teacher, models.pairs, beta=0.1, label_smoothing=smoothing)
    row = check_step(
        pool,
        models,
        tmp_path,
        layout,
        "dpo",
        expected,
        options=[f"algorithm.label_smoothing={smoothing}"],
        frozen={"reference": models.paths["teacher"]},
    )
    for name, value in metrics.items():
        assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("layout", "micro", "settings"),
    [
        (ONE, 4, {}),
        (TP2SP, 2, {"label_smoothing": 0.1}),
        (TP2PP2, 1, {"sft_weight": 0.3}),
        (DP2, 1, {"loss_type": "hinge", "sft_weight": 0.1}),
    ],
)
def test_simpo(
    pool: RankPool, models: Any, tmp_path: Path, layout: Layout, micro: int, settings: dict[str, Any]
) -> None:
    wanted = {name: value for name, value in settings.items() if name != "loss_type"}
    hinge = "loss_type" in settings
    expected, metrics = ref.simpo_loss(models.student, models.pairs, beta=2.5, gamma=2.5 * 0.4, hinge=hinge, **wanted)
    options = ["algorithm.beta=2.5", "algorithm.gamma_beta_ratio=0.4", f"trainer.micro_batch_size={micro}"]
    options += [f"algorithm.{name}={value}" for name, value in settings.items()]
    row = check_step(pool, models, tmp_path, layout, "simpo", expected, options=options)
    for name, value in metrics.items():
        assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(("layout", "micro"), [(ONE, 4), (TP2PP2, 2), (DP2, 1)])
def test_sft(pool: RankPool, models: Any, tmp_path: Path, layout: Layout, micro: int) -> None:
    examples = copy.copy(models)
    examples.items = copy.deepcopy(models.items)
    for item in examples.items:
        item.tokens.rejected_ids = None
    expected = ref.sft_loss(models.student, [(p.prompt, p.chosen) for p in models.pairs])
    check_step(pool, examples, tmp_path, layout, "sft", expected, options=[f"trainer.micro_batch_size={micro}"])


TURNS = [  # (tokens, trained?) of each turn: three answers, one, two of which the second was cut, an end token alone
    [([40, 41, 42], False), ([50, 51, 2], True), ([60], False), ([52, 2], True), ([61, 62, 63], False), ([2], True)],
    [([43], False), ([53, 54, 55, 56, 2], True)],
    [([44, 45], False), ([57, 2], True), ([64, 65], False), ([58, 59, 70], True)],
    [([46] * 20, False), ([2], True), ([66] * 9, False)],
]


@pytest.mark.parametrize(
    ("layout", "micro", "options"),
    [(ONE, 4, []), (TP2SP, 2, ["trainer.recompute=true"]), (PP2, 1, []), (DP2, 1, [])],
)
def test_sft_of_all_turns(
    pool: RankPool, models: Any, tmp_path: Path, layout: Layout, micro: int, options: list[str]
) -> None:
    """The sums and the token count are those of the assistant's turns alone, also where ranks have unequal shares."""
    examples = copy.copy(models)
    examples.items = copy.deepcopy(models.items)
    for item, (prompt, *turns) in zip(examples.items, TURNS, strict=True):
        item.tokens.prompt_ids = np.array(prompt[0], dtype=np.int32)
        item.tokens.chosen_ids = np.array([i for ids, _ in turns for i in ids], dtype=np.int32)
        item.tokens.rejected_ids = None
        mask = np.array([trained for ids, trained in turns for _ in ids])
        item.tokens.chosen_mask = None if mask.all() else mask
    expected = ref.turns_sft_loss(models.student, TURNS)
    options = [f"trainer.micro_batch_size={micro}", "trainer.val_interval=1", "optim.lr=1e-12", *options]
    check_step(pool, examples, tmp_path, layout, "sft", expected, options=options, validation=examples.items)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval_loss"] for row in rows[1:]] == [pytest.approx(expected.item(), rel=TOLERANCE)]


def test_dpo_starts_at_ln_2(pool: RankPool, models: Any, tmp_path: Path) -> None:
    rows = run_training(
        pool,
        TP2PP2,
        tmp_path,
        algorithm="dpo",
        student=models.paths["student"],
        items=models.items,
        frozen={"reference": models.paths["student"]},
    )
    assert rows[0]["loss"] == pytest.approx(0.693147180559945, abs=1e-6)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_vanishing_teacher_leaves_reference_free_dpo(pool: RankPool, models: Any, tmp_path: Path) -> None:
    expected = ref.reference_free_dpo_loss(models.student, models.pairs, 0.1)[0]
    rows = run_training(
        pool,
        Layout(tp=2),
        tmp_path,
        algorithm="tvkd",
        student=models.paths["student"],
        items=models.items,
        frozen={"teacher": models.paths["teacher"]},
        options=["algorithm.beta=0.1", "algorithm.shaping.terminal=zero"],
    )
    assert rows[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert rows[0]["shaping/margins"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["shaping/margins_std"] == pytest.approx(0, abs=1e-6)
