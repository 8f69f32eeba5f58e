"""What `evaluate` prints: on 80 columns, without colour in a log, and with names that tell checkpoints apart."""

import re
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.commands.evaluate.comparison import compare
from nemo_tvkd.commands.evaluate.figures import Judgement, Others, figures_of, result_of
from nemo_tvkd.commands.evaluate.tables import interval, labels, number, show
from nemo_tvkd.config.compose import compose

LABELS = {
    ("runs/tvkd", "runs/dpo"): ["tvkd", "dpo"],
    ("/a/runs/tvkd/hf", "/a/runs/dpo/hf", "/a/runs/sft/hf/"): ["tvkd", "dpo", "sft"],
    ("org/model-1b", "org/model-7b"): ["model-1b", "model-7b"],
    ("a/x", "a/y", "b/x"): ["a/x", "a/y", "b/x"],
    ("run", "run/checkpoints/step-00000002"): ["run", "run/checkpoints/step-00000002"],
    ("run", "run"): ["run", "run (2)"],
    ("a/b", "other"): ["a/b", "other"],
}


@pytest.mark.parametrize("paths", LABELS)
def test_checkpoints_are_called_by_what_tells_them_apart(paths: tuple[str, ...]) -> None:
    assert labels(paths) == LABELS[paths]


def printed(capsys: pytest.CaptureFixture[str], names: list[str], *options: str) -> str:
    """The tables of made-up checkpoints, with numbers that are as long as they get."""
    config: Any = compose("evaluate", ["resamples=50", *options])
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 900, (40, 2))
    others = Others(np.round(rng.normal(0, 0.1, (40, 2)), 4), rng.normal(-1234.5, 567.8, (40, 2)))
    judged = [
        Judgement(lengths, rng.normal(-1234, 567, (40, 2)), None, rng.normal(-1e-4, 3e-5, (40, 2))) for _ in names
    ]
    facts = {"beta": 0.1, "reference": "org/the-model", "oracle": ["a", "b"], "teacher": None}
    first, *rest = both = [(one, figures_of(one, others, 10)) for one in judged]
    results = [
        {"checkpoint": name, **facts, **result_of(one, others, figures, config)}
        for name, (one, figures) in zip(names, both, strict=True)
    ]
    show(results, compare(first, rest, config), config)
    return capsys.readouterr().out


NUMBER = r"[-+]?\d[\d.]*(?:e[-+]\d+)?"


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_80_columns_hold_it_and_no_number_is_broken(capsys: pytest.CaptureFixture[str], count: int) -> None:
    names = [f"/very/long/path/of/somebody/runs/[red]a-long-name-of-a-run-{i}[/red]/export" for i in range(count)]
    text = printed(capsys, names)
    assert "\x1b" not in text, "no colour in a log"
    assert "…" not in text
    lines = text.splitlines()
    assert max(len(line) for line in lines if "/very/long" not in line) <= 80
    assert "[red]" in "".join(text.split()), "a path is text, not markup"
    for name in ("rewards/accuracies", "rewards/teacher_rank_correlation", "logps/per_token_accuracies"):
        row = next(line for line in lines if line.strip().startswith(name))
        assert re.fullmatch(rf"\s*{name}(\s+({NUMBER}|–|to))+\s*", row), row
    assert ("less" in text) == (count > 1)
    assert all("[red]a-long-name-of-a-run-0[" in line for line in lines if " less " in line)
    assert ("by the strength of the preference" in text) == (count == 1)
    spans = [line.strip() for line in lines if " to " in line and "/" not in line and "interval" not in line]
    assert spans
    for line in spans:
        assert re.search(rf"{NUMBER} to {NUMBER}", line), line


def test_a_terminal_has_colour_and_its_own_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(capsys, ["runs/a", "runs/b", "runs/c", "runs/d"])
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert any(re.search(r"\ba +b +c +d\b", line) for line in plain.splitlines()), "all four beside each other"


def test_without_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    for names in (["runs/a"], ["runs/a", "runs/b"]):
        text = printed(capsys, names, "resamples=0")
        assert "interval" not in text
        assert "rewards/margins" in text


def test_numbers() -> None:
    assert [number(v) for v in (None, 0.123456, -1234.5678, 1e-7, 3)] == ["–", "0.1235", "-1235", "1e-07", "3"]
    assert interval((0.12345, 2.0)) == "0.123 to 2"
    assert interval(None) == ""
