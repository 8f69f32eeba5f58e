"""SIGUSR1, SIGTERM and Ctrl-C in every phase of real commands: exit code 85, nothing left behind, a rerun goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from demo_model import make_demo_model
from forked_commands import Command

NOTHING = "nemo-tvkd: stopped by a signal, nothing to save; run the same command again to continue"
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    make_demo_model(folder, 64, hidden=64, layers=3)
    return folder


class Started:
    """`nemo-tvkd ...` as a process group of its own, with its two streams in files."""

    def __init__(self, folder: Path, log: Path, *arguments: str, by_shell: bool = False) -> None:
        self.log = log
        self.process: subprocess.Popen | Command
        environment = {**os.environ, "NEMO_TVKD_CACHE": str(folder / "imported"), "OMP_NUM_THREADS": "1"}
        if not by_shell:
            self.process = Command(arguments, environment, output=log, errors=Path(f"{log}.err"))
            return
        with open(log, "w") as stream, open(f"{log}.err", "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nemo_tvkd", *arguments],
                env=environment,
                stdout=stream,
                stderr=errors,
                start_new_session=True,
            )

    def wait(self, ready: Callable[["Started"], bool]) -> None:
        deadline = time.monotonic() + 120
        while not ready(self):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, "this phase never came"
            time.sleep(0.001)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def said(self) -> str:
        return f"code {self.process.returncode}\n{self.log.read_text()}{self.errors()}"

    def errors(self) -> str:
        return Path(f"{self.log}.err").read_text()

    def end(self, seconds: float = 120) -> int:
        """The exit code; nothing that it started may be left."""
        family = self.family() if self.process.poll() is None else []
        try:
            code = self.process.wait(seconds)
        finally:
            left = psutil.wait_procs(family, timeout=5)[1]
            for process in left:
                process.kill()
            self.process.kill()
        assert not left, f"left behind: {left}"
        return code

    def stopped(self, number: int) -> None:
        """The signal ends the command soon, with nothing but one line."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.end(30)
        assert code == 85, self.said()
        assert time.monotonic() - began < 20  # 0.3 s on an idle machine
        assert self.errors().splitlines() == [NOTHING], self.said()


def importing(command: Started) -> bool:
    """In the middle of `import torch`."""
    try:
        return "libtorch_cpu" in Path(f"/proc/{command.process.pid}/maps").read_text()
    except OSError:
        return False


def starts(*words: str) -> Callable[[Started], bool]:
    """A process of the command that has all of `words` on its command line."""

    def ready(command: Started) -> bool:
        for process in command.family():
            try:
                if set(words) <= set(process.cmdline()):
                    return True
            except psutil.Error:
                pass
        return False

    return ready


def steps(output: Path) -> list[int]:
    file = output / "metrics.jsonl"
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a row that is being written
            found.append(json.loads(line))
    return [row["step"] for row in found if "loss" in row]


def complete(output: Path) -> list[str]:
    return sorted(p.name for p in (output / "checkpoints").glob("step-*") if (p / "context").exists())


def train(folder: Path, output: Path, log: Path, *more: str, by_shell: bool = False) -> Started:
    arguments = [
        *("train", "algorithm=dpo", f"student.path={folder}/model", f"data.train={folder}/data/pairs_train.jsonl"),
        *("data.max_length=128", "parallel.tensor_model_parallel_size=2", "trainer.precision=fp32"),
        *(f"trainer.max_steps={STEPS}", "trainer.global_batch_size=4", "optim.lr=1e-3", "optim.warmup_ratio=0"),
        *("optim.schedule=constant", f"trainer.output_dir={output}"),
    ]
    return Started(folder, log, *arguments, *more, by_shell=by_shell)


def test_a_training_run_in_every_phase(folder: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "log"

    command = train(folder, output, log, by_shell=True)
    command.wait(importing)
    command.stopped(signal.SIGTERM)

    command = train(folder, output, log)  # two ranks; the first converts the student in a process of its own
    command.wait(starts("import-hf"))
    command.wait(lambda c: list((folder / "imported").glob(".*.incomplete")) != [])
    command.stopped(signal.SIGUSR1)
    assert list((folder / "imported").glob(".*.incomplete")), "stopped in the middle"
    assert not complete(output)

    command = train(folder, output, log)
    command.wait(lambda c: (output / "config.yaml").exists())  # building the model, before the first step
    command.stopped(signal.SIGTERM)
    assert not complete(output)

    command = train(folder, output, log)
    command.wait(lambda c: len(steps(output)) >= 1)
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does: every process gets it, some of them twice
    assert command.end() == 85, command.said()
    assert "stopped by a signal after step" in command.errors()
    first = complete(output)
    assert len(first) == 1
    assert not list((folder / "imported").glob(".*.incomplete")), "the conversion was begun again"

    command = train(folder, output, log)
    done = len(steps(output))
    command.wait(lambda c: len(steps(output)) > done)
    while command.process.poll() is None:  # also while the checkpoint is being saved
        command.process.send_signal(signal.SIGUSR1)
        time.sleep(0.01)
    assert command.end() == 85, command.said()
    assert command.errors().splitlines() == [
        f"nemo-tvkd: stopped by a signal after step {max(steps(output))}; run the same command again to continue"
    ]
    assert complete(output)[-1] == f"step-{max(steps(output)):08d}"

    validation = ",".join([f"{folder}/data/pairs_train.jsonl"] * 20)
    command = train(folder, output, log, f"data.validation=[{validation}]")
    command.wait(lambda c: f"step-{STEPS:08d}" in complete(output))
    time.sleep(0.2)
    command.stopped(signal.SIGUSR1)
    assert steps(output) == list(range(1, STEPS + 1))

    command = train(folder, output, log)
    assert command.end() == 0, command.said()
    assert f"is complete: step {STEPS} of {STEPS}" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_conversion(folder: Path, tmp_path: Path, number: int) -> None:
    """A command of one process."""
    command = Started(folder, tmp_path / "log", "import-hf", f"source={folder}/model", f"output={tmp_path}/nemo")
    command.wait(lambda c: (tmp_path / ".nemo.incomplete").exists())
    command.stopped(number)
    assert not (tmp_path / "nemo").exists()


def test_scoring_goes_on_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    def score(output: Path) -> Started:
        return Started(
            folder,
            tmp_path / "log",
            *("score", f"score.model={folder}/model", f"score.output={output}", "score.part_size=1"),
            *(f"data.train={folder}/data/pairs_train.jsonl", "data.max_length=256", "score.what=[value,logprob]"),
            *("score.value_kind=[soft_value,max]", "score.temperature=[0.01,1]", "score.precision=fp32"),
            "parallel.data_parallel_size=2",
        )

    def contents(output: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in output.iterdir() if not file.name.startswith(".")}

    whole = score(tmp_path / "whole")
    assert whole.end() == 0, whole.said()
    output = tmp_path / "stopped"
    for number, parts in ((signal.SIGUSR1, 4), (signal.SIGTERM, 20)):
        command = score(output)
        command.wait(lambda c: len(list(output.glob("part-*.parquet"))) >= parts)  # noqa: B023
        command.stopped(number)
        there = contents(output)
        assert "manifest.json" not in there
        assert parts <= len(list(output.glob("part-*.parquet"))) < 64
        assert there.items() <= contents(tmp_path / "whole").items(), "half-written"
    command = score(output)
    assert command.end() == 0, command.said()
    assert contents(output) == contents(tmp_path / "whole")
