"""Batch scripts as they are rendered: their directives, their quoting, what bash and shellcheck say of them."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemo_tvkd.cluster.container import quote
from nemo_tvkd.cluster.recipe import Stage
from nemo_tvkd.cluster.render import SINGLE_PROCESS, TEMPLATES, render
from nemo_tvkd.config.cluster import ClusterConfig, ContainerConfig
from nemo_tvkd.errors import UserError

RUNTIMES = ("none", "pyxis", "apptainer", "docker")
HOSTILE = 'it\'s "$(touch x)" `touch y` $HOME \\ end'
STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "account": "my account",
        "partition": "gpu",
        "qos": "high",
        "gpu_directive": "gres",
        "cpus_per_rank": 6,
        "modules": ["cuda/12.8", "odd name"],
        "environment": {"HF_HOME": "/scratch/a b", "ODD": HOSTILE},
        "setup": ['source "$HOME/venv/bin/activate"', "ulimit -c 0"],
        "sbatch_lines": ["--mail-type=END", '--comment="two words"'],
        "srun_options": ["--mpi=none", "--cpu-bind=map_cpu:0,1"],
        "python": "/opt/my python/bin/python",
    },
    "cpu": {"gpus_per_node": 0, "ranks_per_node": 2, "exclusive": False, "offline": False, "gpu_directive": "none"},
}


def stage(command: str = "train", sweep: int = 0, runtime: str = "none", install: str = "", **cluster: Any) -> Stage:
    options = {"pyxis": "--container-name=a,b", "apptainer": "--cleanenv", "docker": "--shm-size=1g"}
    container = ContainerConfig(
        runtime=runtime,
        install=install,
        mounts=["/data dir:/data:ro"],
        options=[options[runtime]] if runtime in options else [],
    )
    single = command in SINGLE_PROCESS
    return Stage(
        name="train",
        command=command,
        overrides=("algorithm=tvkd", "data.train='/a b'", f"student.path={HOSTILE}"),
        after=(),
        output=Path("/run/train"),
        sweep=tuple((f"trainer.seed={i}", f"trainer.output_dir={HOSTILE}/{i}") for i in range(sweep)),
        state="submitted",
        models={},
        cluster=ClusterConfig(name="test", container=container, **cluster),
        nodes=1 if single else 2,
        ranks_per_node=1 if single else 4,
    )


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bash_accepts_every_script(runtime: str) -> None:
    for command, sweep, style, install in itertools.product(TEMPLATES, (0, 3), STYLES, ("", "/src/nemo tvkd")):
        text = render(stage(command, sweep, runtime, install, **STYLES[style]), Path("/run dir"), "rec")
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), (command, sweep, style, install)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    """Every block of the templates is in one of these."""
    choices = [("train", 3, "everything", "/src/nemo tvkd"), ("export-hf", 0, "plain", ""), ("benchmark", 0, "cpu", "")]
    files = []
    for runtime, (command, sweep, style, install) in itertools.product(RUNTIMES, choices):
        files.append(tmp_path / f"{runtime}-{command}.sbatch")
        made = stage(command, sweep, runtime, install, **STYLES[style])
        files[-1].write_text(render(made, Path("/run dir"), "rec"))
    launchers = Path(__file__).resolve().parents[2] / "launch"
    files += launchers.glob("*.sh")
    done = subprocess.run(["shellcheck", *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.parametrize("command", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_directives_stand_before_the_first_command(command: str, style: str) -> None:
    lines = render(stage(command, 2, "pyxis", "/src", **STYLES[style]), Path("/run dir"), "rec").splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert lines[0] == "#!/bin/bash"
    assert all(line.startswith("#") for line in lines[: last + 1])
    assert all(len(line) <= 125 for line in lines if line.startswith("#") and not line.startswith("#SBATCH"))


def test_directives_of_a_plain_cluster() -> None:
    assert directives(render(stage(), Path("/run"), "rec")) == [
        "--job-name=nemo-tvkd-rec-train",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=8",
        "--mem=0",
        "--time=24:00:00",
        "--signal=B:USR1@300",
        "--open-mode=append",
        "--output=/run/logs/train-%j.log",
        "--requeue",
        "--exclusive",
    ]


def test_directives_of_an_array_with_every_key() -> None:
    found = directives(render(stage(sweep=3, **STYLES["everything"]), Path("/run 5%"), "rec"))
    assert {'--account="my account"', "--partition=gpu", "--qos=high", "--gres=gpu:8", "--cpus-per-task=6"} <= set(
        found
    )
    assert {"--array=0-2", '--output="/run 5%%/logs/train-%A_%a.log"', "--mail-type=END"} <= set(found)
    assert '--comment="two words"' in found


def test_memory_as_the_site_has_it() -> None:
    assert "--mem=200G" in directives(render(stage(memory="200G"), Path("/run"), "rec"))
    assert not [line for line in directives(render(stage(memory=""), Path("/run"), "rec")) if "mem" in line]


@pytest.mark.parametrize("command", TEMPLATES)
def test_nodes_are_tried_before_stages_of_several_ranks(command: str) -> None:
    text = render(stage(command, preflight=True), Path("/run"), "rec")
    assert text.count("on_every_rank python -m nemo_tvkd doctor\n") == (command not in SINGLE_PROCESS)
    assert "-m nemo_tvkd doctor\n" not in render(stage(command), Path("/run"), "rec")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_array_that_may_be_empty_is_read_as_it_is(runtime: str) -> None:
    """With `set -u`, bash before 4.4 takes an empty array for a variable that is not set. That bash is not here."""
    for command, install in itertools.product(TEMPLATES, ("", "/src")):
        lines = render(stage(command, 2, runtime, install), Path("/run"), "rec").splitlines()
        uses = [line for line in lines if "container[@]" in line and not line.startswith("#")]
        assert len(uses) == 2
        for line in uses:
            assert line.count('${container[@]+"${container[@]}"}') == line.count("${container[@]}")  # all are guarded
        others = {name for line in lines for name in re.findall(r"\$\{(\w+)\[@\]", line)} - {"container", "x"}
        assert others == {"srun", "choice"}  # which have words


@pytest.mark.parametrize(
    ("command", "gpus", "cpus"), [("train", True, 6), ("benchmark", True, 48), ("export-hf", False, 48)]
)
def test_a_single_process_gets_a_node(command: str, gpus: bool, cpus: int) -> None:
    text = render(stage(command, cpus_per_rank=6, runtime="docker"), Path("/run"), "rec")
    assert ("--gpus-per-node=8" in directives(text)) is gpus
    assert ("--gpus all" in text) is gpus
    assert f"--cpus-per-task={cpus}" in directives(text)
    assert ("MASTER_ADDR=" in text) is (command == "train")


def test_nodes_without_gpus() -> None:
    for runtime in RUNTIMES:
        text = render(stage(runtime=runtime, **STYLES["cpu"]), Path("/run"), "rec")
        assert not [line for line in directives(text) if "gpu" in line or "gres" in line or "exclusive" in line]
        assert "--gpus all" not in text
        assert "--nv" not in text
        assert "OFFLINE" not in text


def test_no_gpu_directive_where_the_site_wants_none() -> None:
    assert not [line for line in directives(render(stage(gpu_directive="none"), Path("/run"), "rec")) if "gpu" in line]


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("nvcr.io/nvidia/nemo:25.11", "'nvcr.io#nvidia/nemo:25.11'"),
        ("nvcr.io#nvidia/nemo:25.11", "'nvcr.io#nvidia/nemo:25.11'"),
        ("localhost:5000/nemo", "'localhost:5000#nemo'"),
        ("nvidia/cuda:12", "nvidia/cuda:12"),
        ("/images/nemo 1.sqsh", "'/images/nemo 1.sqsh'"),
        ("./nemo.sqsh", "./nemo.sqsh"),
    ],
)
def test_pyxis_gets_the_registry_as_enroot_writes_it(image: str, asked: str) -> None:
    made = stage(runtime="pyxis")
    made.cluster.container.image = image
    assert f"  --container-image={asked}\n" in render(made, Path("/run"), "rec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"account": "a\n#SBATCH --x"}, "--account has a line break"),
        ({"sbatch_lines": ["--a\nrm"]}, "cluster.sbatch_lines has a line break"),
        ({"environment": {"A B": "1"}}, "cluster.environment: 'A B'"),
        ({"gpu_directive": "gpus"}, "cluster.gpu_directive=gpus is none of gpus-per-node, gres, none"),
        ({"container": ContainerConfig(runtime="podman")}, "cluster.container.runtime=podman is none of"),
        ({"container": ContainerConfig(runtime="docker", image="")}, "cluster.container.image is empty"),
        ({"container": ContainerConfig(runtime="pyxis", mounts=["/a"])}, "cluster.container.mounts: '/a' is none"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], message: str) -> None:
    made = stage()
    for key, value in change.items():
        setattr(made.cluster, key, value)
    with pytest.raises(UserError) as caught:
        render(made, Path("/run"), "rec")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_folder_that_cannot_be_mounted() -> None:
    with pytest.raises(UserError, match="run_dir=/a:b cannot be mounted"):
        render(stage(runtime="docker"), Path("/a:b"), "rec")


@pytest.mark.parametrize(
    "word", ["", "plain", "a b", "it's", HOSTILE, "a,b", "$x", "a\nb", "'\n$", "\\'", "!x'", "{a,b}"]
)
def test_a_quoted_word_arrives_as_it_is(word: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {quote(word)}"], capture_output=True, text=True, check=True)
    assert done.stdout == word
