"""`nemo-tvkd score`: a frozen model's values and log-probabilities of all pairs, written to a score store."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tvkd.data.batch import Batch, Item, collate
from nemo_tvkd.data.template import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.models.hf import Checkpoint, check_architecture, check_layout, find_checkpoint, weights_fingerprint
from nemo_tvkd.prepare import Encoder
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.scores.store import Identity, PairScores, StoreWriter, data_fingerprint
from nemo_tvkd.values import check_values, path_list

SCORABLE = ("value", "logprob")
BATCHES_PER_PASS = 16
"""Micro-batches per trip through the pipeline schedule: enough to fill it, few enough to report progress."""


@dataclass
class ScoringJob:
    """What every rank needs to know."""

    checkpoint: Checkpoint
    rows: list[Tokenized]
    identity: Identity
    ranks: int


def main(config: Any) -> int:
    """Check, launch the ranks and score; returns the exit code."""
    job = prepare_scoring(config)
    return launch.run(score_rank, (config, job), job.ranks)


def prepare_scoring(config: Any) -> ScoringJob:
    """Check a scoring configuration and read its data.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    options = config.score
    for what in options.what:
        if what not in SCORABLE:
            raise UserError(f"score.what={what} is none of {', '.join(SCORABLE)}")
    if not options.what:
        raise UserError(f"score.what is empty: choose from {', '.join(SCORABLE)}")
    if not options.output:
        raise UserError("score.output is not set: give the directory of the score store to write")
    checkpoint = find_checkpoint(options.model, "score.model")
    check_architecture(checkpoint.config, "score.model")
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    check_layout(checkpoint.config, "score.model", *layout)
    ranks = launch.world_size(config.parallel)
    encoder = Encoder.build(checkpoint, options.tokenizer, config.data, "score.tokenizer")
    quiet = not is_rank_zero()
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    rows = encoder.read(path_list(config.data.train, "data.train"), "data.train", True, say)
    if config.data.validation:
        known = {row.pair_id for row in rows}
        more = encoder.read(path_list(config.data.validation, "data.validation"), "data.validation", True, say)
        rows += [row for row in more if row.pair_id not in known]
    job = ScoringJob(checkpoint, rows, _identity(config, checkpoint, encoder, rows), ranks)
    if is_rank_zero():
        _writer(config, job).check_output()
    return job


def _writer(config: Any, job: ScoringJob) -> StoreWriter:
    ids = [row.pair_id for row in job.rows]
    return StoreWriter(config.score.output, job.identity, ids, config.score.part_size)


def _identity(config: Any, checkpoint: Checkpoint, encoder: Encoder, rows: Sequence[Tokenized]) -> Identity:
    options, data = config.score, config.data
    kind = options.value_kind if "value" in options.what else ""
    return Identity(
        model=str(checkpoint.path),
        weights=weights_fingerprint(checkpoint) if is_rank_zero() else "",  # read once; the others are told
        tokenizer=encoder.fingerprint,
        chat_template=encoder.template.fingerprint,
        what=tuple(sorted(options.what)),
        value_kind=kind,
        temperature=float(options.temperature) if kind == "soft_value" else 1.0,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length or data.max_length - 1,
        data=data_fingerprint([row.pair_id for row in rows]),
        precision=options.precision,
    )


def score_rank(config: Any, job: ScoringJob) -> None:
    """One rank's part of the job."""
    launch.join(config.parallel)  # before anything imports NeMo, which it keeps quiet
    from nemo_tvkd.runtime.checkpoints import as_nemo

    job.identity = launch.on_rank_zero(lambda: job.identity)
    checkpoint = as_nemo({"score.model": (job.checkpoint, config.score.tokenizer)})["score.model"]
    score(config, job, checkpoint)
    launch.leave()


