"""What `doctor` says of the containers: their files, their mounts, and whether the jobs' paths are inside."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tvkd.cluster.container import wrapped
from nemo_tvkd.cluster.recipe import Submission
from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.stages import StageChecks
from nemo_tvkd.config.compose import flatten
from nemo_tvkd.config.paths import PATH_KEYS
from nemo_tvkd.config.values import as_list
from nemo_tvkd.errors import UserError

FILES = (".sif", ".sqsh")
"""Endings of images that are files."""


def container_checks(submission: Submission, stages: Sequence[StageChecks]) -> Iterator[Check]:
    """Of each container the image, the mounts, the checkout to install, and paths that it would not see."""
    groups: dict[str, list[StageChecks]] = {}
    for stage in stages:
        if stage.stage.cluster.container.runtime != "none":
            groups.setdefault(str(stage.stage.cluster.container), []).append(stage)
    for text, group in groups.items():
        own = text != str(submission.config.cluster.container)
        key = f"{group[0].stage.name}.cluster.container" if own else "cluster.container"
        yield from _of_container(submission.run_dir, group, key)


def _of_container(run_dir: Path, stages: Sequence[StageChecks], key: str) -> Iterator[Check]:
    """What is wrong with the container that these stages share."""
    container = stages[0].stage.cluster.container
    try:
        wrapped(container, run_dir, (), gpus=True)
    except UserError as error:
        yield Check(key, "FAIL", str(error))
        return
    yield _image(stages[0].stage.cluster, f"{key}.image")
    for mount in container.mounts:
        host = mount.split(":", 1)[0]
        if not Path(host).exists():
            yield Check(f"{key}.mounts", "WARN", f"{mount}: {host} does not exist here", "does it on the nodes?")
    install = container.install
    if install and not Path(install).exists():
        what = f"{install} does not exist"
        yield Check(f"{key}.install", "FAIL", what, "a checkout or a wheel of nemo_tvkd")
    yield from _outside(container, run_dir, stages, f"{key}.mounts")


def _image(cluster: Any, name: str) -> Check:
    image, runtime = cluster.container.image, cluster.container.runtime
    if image.endswith(FILES) or image.startswith("/"):
        there = Path(image).expanduser().exists()
        return Check(name, "OK" if there else "FAIL", image if there else f"{image} does not exist")
    if cluster.offline and runtime in ("pyxis", "apptainer"):
        make = {"pyxis": "enroot import", "apptainer": "apptainer pull"}[runtime]
        advice = f"`{make}` it to a file once: nodes without a network cannot, and each step would unpack it again"
        return Check(name, "WARN", f"{runtime}: {image} comes from a registry", advice)
    return Check(name, "OK", f"{runtime}: {image} (each job tells its versions)")


def _outside(container: Any, run_dir: Path, stages: Sequence[StageChecks], name: str) -> Iterator[Check]:
    mounts = [[Path(part) for part in mount.split(":")[:2]] for mount in container.mounts]
    inside = [run_dir, *(host for host, there in mounts if host == there)]
    hidden = sorted(path for path in _paths(stages) if not any(path.is_relative_to(place) for place in inside))
    for path in hidden:
        level = "WARN" if container.runtime == "apptainer" else "FAIL"  # which mounts more, by the site's settings
        what = f"{path} lies in no {name}, so the jobs will not see it under this path"
        yield Check(name, level, what, f"for example {path.parent}:{path.parent}")


def _paths(stages: Sequence[StageChecks]) -> set[Path]:
    """Models, data, tokenizers, stores and caches on this machine that jobs read."""
    found = {Path(os.environ[name]) for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE") if name in os.environ}
    for stage in stages:
        try:
            found |= {path for value in _values(stage.config) if (path := _local(value)) is not None}
            models = [stage.found(key) for key in stage.keys]
            found |= {model.checkpoint.path for model in models if model.checkpoint is not None}
        except UserError:
            continue  # the stage's own checks say what is wrong
    return {path.expanduser().absolute() for path in found}


def _values(config: Any) -> Iterator[str]:
    """Of all keys that hold paths."""
    for key, value in flatten(OmegaConf.to_container(config)).items():
        if key.rpartition(".")[2] in PATH_KEYS:
            yield from (each for each in as_list(value) if isinstance(each, str))


def _local(value: str) -> Path | None:
    """The path of a value that is one on this machine (or DIR:SPLIT, or either with a weight behind it)."""
    places = [Path(value.rsplit(":", cut)[0]) for cut in range(3)]
    return next((place for place in places if place.is_absolute() and place.exists()), None)
