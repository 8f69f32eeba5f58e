"""`--help` is quick, its examples are right, and a pipe that closes early is no crash."""

import os
import subprocess
import sys
import time

import pytest
from bad_input import run_python

from nemo_tvkd.__main__ import main
from nemo_tvkd.config.compose import compose

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def test_help_is_quick_and_light() -> None:
    program = (
        "import sys\nfrom nemo_tvkd.__main__ import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'nemo', 'transformers', 'hydra', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    start = time.perf_counter()
    done = run_python("-c", program)
    elapsed = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert elapsed < 2
    for command in ("train", "score", "import-hf", "export-hf", "evaluate"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["train", "score", "import-hf", "export-hf", "evaluate"])
def test_help_of_a_command(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert f"\nexample: nemo-tvkd {command} " in out
    example = next(line for line in out.splitlines() if line.startswith("example: ")).split()[3:]
    compose(command, example)  # and what it shows is right
    assert err == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]])
def test_a_closed_pipe_is_no_crash(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nemo_tvkd", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141
