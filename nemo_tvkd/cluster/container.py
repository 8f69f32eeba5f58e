"""How a job's processes are run in each container runtime."""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError

RUNTIMES = ("none", "pyxis", "apptainer", "docker")
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_NAME",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURMD_NODENAME",
)
"""What a rank (nemo_tvkd, Lightning) reads of its launcher."""
RANK_VARIABLES = (*SLURM_VARIABLES, "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")


def quote(word: str) -> str:
    """A word of a bash script, in the quotes that are easiest to read: it arrives exactly as it is."""
    if "'" in word and not set('"$`\\\n') & set(word):
        return f'"{word}"'
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "," in word else quoted  # (a,b) looks like a mistake in bash


@dataclass(frozen=True)
class Wrapped:
    """Words of the batch script, in bash's own quoting, around a command that runs in a container."""

    srun: tuple[str, ...] = ()
    """Further options of srun."""
    command: tuple[str, ...] = ()
    """What stands between srun's options and the command."""
    about: str = ""
    """A comment for the script."""
    cleanup: str = ""
    """A command for the end of a job that failed."""


def wrapped(container: Any, run_dir: Path, variables: Sequence[str], gpus: bool) -> Wrapped:
    """How srun runs a command in the container, with `run_dir` mounted under its own path and as working directory.

    Args:
        container: a ContainerConfig.
        variables: names of exported variables that the command must see.
        gpus: whether the job has GPUs.

    Raises:
        UserError: an unknown runtime, no image, a mount that is none.
    """
    if container.runtime not in RUNTIMES:
        raise UserError(f"cluster.container.runtime={container.runtime} is none of {', '.join(RUNTIMES)}")
    if container.runtime == "none":
        return Wrapped()
    if not container.image:
        raise UserError(f"cluster.container.image is empty; cluster.container.runtime={container.runtime} needs one")
    mounts = _mounts(container, run_dir)
    options = tuple(quote(word) for word in container.options)
    image = _enroot_name(container.image) if container.runtime == "pyxis" else container.image
    make = {"pyxis": _pyxis, "apptainer": _apptainer, "docker": _docker}[container.runtime]
    return make(quote(image), mounts, quote(str(run_dir)), options, variables, gpus)


def _enroot_name(image: str) -> str:
    """REGISTRY#IMAGE:TAG, as enroot separates a registry; a file and an image of Docker Hub stay as they are."""
    registry, slash, rest = image.partition("/")
    named = slash and registry and ("." in registry.strip(".") or ":" in registry) and "#" not in image
    return f"{registry}#{rest}" if named else image


def _mounts(container: Any, run_dir: Path) -> list[str]:
    separators = ":," if container.runtime != "docker" else ":"
    if found := [sign for sign in separators if sign in str(run_dir)]:
        raise UserError(f"run_dir={run_dir} cannot be mounted in a container: choose a path without {found[0]!r}")
    for mount in container.mounts:
        parts = mount.split(":")
        if len(parts) not in (2, 3) or not all(parts) or not all(part.startswith("/") for part in parts[:2]):
            raise UserError(f"cluster.container.mounts: {mount!r} is none: write /HOST/PATH:/CONTAINER/PATH[:ro]")
    return [f"{run_dir}:{run_dir}", *container.mounts]


def _pyxis(
    image: str, mounts: list[str], folder: str, options: tuple[str, ...], variables: Sequence[str], gpus: bool
) -> Wrapped:
    words = (
        f"--container-image={image}",
        f"--container-mounts={quote(','.join(mounts))}",
        f"--container-workdir={folder}",
        "--no-container-mount-home",
        f"--container-env={quote(','.join(variables))}",
    )
    about = "An image's own variables win over the job's, but for those that --container-env names."
    return Wrapped(srun=(*words, *options), about=about)


def _apptainer(
    image: str, mounts: list[str], folder: str, options: tuple[str, ...], variables: Sequence[str], gpus: bool
) -> Wrapped:
    binds = [f"--bind {quote(mount)}" for mount in mounts]
    program = '"$(command -v apptainer || echo singularity)" exec'
    words = (program, *(["--nv"] if gpus else []), *binds, f"--pwd {folder}", *options, image)
    return Wrapped(command=words)


def _docker(
    image: str, mounts: list[str], folder: str, options: tuple[str, ...], variables: Sequence[str], gpus: bool
) -> Wrapped:
    names = " ".join(f"--env={name}" for name in (*RANK_VARIABLES, *variables))
    words = (
        "docker run --rm",
        *(["--gpus all"] if gpus else []),
        "--network host --ipc host --pid host",
        "--ulimit memlock=-1 --ulimit stack=67108864",
        '--user "$(id -u):$(id -g)" --env=HOME=/tmp --env=USER',
        '--label nemo-tvkd-job="$SLURM_JOB_ID"',
        *(f"-v {quote(mount)}" for mount in mounts),
        f"-w {folder}",
        *textwrap.wrap(names, 110, break_on_hyphens=False),
        *options,
        image,
    )
    cleanup = (
        "srun --ntasks-per-node=1 bash -c 'docker ps -q --filter \"label=nemo-tvkd-job=$1\" | xargs -r docker rm -f' "
        'bash "$SLURM_JOB_ID"'
    )
    about = (
        "One container for each rank. It sees all GPUs and processes of the node, without which CUDA's memory is not\n"
        "# shared between ranks (NVLink); `docker run` passes signals on to the command."
    )
    return Wrapped(command=words, about=about, cleanup=cleanup)
