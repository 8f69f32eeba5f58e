"""`nemo-tvkd score`: a frozen model's values, log-probabilities and rewards of all pairs, written to a score store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import (
    Checkpoint,
    check_architecture,
    check_heads,
    check_layout,
    find_checkpoint,
    weights_fingerprint,
)
from nemo_tvkd.config.commands import SCORABLE
from nemo_tvkd.config.paths import path_list
from nemo_tvkd.config.values import check_values, wanted_values
from nemo_tvkd.data.batch import Batch, Item, collate
from nemo_tvkd.data.readings import pair_ids, with_others
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import ACTION_KINDS, LOGPROB
from nemo_tvkd.prepare.encoder import Encoder
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.runtime.outputs import progress_file
from nemo_tvkd.runtime.progress import ScoringProgress
from nemo_tvkd.scores.identity import Identity, data_fingerprint
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.writer import StoreWriter

_print = partial(print, flush=True)


@dataclass
class ScoringJob:
    """What every rank needs to know."""

    checkpoint: Checkpoint | None
    """None for a model that is there already."""
    rows: Sequence[Tokenized]
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
    check_what(options.what)
    if not options.output:
        raise UserError("score.output is not set: give the directory of the score store to write")
    checkpoint = find_checkpoint(options.model, "score.model")
    check_architecture(checkpoint.config, "score.model")
    check_heads(checkpoint, "score.model", lm=_reads_tokens(options.what), reward="reward" in options.what)
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    check_layout(checkpoint.config, "score.model", *layout)
    ranks = launch.world_size(config.parallel)
    encoder = Encoder.build(checkpoint, options.tokenizer, config.data, "score.tokenizer")
    quiet = not is_rank_zero()
    say = (lambda line: None) if quiet else _print
    rows = encoder.read(path_list(config.data.train, "data.train"), "data.train", True, say)
    if config.data.validation:
        more = encoder.read(path_list(config.data.validation, "data.validation"), "data.validation", True, say)
        rows = with_others(rows, more)
    job = ScoringJob(checkpoint, rows, _identity(config, checkpoint, encoder, rows), ranks)
    if is_rank_zero():
        writer_of(config.score, job).check_output()
    return job


def check_what(wanted: Sequence[str]) -> None:
    """Whether score.what is something that can be scored; a UserError says what can."""
    for what in wanted:
        if what not in SCORABLE:
            raise UserError(f"score.what={what} is none of {', '.join(SCORABLE)}")
    if not wanted:
        raise UserError(f"score.what is empty: choose from {', '.join(SCORABLE)}")


def _reads_tokens(what: Sequence[str]) -> bool:
    return bool({"value", "logprob"} & set(what))


def writer_of(options: Any, job: ScoringJob) -> StoreWriter:
    """The writer of a job's store, from the `score` section of the configuration."""
    return StoreWriter(options.output, job.identity, pair_ids(job.rows), options.part_size)


def _identity(config: Any, checkpoint: Checkpoint, encoder: Encoder, rows: Sequence[Tokenized]) -> Identity:
    options, data = config.score, config.data
    return Identity(
        model=str(checkpoint.path),
        weights=weights_fingerprint(checkpoint) if is_rank_zero() else "",  # read once; the others are told
        tokenizer=encoder.fingerprint,
        chat_template=encoder.template.fingerprint,
        what=tuple(sorted(options.what)),
        values=wanted_values(options),
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length or data.max_length - 1,
        data=data_fingerprint(pair_ids(rows)),
        precision=options.precision,
        value_storage=options.value_storage,
    )


def score_rank(config: Any, job: ScoringJob) -> None:
    """One rank's part of the job."""
    launch.join(config.parallel)  # before anything imports NeMo, which it keeps quiet
    from nemo_tvkd.models.conversion import as_nemo

    job.identity = launch.on_rank_zero(lambda: job.identity)
    assert job.checkpoint is not None
    checkpoint = as_nemo({"score.model": (job.checkpoint, config.score.tokenizer)})["score.model"]
    score(config, job, checkpoint)
    launch.leave()


