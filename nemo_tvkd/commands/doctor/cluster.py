"""What `doctor` says of the cluster's keys and the run folder."""

import shutil
from collections.abc import Iterator, Sequence

from nemo_tvkd.cluster.recipe import Submission
from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.container import container_checks
from nemo_tvkd.commands.doctor.sizes import GIB, disk_bytes
from nemo_tvkd.commands.doctor.stages import StageChecks
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.errors import UserError


def cluster_checks(submission: Submission, stages: Sequence[StageChecks]) -> Iterator[Check]:
    """The container's files, the mounts, and room in the run folder."""
    yield from container_checks(submission, stages)
    try:
        check_writable(str(submission.run_dir), "run_dir")
    except UserError as error:
        yield Check("run_dir", "FAIL", str(error))
        return
    yield _disk(submission, stages)


def _disk(submission: Submission, stages: Sequence[StageChecks]) -> Check:
    """Checkpoints are what fills a disk."""
    sizes = [0]
    for stage in stages:
        if stage.task:
            continue  # a stage's first task stands for all
        try:
            sizes.append(disk_bytes(stage))
        except UserError:
            continue  # the stage's own checks say what is wrong
    needed = sum(sizes)
    place = submission.run_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    size = f"up to {needed / GIB:.1f} GiB of {free / GIB:.0f} GiB free"
    text = f"{submission.run_dir}: checkpoints and exports take {size}"
    if needed <= free:
        return Check("disk space", "OK", text)
    level = "FAIL" if max(sizes) > free else "WARN"  # stages that are done can be removed meanwhile
    return Check("disk space", level, text, "another run_dir, or a smaller trainer.keep_checkpoints")
