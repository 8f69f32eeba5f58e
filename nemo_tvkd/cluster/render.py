"""A stage as a batch script, from the templates in slurm/."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from nemo_tvkd.cluster.container import quote, wrapped
from nemo_tvkd.cluster.recipe import Stage, ranks_per_node
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder
from nemo_tvkd.runtime.outputs import MARKS

TEMPLATES = {
    "train": "train.sbatch",
    "score": "score.sbatch",
    "export-hf": "convert.sbatch",
    "evaluate": "evaluate.sbatch",
    "benchmark": "benchmark.sbatch",
}
SINGLE_PROCESS = ("export-hf", "benchmark")
WITHOUT_GPUS = ("export-hf",)
GPU_DIRECTIVES = ("gpus-per-node", "gres", "none")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "nemo_tvkd", "conf", "slurm")
"""What of a checkout the package is built from."""
_PLAIN = re.compile(r"[\w@%+=:,./\[\]{}-]*")


def render(stage: Stage, run_dir: Path, recipe: str) -> str:
    """The sbatch script of a stage; it can be submitted from any directory.

    Args:
        run_dir: absolute; it is on a file system that all nodes see.
        recipe: the recipe's name, for the job's.

    Raises:
        UserError: a key of the cluster that cannot be written into a script.
    """
    cluster = stage.cluster
    gpus = cluster.gpus_per_node > 0 and stage.command not in WITHOUT_GPUS
    variables = _variables(cluster, run_dir, _cpus(stage))
    return (
        _templates()
        .get_template(TEMPLATES[stage.command])
        .render(
            stage=stage,
            recipe=_one_line("recipe.name", recipe),
            cluster=cluster,
            run_dir=_one_line("run_dir", str(run_dir)),
            mark=MARKS[stage.command],
            script=quote(f"{run_dir}/jobs/{stage.name}.sbatch"),
            directives=_directives(stage, run_dir, recipe, gpus),
            variables=variables,
            srun=_srun_options(stage),
            container=wrapped(cluster.container, run_dir, list(variables), gpus),
            python=quote(cluster.python),
            sources=SOURCES,
        )
    )


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(package_folder("slurm")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is bash, not HTML: the filter `quote` is the escape
    )
    found.filters["quote"] = quote
    return found


def _directives(stage: Stage, run_dir: Path, recipe: str, gpus: bool) -> list[str]:
    """What stands behind #SBATCH; sbatch reads quotes there as a shell does."""
    cluster = stage.cluster
    logs = f"{run_dir}/logs/{stage.name}".replace("%", "%%")
    options: dict[str, Any] = {
        "job-name": f"nemo-tvkd-{recipe}-{stage.name}",
        "nodes": stage.nodes,
        "ntasks-per-node": stage.ranks_per_node,
        **_gpu_option(cluster, gpus),
        "cpus-per-task": _cpus(stage),
        "mem": cluster.memory,
        "time": cluster.time,
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "array": f"0-{len(stage.sweep) - 1}" if stage.sweep else "",
        "signal": f"B:USR1@{cluster.signal_seconds}",
        "open-mode": "append",
        "output": f"{logs}-%A_%a.log" if stage.sweep else f"{logs}-%j.log",
    }
    lines = [f"--{name}={_directive(name, str(value))}" for name, value in options.items() if value not in ("", None)]
    flags = ["--requeue", *(["--exclusive"] if cluster.exclusive else [])]
    return [*lines, *flags, *(_one_line("cluster.sbatch_lines", line) for line in cluster.sbatch_lines)]


def _gpu_option(cluster: Any, gpus: bool) -> dict[str, Any]:
    if cluster.gpu_directive not in GPU_DIRECTIVES:
        raise UserError(f"cluster.gpu_directive={cluster.gpu_directive} is none of {', '.join(GPU_DIRECTIVES)}")
    if not gpus or cluster.gpu_directive == "none":
        return {}
    if cluster.gpu_directive == "gres":
        return {"gres": f"gpu:{cluster.gpus_per_node}"}
    return {"gpus-per-node": cluster.gpus_per_node}


def _cpus(stage: Stage) -> int | None:
    """CPUs of one process; a single process gets those of all the ranks that would share its node."""
    cluster = stage.cluster
    if cluster.cpus_per_rank is None:
        return None
    if stage.command in SINGLE_PROCESS:
        return int(cluster.cpus_per_rank * ranks_per_node(cluster))
    return int(cluster.cpus_per_rank)


def _srun_options(stage: Stage) -> list[str]:
    cpus = _cpus(stage)  # srun does not take over the job's since Slurm 22.05
    own = [f"--cpus-per-task={cpus}"] if cpus else []
    return [*own, *(quote(word) for word in stage.cluster.srun_options)]


def _variables(cluster: Any, run_dir: Path, threads: int | None) -> dict[str, str]:
    """What the jobs export; the cluster's own settings come last."""
    found = {"NEMO_TVKD_CACHE": f"{run_dir}/imported", "OMP_NUM_THREADS": str(threads or 1)}
    if cluster.container.runtime != "none":
        found["PYTHONNOUSERSITE"] = "1"  # packages in ~/.local must not hide the image's
    if cluster.offline:
        found |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    for name, value in cluster.environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"cluster.environment: {name!r} is no name of a variable")
        found[name] = str(value)
    return found


def _directive(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    escaped = re.sub(r'(["\\])', r"\\\1", _one_line(f"--{name}", value))
    return f'"{escaped}"'


def _one_line(key: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise UserError(f"{key} has a line break, which cannot stand in a batch script: {value!r}")
    return value
