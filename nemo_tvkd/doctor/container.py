"""What `doctor` says of the container: its files, its mounts, and whether the jobs' paths are inside."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_tvkd.cluster.recipe import Submission
from nemo_tvkd.doctor.check import Check
from nemo_tvkd.doctor.stages import StageChecks
from nemo_tvkd.errors import UserError

FILES = (".sif", ".sqsh")
"""Endings of images that are files."""


def container_checks(submission: Submission, stages: Sequence[StageChecks]) -> Iterator[Check]:
    """The image, the mounts, the checkout to install, and paths that the container would not see."""
    container = submission.config.cluster.container
    if container.runtime == "none":
        return
    yield _image(submission)
    for mount in container.mounts:
        host = mount.split(":", 1)[0]
        if not Path(host).exists():
            yield Check(
                "cluster.container.mounts", "WARN", f"{mount}: {host} does not exist here", "does it on the nodes?"
            )
    install = container.install
    if install and not Path(install).exists():
        what = f"{install} does not exist"
        yield Check("cluster.container.install", "FAIL", what, "a checkout or a wheel of nemo_tvkd")
    yield from _outside(submission, stages)


def _image(submission: Submission) -> Check:
    cluster = submission.config.cluster
    name, image, runtime = "cluster.container.image", cluster.container.image, cluster.container.runtime
    if image.endswith(FILES):
        there = Path(image).expanduser().exists()
        return Check(name, "OK" if there else "FAIL", image if there else f"{image} does not exist")
    if cluster.offline and runtime in ("pyxis", "apptainer"):
        make = {"pyxis": "enroot import", "apptainer": "apptainer pull"}[runtime]
        advice = f"`{make}` it to a file once: nodes without a network cannot, and each step would unpack it again"
        return Check(name, "WARN", f"{runtime}: {image} comes from a registry", advice)
    return Check(name, "OK", f"{runtime}: {image} (each job tells its versions)")


def _outside(submission: Submission, stages: Sequence[StageChecks]) -> Iterator[Check]:
    container = submission.config.cluster.container
    mounts = [mount.split(":") for mount in container.mounts]
    inside = [submission.run_dir, *(Path(mount[0]) for mount in mounts if mount[0] == mount[1])]
    hidden = sorted(path for path in _paths(stages) if not any(path.is_relative_to(place) for place in inside))
    for path in hidden:
        level = "WARN" if container.runtime == "apptainer" else "FAIL"  # which mounts more, by the site's settings
        what = f"{path} lies in no cluster.container.mounts, so the jobs will not see it under this path"
        yield Check("cluster.container.mounts", level, what, f"for example {path.parent}:{path.parent}")


def _paths(stages: Sequence[StageChecks]) -> set[Path]:
    """Models, data and caches on this machine that jobs read."""
    found = {Path(os.environ[name]) for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE") if name in os.environ}
    for stage in stages:
        try:
            models = [stage.found(key) for key in stage.keys]
            found |= {model.checkpoint.path for model in models if model.checkpoint is not None}
            found |= {Path(file) for file in stage.local_files() if Path(file).exists()}
        except UserError:
            continue  # the stage's own checks say what is wrong
    return {path.expanduser().absolute() for path in found}
