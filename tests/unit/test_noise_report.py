"""The table and the plot of the noise experiment, from made-up figures."""

import math
from pathlib import Path
from typing import Any

import pytest
from noise_report import METHODS, interval, table, write_report


def figures(accuracy: float) -> dict[str, Any]:
    parts = [{"rewards/accuracies": accuracy + shift} for shift in (-0.2, 0.0, 0.0, 0.1)]
    return {
        "beta": 0.1,
        "rewards/accuracies": accuracy,
        "rewards/margins": 0.1 * accuracy,
        "reward_head/accuracies": 0.5,
        "by_strength": parts,
    }


CELLS = [
    {"noise": noise, "seed": seed, **{run: figures(0.8 - noise + 0.01 * seed) for run in ("oracle", *METHODS)}}
    for noise in (0.0, 0.4)
    for seed in range(3)
]


def test_intervals_are_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert interval([1.0, 1.0]) == (1.0, 0.0)
    assert math.isnan(interval([1.0])[1])


def test_the_table_has_every_student_at_every_noise() -> None:
    lines = table(CELLS, figures(0.6)).splitlines()
    assert len([line for line in lines if line.startswith(("| 0 |", "| 0.4 |"))]) == 2 * len(METHODS)
    half = interval([0.8, 0.81, 0.82])[1]
    assert f"| 0 | DPO | 0.810 ± {half:.3f} | 0.610 ± {half:.3f} | 0.910 ± {half:.3f} | 0.81 ± {half:.2f} |" in lines
    assert f"- label noise 0.4: 0.410 ± {half:.3f}" in lines
    assert "| - | SFT (the start) | 0.600 | 0.400 | 0.700 | 0.60 |" in lines
    assert "- label noise 0.4, DRDO - DPO: +0.000 ± 0.000" in lines


def test_the_report_is_written(tmp_path: Path) -> None:
    write_report(tmp_path, CELLS, figures(0.6))
    assert (tmp_path / "noise_robustness.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text() == table(CELLS, figures(0.6))
