"""Weights & Biases: what is recorded, how runs end and go on, and that it never stops or ends a training run."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from terminal import run_in_terminal
from wandb_file import read_runs

from nemo_tvkd.__main__ import main
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.sections import WandbConfig
from nemo_tvkd.training import weights_and_biases
from nemo_tvkd.training.weights_and_biases import WeightsAndBiases

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user without a login, and a server that does not answer."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(weights_and_biases, "ONLINE_SECONDS", 2)
    wandb.teardown()
    yield
    wandb.teardown()


def start(folder: Path, step: int = 0, **options: str) -> WeightsAndBiases:
    folder.mkdir(exist_ok=True)
    section = WandbConfig(project="paper", **options)
    return WeightsAndBiases(section, folder, {"optim": {"lr": 0.1}, "list": [1, 2]}, step)


def test_a_run_and_its_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "first"
    for begun, steps, code in ((0, (1, 2), 85), (2, (3,), 2), (3, (4, 5), 0)):
        run = start(folder, begun, mode="offline", name="mine", group="all")
        for step in steps:
            run.write({"step": step, "loss": 1 / step, "rewards/margins": -0.5}, step)
        run.write({"step": steps[-1], "eval_loss": 0.25}, steps[-1])
        run.close(code)
        time.sleep(1.0 if code else 0.0)  # folders are named after the second
    assert capfd.readouterr() == ("", "")

    found = read_runs(folder)
    assert {run.run_id for run in found} == {(folder / "wandb_run_id").read_text().strip()}
    assert [(run.preempting, run.exit_code) for run in found] == [(True, 85), (False, 2), (False, 0)]
    assert [(run.project, run.name, run.group) for run in found] == [("paper", "mine", "all")] * 3
    assert {name: value for name, value in found[0].config.items() if name[0] != "_"} == {
        **{"optim": {"lr": 0.1}, "list": [1, 2]}
    }
    rows = [
        {name: row[name] for name in sorted(row) if name not in ("_timestamp", "_runtime")} for row in found[0].rows
    ]
    assert rows == [
        {"_step": 1, "loss": 1.0, "rewards/margins": -0.5},
        {"_step": 2, "eval_loss": 0.25, "loss": 0.5, "rewards/margins": -0.5},
    ]
    assert [[row["_step"] for row in run.rows] for run in found] == [[1, 2], [3], [4, 5]]

    known = (folder / "wandb_run_id").read_text()
    start(folder, 0, mode="offline").close(0)  # begun anew: what the old one says has nothing to do with it
    assert (folder / "wandb_run_id").read_text() != known


def test_the_name_of_a_run_is_its_folders(tmp_path: Path) -> None:
    start(tmp_path / "lr_1e-6", mode="offline").close(0)
    assert [run.name for run in read_runs(tmp_path / "lr_1e-6")] == ["lr_1e-6"]


@pytest.mark.parametrize("key", ["", KEY], ids=["no login", "no server"])
def test_it_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    began = time.monotonic()
    run = start(tmp_path / "run")
    assert time.monotonic() - began < 20
    run.write({"step": 1, "loss": 0.5}, 1)
    run.close(0)
    (recorded,) = read_runs(tmp_path / "run")
    assert [row["loss"] for row in recorded.rows] == [0.5]
    assert recorded.exit_code == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("wandb: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: Weights & Biases: the server cannot be used (")
    assert ("No API key" if not key else "resume status") in warnings[0]
    assert warnings[0].endswith(f"); this run is recorded offline: wandb sync {tmp_path}/run/wandb/offline-run-*")


def test_nobody_is_asked_for_a_login(tmp_path: Path) -> None:
    """In a real terminal, where wandb would like to know."""
    program = (
        "from pathlib import Path\nfrom nemo_tvkd.config.sections import WandbConfig\n"
        "from nemo_tvkd.training.weights_and_biases import WeightsAndBiases\n"
        f"run = WeightsAndBiases(WandbConfig(project='p'), Path({str(tmp_path)!r}), {{}}, 0)\n"
        "run.write({'step': 1, 'loss': 2.0}, 1)\nrun.close(0)\nprint(input('and now? '))\n"
    )
    environment = {**os.environ, "TERM": "xterm"}
    code, written = run_in_terminal(
        [sys.executable, "-c", program], environment, ready=lambda text: "and now?" in text, keys=b"yes\n", timeout=30
    )
    assert code == 0, written
    assert written.rstrip().endswith("yes"), "standard input was not given back"
    assert "Enter your choice" not in written
    assert [row["loss"] for run in read_runs(tmp_path) for row in run.rows] == [2.0]


def test_a_user_may_turn_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # as on a cluster, for all programs
    start(tmp_path / "run").close(0)
    assert len(read_runs(tmp_path / "run")) == 1


def test_a_process_that_is_gone_ends_no_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = start(tmp_path / "run", mode="offline")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise BrokenPipeError("gone")

    run.run = Broken()
    for step in (7, 8):
        run.write({"step": step, "loss": 0.5}, step)
    run.close(0)
    assert capfd.readouterr().err == (
        "warning: Weights & Biases: nothing is recorded from step 7 on: BrokenPipeError: gone\n"
    )
    run.run = Broken()
    run.close(1)
    assert "the end of the run is not recorded: BrokenPipeError: gone" in capfd.readouterr().err


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_package_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: bool
) -> None:
    """Also where a folder called wandb stands in for it, which every run leaves behind."""
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        if name == "wandb":
            return ModuleSpec("wandb", None, is_package=True) if folder else None
        return real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert main(["train", "algorithm=dpo", "logger.wandb.project=paper"]) == 2
    message = "nemo-tvkd: logger.wandb.project is set but wandb is not installed: pip install wandb\n"
    assert capfd.readouterr().err == message
    assert main(["train", "algorithm=dpo"]) == 2  # without a project nobody needs it
    assert "wandb" not in capfd.readouterr().err


def test_it_is_off_without_a_project(tmp_path: Path) -> None:
    from nemo_tvkd.training.records import MetricsFile, records

    config = compose("train", ["algorithm=dpo", "logger.tensorboard=false"])
    places = records(config, tmp_path, 0)
    assert [type(place) for place in places] == [MetricsFile]
    config = compose("train", ["algorithm=dpo", "logger.wandb.project=p", "logger.wandb.mode=offline"])
    places = records(config, tmp_path, 0)
    assert [type(place).__name__ for place in places] == ["MetricsFile", "TensorBoard", "WeightsAndBiases"]
    for place in places:
        place.close(0)
    assert read_runs(tmp_path)[0].config["trainer"]["output_dir"] == "runs/dpo"  # resolved


def test_a_resumed_run_takes_out_rows_that_come_again(tmp_path: Path) -> None:
    from nemo_tvkd.training.records import MetricsFile

    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": step}) for step in (1, 2, 3, 4)]
    file.write_text("\n".join(rows) + '\n{"step": 5, "lo')
    record = MetricsFile(tmp_path, 2)
    record.write({"step": 3, "loss": 9}, 3)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        *({"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 3, "loss": 9}),
    ]
