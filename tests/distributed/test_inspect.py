"""What `inspect` measures, against transformers' models in float64, at several layouts; which pairs it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from conversions import add_tokenizer
from rank_pool import Layout, RankPool
from reward_models import VOCAB, add_head, classifier, make_reward_model, random_head
from teacher import DP2, ONE, TP2PP2
from training import import_checkpoint, save_hf

from nemo_tvkd.commands.inspect.job import Inspection, prepare_inspection
from nemo_tvkd.commands.inspect.numbers import Figures, Response
from nemo_tvkd.config.compose import compose

TEXTS = (
    ("Who owns the lamp?", "Anna owns it.", "No."),
    ("Say hello.", "Hello, wide world!", "Hi 🤖"),
    ("Où?", "Là, à côté du théâtre.", "Nowhere at all, I am afraid to say."),
    ("Count.", "1 2 3\n4", "  one\ttwo"),
    ("Colour?", "b", "blue, and again blue, and blue"),
    ("Short?", "yes", "no"),
    ("Which day?", "Monday, or so they say.", "Tuesday"),
)
HIDDEN = 32


class Models:
    """A teacher with a reward head, a reference, a reward model; pairs; all of them and their float64 twins."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        options = {"vocab": VOCAB, "hidden": HIDDEN, "layers": 2, "heads": 4, "kv_heads": 2}
        self.teacher, self.reference = ref.tiny_llama(61, **options), ref.tiny_llama(62, **options)
        self.judge = classifier(ref.tiny_llama(63, **options), 64)
        self.head = random_head(65, HIDDEN)
        self.paths = {}
        sources = {
            "teacher": add_head(save_hf(self.teacher, folder / "teacher_hf"), self.head),
            "reference": save_hf(self.reference, folder / "reference_hf"),
            "judge": make_reward_model(folder / "judge_hf", self.judge),
        }
        for name, source in sources.items():
            add_tokenizer(source)
            self.paths[name] = folder / name
            pool.run(ONE, import_checkpoint, str(source), str(self.paths[name]))
        self.data = folder / "pairs.jsonl"
        rows = [
            {"id": f"row {i}", "prompt": ask, "chosen": w, "rejected": r, "chosen_reward": i / 2, "rejected_reward": 1}
            for i, (ask, w, r) in enumerate(TEXTS)
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.twins: dict[str, Any] = {}

    def twin(self, name: str) -> Any:
        if name not in self.twins:
            self.twins[name] = ref.as_float64(getattr(self, name))
        return self.twins[name]

    def overrides(self, *more: str, checkpoint: str = "teacher") -> list[str]:
        given = [f"checkpoint={self.paths[checkpoint]}", f"data.validation={self.data}", "precision=fp32"]
        return [*given, "data.max_length=128", *more]


@pytest.fixture(scope="module")
def made(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(pool, tmp_path_factory.mktemp("inspected"))


def inspect_task(overrides: list[str], job: Inspection) -> Figures:
    """Task: the page's numbers."""
    from nemo_tvkd.commands.inspect.job import inspect

    return inspect(compose("inspect", overrides), job)


def inspected(pool: RankPool, layout: Layout, overrides: list[str]) -> tuple[Figures, Inspection]:
    overrides = [*overrides, *layout.overrides()]
    job = prepare_inspection(compose("inspect", overrides))
    return pool.run(layout, inspect_task, overrides, job)[0], job


def close(got: Any, expected: Any) -> None:
    expected = np.asarray(expected, dtype=np.float64)
    assert np.shape(got) == expected.shape
    assert np.abs(np.asarray(got) - expected).max() <= 1e-5 * max(1.0, np.sqrt(np.mean(expected**2)))


@torch.no_grad()
def logits(twin: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """z(s_1) .. z(s_{T+1}), [T + 1, V] float64."""
    return twin(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 :]


@torch.no_grad()
def head_at_every_state(twin: Any, head: torch.Tensor, prompt: list[int], ids: list[int]) -> np.ndarray:
    base = twin.base_model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).last_hidden_state[0]
    return (base[len(prompt) - 1 :] @ head.double()[0]).numpy()


def check_response(made: Models, side: Response, prompt: list[int], kind: str, tau: float) -> np.ndarray:
    """A response's numbers are the reference's; returns its values."""
    ids = side.ids.tolist()
    z = logits(made.twin("teacher"), prompt, ids)
    chosen = torch.tensor(ids)[:, None]
    close(side.logp, z[:-1].log_softmax(-1).gather(-1, chosen)[:, 0])
    assert side.ref is not None
    base = logits(made.twin("reference"), prompt, ids)
    close(side.ref, base[:-1].log_softmax(-1).gather(-1, chosen)[:, 0])
    assert side.top_ids is not None
    assert side.top_p is not None
    best = z[:-1].softmax(-1).topk(3, -1)
    assert side.top_ids.tolist() == best.indices.tolist()
    close(side.top_p, best.values)
    values = ref.state_values(made.twin("teacher"), prompt, ids, kind, tau).detach().numpy()
    if kind in ref.STATE_KINDS:
        close(side.value, values)
    return values


CASES = [
    (ONE, "soft_value", "potential_difference", "bootstrap", 1.0, "judge"),
    (TP2PP2, "soft_value", "next_value", "bootstrap", 1.0, "teacher"),
    (TP2PP2, "margin", "potential_difference", "zero", 0.9, "judge"),
    (DP2, "logprob", "potential_difference", "bootstrap", 1.0, "judge"),
]


@pytest.mark.parametrize(("layout", "kind", "form", "terminal", "gamma", "judge"), CASES)
def test_numbers_are_the_references(
    pool: RankPool, made: Models, layout: Layout, kind: str, form: str, terminal: str, gamma: float, judge: str
) -> None:
    own = judge == "teacher"
    rewards = [] if own else [f"reward_model={made.paths['judge']}"]
    shaping = [
        f"shaping.value={kind}",
        f"shaping.form={form}",
        f"shaping.terminal={terminal}",
        f"shaping.gamma={gamma}",
    ]
    overrides = made.overrides(
        *(f"reference={made.paths['reference']}", "beta=0.2", "micro_batch_size=2", *rewards, *shaping),
    )
    figures, job = inspected(pool, layout, overrides)
    assert [pair.number for pair in figures.pairs] == list(range(1, len(TEXTS) + 1))
    for pair, row, (ask, *_) in zip(figures.pairs, job.rows, TEXTS, strict=True):
        assert pair.turns == [{"role": "user", "content": ask}]
        assert row.rejected_ids is not None
        sums = []
        for side, ids in zip(pair.sides, (row.chosen_ids, row.rejected_ids), strict=True):
            prompt = row.prompt_ids.tolist()
            assert side.ids.tolist() == ids.tolist()
            values = check_response(made, side, prompt, kind, 0.2)
            psi = values
            if kind in ref.STATE_KINDS:
                after = values[1:] * 1.0
                after[-1] *= terminal == "bootstrap"
                psi = gamma * after - (values[:-1] if form == "potential_difference" else 0)
            close(side.psi, psi)
            sums.append(psi.sum())
            assert side.reward is not None
            twin, head = ("teacher", made.head) if own else ("judge", made.judge.score.weight)
            close(side.reward, head_at_every_state(made.twin(twin), head.detach(), prompt, ids.tolist()))
        assert pair.margin == pytest.approx(sums[0] - sums[1], abs=1e-4)
    telescopes = (kind, form, terminal, gamma) == CASES[0][1:5]
    if kind in ref.STATE_KINDS:
        assert figures.telescoped is not None
        assert (figures.telescoped < 1e-9) == telescopes
    else:
        assert figures.telescoped is None
    assert [pair.chosen.label for pair in figures.pairs] == [i / 2 for i in range(len(TEXTS))]
    assert "".join(figures.pairs[1].rejected.pieces.texts) == "Hi 🤖</s>"


def test_the_choice_of_pairs(pool: RankPool, made: Models) -> None:
    def run(*more: str, layout: Layout = ONE) -> Figures:
        return inspected(pool, layout, made.overrides("beta=0.2", *more))[0]

    whole = run("limit=100")
    margins = {pair.number: pair.margin for pair in whole.pairs}
    assert len(set(margins.values())) == len(TEXTS)
    assert min(margins.values()) < 0 < max(margins.values())
    for order, key in (("disagreement", lambda m: m), ("margin", lambda m: -abs(m))):
        found = run(f"order={order}", "limit=3", layout=DP2)
        best = sorted(margins, key=lambda number: key(margins[number]))
        assert [pair.number for pair in found.pairs] == best[:3]
        assert [m for m, _ in found.margins] == pytest.approx(list(margins.values()), abs=1e-4)
    assert [pair.number for pair in run("limit=2").pairs] == [1, 2]
    chosen = run("pairs=[6,2,6]", "order=margin")
    assert [pair.number for pair in chosen.pairs] == [6, 2]
    assert [pair.name for pair in chosen.pairs] == ["row 5", "row 1"]
    assert chosen.pairs[0].row.source.endswith("pairs.jsonl:6")


def test_the_command_writes_the_page(made: Models, tmp_path: Path) -> None:
    output = tmp_path / "new" / "page.html"
    arguments = made.overrides("limit=2", f"output={output}", "order=disagreement", checkpoint="reference")
    command = [sys.executable, "-m", "nemo_tvkd", "inspect", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"written: {output}" in done.stdout
    assert "2 pairs shown; of 7 measured" in done.stdout
    text = output.read_text()
    assert text.count('<article class="pair"') == 2
    assert "the sum telescopes" in text
    (index,) = re.findall(r'id="index">(.*?)</script>', text)
    assert [quantity["key"] for quantity in json.loads(index)["quantities"]] == ["psi", "value", "logp"]
    assert len(json.loads(index)["others"]) == 5
    assert [entry.name for entry in output.parent.iterdir()] == ["page.html"]
