"""A scoring job that is killed with SIGKILL at any moment, run again, ends with the bytes of one that never was."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from demo_model import make_demo_model
from forked_commands import Command

KILLS = (0, 20)
"""How many parts there are when the job is killed: the plan alone, and some."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed_score")
    make_demo_model(folder, 48, hidden=128, layers=6)  # slow enough to be caught between two parts
    return folder


def start(folder: Path, output: Path) -> Command:
    arguments = [
        *("score", f"score.model={folder}/model", f"score.output={output}"),
        *(f"data.train={folder}/data/pairs_train.jsonl", "data.max_length=256", "score.what=[value,logprob]"),
        *("score.value_kind=[soft_value,max]", "score.temperature=[0.01,1]", "score.part_size=1"),
        *("score.precision=fp32", "parallel.data_parallel_size=2"),
    ]
    environment = {**os.environ, "NEMO_TVKD_CACHE": str(folder / "imported"), "OMP_NUM_THREADS": "1"}
    return Command(arguments, environment)


def finish(process: Command) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, said + errors
    return said


def parts(output: Path) -> int:
    return len(list(output.glob("part-*.parquet")))


def wait(process: Command, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill_all(process: Command) -> None:
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    psutil.wait_procs(family, timeout=30)


def contents(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in output.iterdir()}


def test_the_store_is_the_same_after_any_kill(folder: Path, tmp_path: Path) -> None:
    said = finish(start(folder, tmp_path / "whole"))
    assert "tokens/s" in said
    assert "left" in said
    whole = contents(tmp_path / "whole")
    assert len(whole) == 48 + 2
    output = tmp_path / "killed"
    for count in KILLS:
        process = start(folder, output)
        wait(process, lambda: (output / "plan.json").exists() and parts(output) >= count)  # noqa: B023
        kill_all(process)
        there = contents(output)
        assert "manifest.json" not in there
        assert count <= parts(output) < 48
        assert all(whole[name] == data for name, data in there.items() if not name.startswith(".")), "half-written"
    finish(start(folder, output))
    assert contents(output) == whole
