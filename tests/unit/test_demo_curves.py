"""The picture at the end of a demo: every run and every metric that is there, and held-out points."""

import json
from pathlib import Path
from typing import Any

import demo
import demo_curves
import demo_drdo
import pytest
from demo_curves import COLOURS, PANELS, draw_curves


def run(folder: Path, metrics: dict[str, float], validation: bool) -> Path:
    folder.mkdir()
    rows = [{"step": step, **{name: value * step for name, value in metrics.items()}} for step in (10, 20)]
    if validation:
        rows.append({"step": 20, **{f"eval_{name}": value for name, value in metrics.items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    found: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (found.append(self), save(self, *args))[1])
    return found


def test_curves(tmp_path: Path, drawn: list[Any]) -> None:
    pairs = {"loss": 0.5, "rewards/accuracies": 0.01, "rewards/margins": 0.1}
    runs = {
        "SFT": run(tmp_path / "sft", {"loss": 2.0}, validation=False),
        "DPO": run(tmp_path / "dpo", pairs, validation=True),
        "TVKD": run(tmp_path / "tvkd", {**pairs, "shaping/margins": 0.3}, validation=True),
        "not there": tmp_path / "nowhere",
    }
    file = tmp_path / "curves.png"
    assert draw_curves(runs, file) == file
    assert file.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    *panels, legend = figure.axes
    assert [axes.get_title() for axes in panels] == list(PANELS.values())[:5]
    curves = {
        axes.get_title(): [
            (line.get_color(), list(zip(*line.get_data(), strict=True)), line.get_linestyle() == "None")
            for line in axes.get_lines()
            if len(line.get_xdata()) and list(line.get_xdata()) != [0, 1]  # the line of chance
        ]
        for axes in panels
    }
    assert curves[PANELS["sft loss"]] == [(COLOURS[0], [(10, 20.0), (20, 40.0)], False)]
    assert curves[PANELS["loss"]] == [
        (COLOURS[1], [(10, 5.0), (20, 10.0)], False),
        (COLOURS[1], [(20, 0.5)], True),
        (COLOURS[2], [(10, 5.0), (20, 10.0)], False),
        (COLOURS[2], [(20, 0.5)], True),
    ]
    assert curves[PANELS["shaping/margins"]] == [
        (COLOURS[2], [(10, 3.0), (20, 6.0)], False),
        (COLOURS[2], [(20, 0.3)], True),
    ]
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["SFT", "DPO", "TVKD"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_curves({"run": tmp_path}, tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()


def test_the_demos_draw_runs_that_they_make(tmp_path: Path) -> None:
    for module in (demo, demo_drdo):
        made = {stage.output.parent.parent.name for stage in module.stages(tmp_path) if stage.arguments[0] == "train"}
        assert made == set(module.DRAWN)
        assert len(module.DRAWN) <= min(len(COLOURS), len(demo_curves.DASHES), len(demo_curves.MARKS))
