"""`nemo-tvkd bench vocab|score|step`: what the parts cost on this machine, as a table and as JSON."""

import json
import os
from pathlib import Path
from typing import Any

from nemo_tvkd.commands.score import check_what
from nemo_tvkd.commands.table import table
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.config.values import check_values
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_result
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero

PARTS = ("vocab", "score", "step")


def main(config: Any) -> int:
    """Check, launch the ranks and measure; returns the exit code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory on a CPU, is talkative
    check_values(config)
    if config.bench.part not in PARTS:
        raise UserError(f"bench: name the part to measure: nemo-tvkd bench {'|'.join(PARTS)}")
    if config.algorithm.name != "tvkd":
        raise UserError(f"algorithm={config.algorithm.name}: bench compares algorithm=tvkd's steps with DPO's")
    check_what(config.score.what)
    if config.bench.output:
        check_writable(config.bench.output, "bench.output")
    ranks = launch.world_size(config.parallel)
    if config.bench.part == "step":
        from nemo_tvkd.prepare.training import check_batches

        parallel = config.parallel
        check_batches(config, ranks // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size))
    return launch.run(bench_rank, (config,), ranks)


def bench_rank(config: Any) -> None:
    """One rank's part; rank 0 prints and writes."""
    from importlib import import_module

    launch.join(config.parallel, config.trainer.seed)
    from nemo_tvkd.commands.bench.measure import machine

    report = import_module(f"nemo_tvkd.commands.bench.{config.bench.part}").measure(config)
    if is_rank_zero():
        report = {"part": config.bench.part, "machine": machine(), **report}
        print(f"{report['machine']}\n\n{table(report['rows'])}\n\n{report['notes']}", flush=True)
        if config.bench.output:
            write_result(Path(config.bench.output), json.dumps(report, indent=1) + "\n", "bench.output")
    launch.leave()
