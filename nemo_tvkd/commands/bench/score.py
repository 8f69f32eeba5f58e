"""`bench score`: the scoring job on growing data: time, memory, stored bytes."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron.core import parallel_state
from omegaconf import OmegaConf

from nemo_tvkd.commands.bench.measure import MIB, StepMemory, Traffic, largest, peak_tflops, synchronize
from nemo_tvkd.commands.bench.models import forward_flops, hf_config, random_frozen, random_items
from nemo_tvkd.commands.score import ScoringJob, fill, missing_parts, writer_of
from nemo_tvkd.config.values import as_list, wanted_values
from nemo_tvkd.runtime.launch import on_rank_zero
from nemo_tvkd.scores.identity import Identity, data_fingerprint

NOTES = """Random weights and tokens. time x, tokens x: against the first row. peak MiB: memory while scoring above what
the run holds before. crossing: bytes per token of the tensors that a replica's ranks reduce, gather or send. stored
B/token: all files of the store over the response tokens (random values, which compress least). MFU: model FLOP
utilisation (forward FLOPs over the GPU's dense bf16 peak). Peaks and crossing are the largest of all ranks'."""


def measure(config: Any) -> dict[str, Any]:
    """Score n times the pairs for every n in bench.growth (collective)."""
    options, parallel = config.bench, config.parallel
    model = hf_config(config.score.model, options.teacher, "score.model", parallel)
    judges = "reward" in config.score.what
    module = random_frozen(model, "score.model", config.score.precision, parallel, reward_head=judges)
    fill_once(config, module, model, 1)  # the first run of a process is slower
    runs = [fill_once(config, module, model, factor) for factor in as_list(options.growth)]
    with Traffic() as traffic:
        first, _ = fill_once(config, module, model, 1)
    replicas = parallel_state.get_data_parallel_world_size()
    crossing = largest(traffic.bytes * replicas / first["tokens"])
    ranks = replicas * module.config.tensor_model_parallel_size
    ranks *= module.config.pipeline_model_parallel_size
    peak = peak_tflops()
    rows = []
    for row, flops in runs:
        rows.append(
            {
                "pairs": row["pairs"],
                "tokens": row["tokens"],
                "seconds": row["seconds"],
                "tokens/s": row["tokens"] / row["seconds"],
                "tokens x": row["tokens"] / runs[0][0]["tokens"],
                "time x": row["seconds"] / runs[0][0]["seconds"],
                "peak MiB": largest(row["peak"] / MIB),
                "crossing": crossing,
                "stored B/token": row["bytes"] / row["response tokens"],
                "MFU": flops / row["seconds"] / (peak * 1e12 * ranks) if peak else None,
            }
        )
    return {"rows": rows, "notes": NOTES}


def fill_once(config: Any, module: Any, model: Any, factor: int) -> tuple[dict[str, Any], float]:
    """One scoring job into a store of its own: its figures and its floating-point operations."""
    options = config.bench
    rows: list[Any] = [item.tokens for item in random_items(factor * options.pairs, options, model.vocab_size)]
    ids = [row.pair_id for row in rows]
    identity = Identity(
        model="random",
        weights="",
        tokenizer="",
        chat_template="",
        what=tuple(config.score.what),
        values=wanted_values(config.score),
        max_length=options.prompt_length + options.response_length,
        max_prompt_length=options.prompt_length,
        data=data_fingerprint(ids),
        precision=config.score.precision,
        value_storage=config.score.value_storage,
    )
    folder = Path(on_rank_zero(tempfile.mkdtemp))
    job = ScoringJob(None, rows, identity, 0)
    score = OmegaConf.merge(config.score, {"output": str(folder / "store")})
    writer = writer_of(score, job)
    missing = on_rank_zero(missing_parts, writer)
    memory = StepMemory()
    memory.start()
    start = time.perf_counter()
    fill(score, job, writer, module, missing, quiet=True)
    synchronize()
    seconds, peak = time.perf_counter() - start, memory.peak()
    size = on_rank_zero(lambda: sum(file.stat().st_size for file in (folder / "store").iterdir()))
    on_rank_zero(shutil.rmtree, folder)
    length = options.prompt_length + options.response_length
    tokens, responses = 2 * len(rows) * length, 2 * len(rows) * options.response_length
    figures = {"pairs": len(rows), "tokens": tokens, "response tokens": responses, "bytes": size}
    return {**figures, "seconds": seconds, "peak": peak}, forward_flops(model, tokens, length, responses)
