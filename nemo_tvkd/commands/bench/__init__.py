"""`nemo-tvkd bench vocab|score|step`: what the parts cost on this machine, as a table and as JSON."""

import json
import os
from pathlib import Path
from typing import Any

from nemo_tvkd.commands.score import check_what
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.config.values import check_values
from nemo_tvkd.errors import UserError
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
        print(f"{report['machine']}\n\n{show(report['rows'])}\n\n{report['notes']}", flush=True)
        if config.bench.output:
            Path(config.bench.output).parent.mkdir(parents=True, exist_ok=True)
            Path(config.bench.output).write_text(json.dumps(report, indent=1) + "\n")
    launch.leave()


def show(rows: list[dict[str, Any]]) -> str:
    """Rows with the same columns as an aligned table."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = [isinstance(value, str) for value in rows[0].values()]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if text else c.rjust(w) for c, w, text in zip(row, widths, texts, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
