"""What `doctor` says of the cluster's keys and the run folder."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_tvkd.cluster.recipe import Submission
from nemo_tvkd.doctor.check import Check
from nemo_tvkd.doctor.sizes import GIB, disk_bytes
from nemo_tvkd.doctor.stages import StageChecks
from nemo_tvkd.errors import UserError
from nemo_tvkd.values import check_writable


def cluster_checks(submission: Submission, stages: Sequence[StageChecks]) -> Iterator[Check]:
    """The container's files, the mounts, and room in the run folder."""
    yield from _container(submission)
    try:
        check_writable(str(submission.run_dir), "run_dir")
    except UserError as error:
        yield Check("run_dir", "FAIL", str(error))
        return
    yield _disk(submission, stages)


def _container(submission: Submission) -> Iterator[Check]:
    container = submission.config.cluster.container
    if container.runtime == "none":
        return
    image = container.image
    if image.endswith((".sif", ".sqsh")) and not Path(image).expanduser().exists():
        yield Check("cluster.container.image", "FAIL", f"{image} does not exist", "pull it on a node with network")
    else:
        yield Check(
            "cluster.container.image", "OK", f"{container.runtime}: {image} (its versions are told by each job)"
        )
    for mount in container.mounts:
        host = mount.split(":", 1)[0]
        if not Path(host).exists():
            yield Check("cluster.container.mounts", "FAIL", f"{mount}: {host} does not exist here")
    install = container.install
    if install and not Path(install).exists():
        yield Check(
            "cluster.container.install", "FAIL", f"{install} does not exist", "a checkout or a wheel of nemo_tvkd"
        )


def _disk(submission: Submission, stages: Sequence[StageChecks]) -> Check:
    """Checkpoints are what fills a disk."""
    needed = 0
    for stage in stages:
        try:
            needed += disk_bytes(stage)
        except UserError:
            continue  # the stage's own checks say what is wrong
    place = submission.run_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    size = f"up to {needed / GIB:.1f} GiB of {free / GIB:.0f} GiB free"
    text = f"{submission.run_dir}: checkpoints and exports take {size}"
    if needed <= free:
        return Check("disk space", "OK", text)
    return Check("disk space", "FAIL", text, "another run_dir, or a smaller trainer.keep_checkpoints")