def score(config: Any, job: ScoringJob, checkpoint: Checkpoint) -> None:
    """Fill the store in a process group that exists already (collective); finished parts are kept."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_tvkd.models.frozen import load_frozen

    writer = _writer(config, job)
    missing: list[int] = launch.on_rank_zero(_missing_parts, writer)
    module = load_frozen(checkpoint, "score.model", config.score.precision) if missing else None
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    progress = _Progress(job, config.score.part_size, missing[replica::replicas], replicas)
    failure: UserError | None = None
    for part in missing[replica::replicas]:
        rows = job.rows[part * config.score.part_size : (part + 1) * config.score.part_size]
        scores = _score_rows(config, module, checkpoint, rows, progress)
        if failure is None and scores and parallel_state.get_tensor_model_parallel_rank() == 0:
            try:
                writer.write_part(part, scores)
            except UserError as error:  # a full disk, a number that is not finite
                failure = error
    _raise_everywhere(failure)
    if dist.get_rank() == 0:
        writer.finish()
        size = sum(file.stat().st_size for file in Path(config.score.output).iterdir())
        print(f"{config.score.output}: {len(job.rows)} pairs, {size:,} bytes", flush=True)


def _missing_parts(writer: StoreWriter) -> list[int]:
    writer.prepare()
    return [part for part in writer.parts() if not writer.is_complete(part)]


def _raise_everywhere(failure: UserError | None) -> None:
    """What went wrong on one rank ends all of them with the same message; also the barrier before the store ends."""
    import torch.distributed as dist

    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


def _score_rows(
    config: Any, module: Any, checkpoint: Checkpoint, rows: Sequence[Tokenized], progress: "_Progress"
) -> list[PairScores]:
    """Scores of `rows` in their order (on the last pipeline stage); batches are sorted by length."""
    from nemo_tvkd.models.frozen import pipeline_forward

    order = sorted(range(len(rows)), key=lambda i: -_tokens(rows[i]))
    size = config.score.micro_batch_size
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    statistics = _statistics(config, checkpoint.config.vocab_size)
    scores: dict[int, PairScores] = {}
    for start in range(0, len(groups), BATCHES_PER_PASS):
        some = groups[start : start + BATCHES_PER_PASS]
        batches = [collate([Item(rows[i]) for i in group]) for group in some]
        results = pipeline_forward(module, batches, statistics)
        for group, result in zip(some, results, strict=False):
            for position, i in enumerate(group):
                scores[i] = _pair_scores(rows[i].pair_id, result, position, len(group))
        progress.advance(sum(_tokens(rows[i]) for group in some for i in group))
    return [scores[i] for i in range(len(rows))] if scores else []


def _tokens(row: Tokenized) -> int:
    assert row.rejected_ids is not None
    return 2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids)


def _statistics(config: Any, vocab_size: int) -> Any:
    """Everything asked for, from one forward pass."""
    from megatron.core import parallel_state

    from nemo_tvkd.models.online import logprob_statistics, value_statistics

    group = parallel_state.get_tensor_model_parallel_group()
    parts: dict[str, Any] = {}
    if "value" in config.score.what:
        kind, tau = config.score.value_kind, float(config.score.temperature)
        parts["value"] = value_statistics(kind, tau, vocab_size, group)
    if "logprob" in config.score.what:
        parts["logprob"] = logprob_statistics(vocab_size, group)

    def statistics(batch: Batch, logits: Any) -> dict[str, Any]:
        results = {name: part(batch, logits) for name, part in parts.items()}
        if "value" in results:
            results["value"] = [v.cpu().numpy() for v in results["value"]]
        if "logprob" in results:
            results["logprob"] = results["logprob"].tolist()
        return results

    return statistics


def _pair_scores(pair_id: str, result: dict[str, Any], position: int, pairs: int) -> PairScores:
    scores = PairScores(pair_id)
    if "value" in result:
        scores.chosen_value = np.asarray(result["value"][position], dtype=np.float32)
        scores.rejected_value = np.asarray(result["value"][pairs + position], dtype=np.float32)
    if "logprob" in result:
        scores.chosen_logprob = result["logprob"][position]
        scores.rejected_logprob = result["logprob"][pairs + position]
    return scores


class _Progress:
    """Rank 0's share of the work, as a line now and then: tokens per second of all replicas and time left."""

    def __init__(self, job: ScoringJob, part_size: int, parts: Sequence[int], replicas: int) -> None:
        self.total = sum(_tokens(r) for p in parts for r in job.rows[p * part_size : (p + 1) * part_size])
        self.replicas, self.done, self.start, self.shown = replicas, 0, time.perf_counter(), -math.inf

    def advance(self, tokens: int) -> None:
        self.done += tokens
        now = time.perf_counter()
        if not is_rank_zero() or (now - self.shown < 2 and self.done < self.total):
            return
        self.shown = now
        pace = self.done / max(now - self.start, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.done) / pace))
        share = 100 * self.done / self.total
        print(f"scored {share:.0f} %  {pace * self.replicas:.0f} tokens/s  {left} left", flush=True)
