"""launch/container.sh and launch/local.sh, with stand-ins for docker, enroot, apptainer and the interpreter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_IN = """#!/bin/bash
{ printf '%s' "${0##*/}"; printf '\\0%s' "$@"; printf '\\n=\\n'; } >> "$FAKE/calls"
for word in "$@"; do [[ $last == --output ]] && : > "$word"; last=$word; done
exit "${CODE:-0}"
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("bash", "dirname", "id", "mkdir", "mv"):
        (folder / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")
    return folder


def stand_in(fake: Path, *names: str) -> None:
    for name in names:
        (fake / name).write_text(STAND_IN)
        (fake / name).chmod(0o755)


def launch(fake: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """PATH has nothing but the stand-ins and what the scripts need, so that a real docker is not found."""
    env = {"PATH": str(fake), "HOME": str(fake.parent), "FAKE": str(fake), **environment}
    folder = fake.parent / "work ing"
    folder.mkdir(exist_ok=True)
    command = ["bash", str(REPOSITORY / "launch" / script), *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=30)


def calls(fake: Path) -> list[list[str]]:
    return [call.split("\0") for call in (fake / "calls").read_text().split("\n=\n") if call]


@pytest.mark.parametrize("script", ["container.sh", "local.sh"])
def test_help(fake: Path, script: str) -> None:
    done = launch(fake, script, "--help", PATH=os.environ["PATH"])
    assert done.returncode == 0
    assert done.stdout.startswith(f"launch/{script} ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image",), "--image needs a value"),
        (("--gpu",), "there is no option --gpu"),
        (("--runtime", "podman"), "--runtime podman is none of"),
        (("--mount", "/a"), "--mount /a: write /HOST/PATH:/CONTAINER/PATH"),
        ((), "none of docker, enroot, apptainer and singularity is installed here"),
        (("--runtime", "enroot"), "enroot is not installed here"),
    ],
)
def test_a_mistake_is_named(fake: Path, words: tuple[str, ...], message: str) -> None:
    if "--mount" in words:
        stand_in(fake, "docker")
    done = launch(fake, "container.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("launch/container.sh: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_docker_runs_a_command_with_its_words(fake: Path) -> None:
    stand_in(fake, "docker", "apptainer", "nvidia-smi")
    done = launch(fake, "container.sh", "--mount", "/a b:/c", "--", "ls", "$x y", "--help", CODE="7")
    assert done.returncode == 7
    (call,) = calls(fake)
    assert call[:4] == ["docker", "run", "--rm", "--interactive"]
    assert call[4:6] == ["--gpus", "all"]
    mounts = [call[index + 1] for index, word in enumerate(call) if word == "--volume"]
    folder = f"{fake.parent}/work ing"
    assert mounts == [f"{folder}:{folder}", f"{REPOSITORY}:{REPOSITORY}", "/a b:/c"]
    assert call[call.index("--workdir") + 1] == folder
    image = call.index("nvcr.io/nvidia/nemo:25.11")
    assert call[image + 1 : image + 3] == ["bash", "-c"]
    assert call[-4:] == [str(REPOSITORY), "ls", "$x y", "--help"]


def test_enroot_imports_an_image_once(fake: Path) -> None:
    stand_in(fake, "enroot")
    for _ in range(2):
        assert launch(fake, "container.sh", "true").returncode == 0
    first, start, again = calls(fake)
    image = f"{fake.parent}/.cache/nemo_tvkd/nvcr.io+nvidia+nemo+25.11.sqsh"
    assert first == ["enroot", "import", "--output", f"{image}.partial", "docker://nvcr.io#nvidia/nemo:25.11"]
    assert start == again
    assert start[:3] == ["enroot", "start", "--rw"]
    assert image in start


@pytest.mark.parametrize("name", ["apptainer", "singularity"])
def test_apptainer_and_singularity(fake: Path, name: str) -> None:
    stand_in(fake, name)
    assert launch(fake, "container.sh", "--image", "/images/nemo.sif").returncode == 0
    (call,) = calls(fake)
    assert call[:3] == [name, "exec", "--pwd"]  # no --nv where there is no GPU
    assert "/images/nemo.sif" in call
    assert call[-1] == "bash"  # a shell


def test_dry_run_runs_nothing(fake: Path) -> None:
    stand_in(fake, "docker")
    done = launch(fake, "container.sh", "--dry-run", "--image", "x y", "echo", "a b")
    assert not (fake / "calls").exists()
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {done.stdout}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines()[:2] == ["docker", "run"]
    assert words.stdout.splitlines()[-2:] == ["echo", "a b"]


def test_the_project_is_installed_beside_the_image(fake: Path, tmp_path: Path) -> None:
    """The part that runs in the container, on this machine, with a stand-in for its interpreter."""
    stand_in(fake, "docker", "python")
    launch(fake, "container.sh", "--", "python", "a b")
    (call,) = calls(fake)
    inside = call[call.index("bash") :]
    (fake / "calls").unlink()
    env = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake), "TMPDIR": str(tmp_path)}
    subprocess.run(inside, env=env, check=True, timeout=60)
    install, versions, command = calls(fake)
    assert install[1:6] == ["-m", "pip", "install", "--quiet", "--no-deps"]
    assert str(REPOSITORY) not in " ".join(install)  # pip works on a copy
    assert versions == ["python", "-m", "nemo_tvkd.commands.doctor.versions"]
    assert command == ["python", "a b"]


@pytest.mark.parametrize("words", [(), ("recipe=x",), ("--dry-run",)])
def test_a_stage_comes_first(fake: Path, words: tuple[str, ...]) -> None:
    done = launch(fake, "local.sh", *words)
    assert done.returncode == 2
    assert "the first word is the name of a stage" in done.stderr


@pytest.mark.parametrize(("given", "cluster"), [((), ["cluster=local"]), (("cluster=mine",), ["cluster=mine"])])
def test_a_stage_runs_here(fake: Path, given: tuple[str, ...], cluster: list[str]) -> None:
    stand_in(fake, "python")
    words = ("train", *given, "recipe=x", "note=a b")
    done = launch(fake, "local.sh", *words, PYTHON=str(fake / "python"), CODE="85")
    assert done.returncode == 85
    expected = ["-m", "nemo_tvkd", "submit", *cluster, "recipe=x", "note=a b", "--here", "train"]
    assert calls(fake) == [["python", *expected]]


def test_signals_reach_the_stage(fake: Path, tmp_path: Path) -> None:
    (fake / "python").write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(85))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(30)\n"
    )
    (fake / "python").chmod(0o755)
    command = ["bash", str(REPOSITORY / "launch" / "local.sh"), "train", "recipe=x"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHON": str(fake / "python")})
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=20) == 85
    finally:
        process.kill()