def score(config: Any, job: ScoringJob, checkpoint: Checkpoint) -> None:
    """Fill the store in a process group that exists already (collective); finished parts are kept."""
    import torch.distributed as dist

    from nemo_tvkd.models.frozen import load_frozen

    options = config.score
    writer = writer_of(options, job)
    missing: list[int] = launch.on_rank_zero(missing_parts, writer)
    memory = config.parallel.lm_head_memory_mib * 2**20
    module = None
    if missing:
        lm_head = _reads_tokens(job.identity.what)
        module = load_frozen(checkpoint, "score.model", options.precision, memory, lm_head=lm_head)
    fill(options, job, writer, module, missing)
    if dist.get_rank() == 0:
        size = sum(file.stat().st_size for file in Path(options.output).iterdir())
        print(f"{options.output}: {len(job.rows)} pairs, {size:,} bytes", flush=True)


def fill(
    options: Any,
    job: ScoringJob,
    writer: StoreWriter,
    module: Any,
    missing: list[int],
    quiet: bool = False,
) -> None:
    """Score the missing parts, replica r of dp every dp-th of them, and finish the store (collective)."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    mine = {part: writer.part_rows(part, job.rows) for part in missing[replica::replicas]}
    total = sum(_tokens(row) for rows in mine.values() for row in rows)
    failure: UserError | None = None
    pairs = sum(len(writer.part_rows(part, job.rows)) for part in missing)
    shown = is_rank_zero() and not quiet
    file = progress_file("score", Path(options.output)) if shown else None
    with ScoringProgress(pairs, total, replicas, file, shown=shown) as progress:
        for part, rows in mine.items():
            scores = _score_rows(options, module, job.identity, list(rows), progress)
            if scores and parallel_state.get_tensor_model_parallel_rank() == 0:
                try:
                    writer.write_part(part, scores)
                except UserError as error:  # a full disk, a number that is not finite
                    failure = error
            if _in_replica(failure is not None):
                break
    _raise_everywhere(failure)
    if dist.get_rank() == 0:
        writer.finish()


def missing_parts(writer: StoreWriter) -> list[int]:
    """Rank 0: prepare the store; the parts that are not there yet."""
    writer.prepare()
    return [part for part in writer.parts() if not writer.is_complete(part)]


def _in_replica(failed: bool) -> bool:
    """Whether any rank that holds a part of this rank's copy of the model has failed."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_tvkd.runtime import cpu

    flag = torch.tensor(float(failed), device=cpu.device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=parallel_state.get_model_parallel_group())
    return bool(flag.item())


def _raise_everywhere(failure: UserError | None) -> None:
    """What went wrong on one rank ends all of them with the same message; also the barrier before the store ends."""
    import torch.distributed as dist

    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


def _score_rows(
    options: Any, module: Any, identity: Identity, rows: Sequence[Tokenized], progress: ScoringProgress
) -> list[PairScores]:
    """Scores of `rows` in their order (on the last pipeline stage); batches are sorted by length."""
    from nemo_tvkd.models.frozen import BATCHES_PER_PASS, pipeline_forward

    order = sorted(range(len(rows)), key=lambda i: -_tokens(rows[i]))
    size = options.micro_batch_size
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    statistics = _statistics(identity)
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


def _statistics(identity: Identity) -> Callable[[Batch, Any], dict[str, list[Any]]]:
    """Everything asked for, from one pass over the logits: stem -> its scores of a micro-batch's 2B responses."""
    values = identity.value_stems
    of_actions = {stem for stem, value in values.items() if value.kind in ACTION_KINDS}
    if "logprob" in identity.what:
        of_actions.add("logprob")
    of_states = values.keys() - of_actions
    ends = identity.value_storage == "ends"
    states = "actions" if not of_states else "ends" if ends and not of_actions else "all"
    wanted = {**values, **({"logprob": LOGPROB} if "logprob" in identity.what else {})}

    def statistics(batch: Batch, readout: Any) -> dict[str, list[Any]]:
        found = readout.statistics(batch, list(set(wanted.values())), states, host=True) if wanted else {}
        results: dict[str, list[Any]] = {}
        if "reward" in identity.what:
            results["reward"] = readout.response_rewards(batch).tolist()
        for stem, statistic in wanted.items():
            parts = found[statistic]
            if states == "all" and stem in of_actions:
                parts = [part[:-1] for part in parts]
            elif states == "all" and ends:
                parts = [part[[0, -1]] for part in parts]
            results[stem] = [p.double().sum().item() if stem == "logprob" else p.numpy() for p in parts]
        return results

    return statistics


def _pair_scores(pair_id: str, result: dict[str, list[Any]], position: int, pairs: int) -> PairScores:
    return PairScores(pair_id, {stem: (found[position], found[pairs + position]) for stem, found in result.items()})
