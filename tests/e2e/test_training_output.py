"""A real run in a terminal and in a log, recorded by Weights & Biases offline, stopped and resumed."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from demo_model import make_demo_model
from forked_commands import run_command
from terminal import run_in_terminal, screen
from wandb_file import read_runs

STEP = re.compile(r"step (\d+)/(\d+) .* tokens/s +(.+) left$")
SCORED = re.compile(r"scored (\d+) % .* tokens/s +(.+) left$")
"""Lines of a log."""
STEPS = 12
WIDTH = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    make_demo_model(folder, 64, hidden=64, layers=3)
    return folder


def environment(folder: Path) -> dict[str, str]:
    own = {"NEMO_TVKD_CACHE": str(folder / "imported"), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    own |= {"HOME": str(folder), "FORCE_COLOR": "1"}  # which is no terminal yet
    return {**{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}, **own}


def test_a_run_in_a_terminal_is_stopped_and_goes_on_in_a_log(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "nemo_tvkd", "train", "algorithm=dpo", f"student.path={folder}/model"),
        *(f"data.train={folder}/data/pairs_train.jsonl", f"data.validation={folder}/data/pairs_heldout.jsonl"),
        *("data.max_length=128", "parallel.tensor_model_parallel_size=2", "trainer.precision=fp32"),
        *(f"trainer.max_steps={STEPS}", "trainer.global_batch_size=4", "trainer.val_interval=3"),
        *(f"trainer.output_dir={output}", "optim.lr=1e-3"),
        *("logger.wandb.project=paper", "logger.wandb.group=small", "logger.wandb.mode=offline"),
    ]

    stop = re.compile(rf"\b[456]/{STEPS}\b.*loss")
    code, written = run_in_terminal(command, environment(folder), WIDTH, ready=lambda so_far: bool(stop.search(so_far)))
    assert code == 85, written
    assert "\x1b[?25l" not in written, "the cursor was hidden"
    shown = screen(written, WIDTH)
    bars = [line for line in shown if "━" in line or "─" in line]
    assert len(bars) == 1, shown  # one line, written again and again
    stopped = int(bars[0].split("/")[0])
    for piece in (f"/{STEPS} ", " loss 0.", " acc ", " tok/s", " left"):
        assert piece in bars[0]
    end = f"nemo-tvkd: stopped by a signal after step {stopped}; run the same command again to continue"
    assert "".join(shown[shown.index(bars[0]) + 1 :]) == end
    assert f"step 3/{STEPS}  eval_loss " in "\n".join(shown[: shown.index(bars[0])])
    assert not STEP.search(written), "lines for a log"

    done = run_command(command[3:], environment(folder), timeout=240)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    steps = [match for match in map(STEP.search, lines) if match]
    assert [int(match[1]) for match in steps] == list(range(stopped + 1, STEPS + 1))
    form = (
        r"step \d+/12  loss \d\.\d{4}  margins -?\d\.\d{4}  accuracies \d\.\d{4}  lr [\d.e+-]+  \d+ tokens/s  "
        r"00:00:\d\d left"
    )
    assert all(re.fullmatch(form, match.string) for match in steps), steps
    assert steps[-1][3] == "00:00:00"
    evaluated = [line for line in lines if " eval_loss " in line]
    assert [int(re.findall(r"\d+", line)[0]) for line in evaluated] == [s for s in (3, 6, 9, 12) if s > stopped]
    assert "wandb:" not in done.stdout + done.stderr

    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    expected: dict[int, dict[str, float]] = {}
    for row in rows:
        expected.setdefault(row["step"], {}).update({name: value for name, value in row.items() if name != "step"})
    runs = read_runs(output)
    recorded = {}
    for run in runs:
        for row in run.rows:
            recorded[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
    assert recorded == expected
    assert [(run.project, run.group, run.name) for run in runs] == [("paper", "small", "run")] * 2
    assert {run.run_id for run in runs} == {(output / "wandb_run_id").read_text().strip()}
    assert [(run.preempting, run.exit_code) for run in runs] == [(True, 85), (False, 0)]
    assert runs[0].config["optim"]["lr"] == 1e-3
    assert runs[0].config["algorithm"]["name"] == "dpo"
    assert runs[0].config["trainer"]["output_dir"] == str(output)


def test_scoring_in_a_terminal(folder: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "nemo_tvkd", "score", f"score.model={folder}/model", "score.precision=fp32"),
        *(f"data.train={folder}/data/pairs_train.jsonl", f"score.output={tmp_path}/scores"),
    ]
    code, written = run_in_terminal(command, environment(folder), WIDTH)
    assert code == 0, written
    shown = screen(written, WIDTH)
    (bar,) = (line for line in shown if "━" in line)
    assert bar.startswith(" 64/64 ━")
    assert bar.endswith(" left")
    below = "".join(shown[shown.index(bar) + 1 :]).replace(" ", "")  # a long path is wrapped at a space
    assert f"{tmp_path}/scores:64pairs," in below
    assert not SCORED.search(written), "lines for a log"
