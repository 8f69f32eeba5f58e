"""Many rows as token ids: in batches, which worker processes share where there are many."""

import ctypes
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any

import pyarrow as pa

from nemo_tvkd.data.align import check_offsets
from nemo_tvkd.data.records import Row
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.token_table import to_batch
from nemo_tvkd.data.tokenized import Tokenized, TokenizeReport
from nemo_tvkd.errors import UserError

BATCH = 500
"""Rows that are tokenised together, and written together."""
BATCHES_ALONE = 16
"""Batches for which no worker processes are started."""
PR_SET_PDEATHSIG = 1

Batch = tuple[pa.RecordBatch, TokenizeReport]
_encode_batch: Callable[[list[Row]], Batch]
"""In a worker process: what it does."""


def tokenize_rows(
    rows: Iterable[Row],
    template: Template,
    *,
    max_length: int,
    max_prompt_length: int | None,
    on_bad_row: str = "error",
    positions: bool = False,
    turns: str = "last",
    part: bool = False,
) -> tuple[list[Tokenized], TokenizeReport]:
    """Every row as ids, in memory, and what was cut and skipped; arguments and errors as in `tokenized_batches`.

    Of a `part` of the rows all may be bad.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    tokenized, report = [], TokenizeReport()
    for encoded in template.encode_all(list(rows), max_length, max_prompt_length, positions, turns):
        if not isinstance(encoded, UserError):
            tokenized.append(encoded[0])
            report.add(TokenizeReport(1, *encoded[1:]))
        elif on_bad_row == "error":
            raise encoded
        else:
            report.bad.append(str(encoded))
    if not part:
        report.check()
    return tokenized, report


def tokenized_batches(
    rows: Iterable[Row], template: Template, report: TokenizeReport, **how: Any
) -> Iterator[pa.RecordBatch]:
    """The rows in order, as parts of a `token_table`.

    Args:
        report: is filled in; complete when the rows have ended.
        how: as in `tokenize_rows`; `positions` and `turns` as in `Template.encode`.

    Raises:
        UserError: the first bad row if `on_bad_row` is "error"; with "skip", nothing but bad rows; for positions, a
            slow tokenizer.
    """
    if how.get("positions"):
        check_offsets(template.tokenizer)
    failure: list[UserError] = []
    batches = _batches(rows, failure)
    encode = partial(_to_batch, template, how)
    gc.freeze()  # collections, of workers too, look at the rows alone
    try:
        first = list(islice(batches, BATCHES_ALONE))
        workers = len(os.sched_getaffinity(0)) if len(first) == BATCHES_ALONE else 1
        made_here = [encode(batch) for batch in first[:1]]  # workers inherit what is learnt of the tokenizer
        rest = chain(first[1:], batches)
        for batch, made in chain(made_here, map(encode, rest) if workers == 1 else _by_workers(encode, rest, workers)):
            report.add(made)
            yield batch
    finally:
        gc.unfreeze()
    if failure:
        raise failure[0]
    report.check()


def _batches(rows: Iterable[Row], failure: list[UserError]) -> Iterator[list[Row]]:
    """The rows up to the first that cannot be read, which is a `failure`: one before it may be bad as well."""
    batch: list[Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except UserError as error:
        failure.append(error)
    yield batch


def _to_batch(template: Template, how: dict[str, Any], rows: list[Row]) -> Batch:
    tokenized, report = tokenize_rows(rows, template, part=True, **how)
    return to_batch(tokenized), report


def _by_workers(encode: Callable[[list[Row]], Batch], batches: Iterable[list[Row]], workers: int) -> Iterator[Batch]:
    """What `encode` makes of each batch, in order; few batches are in memory at a time."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of the workers: there is one for each core
    context = get_context("fork")  # the tokenizer is there already
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encode, os.getpid()))
    pending: deque[Future[Batch]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(_work, batch))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a process that tokenises rows was killed: the machine may be short of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("TOKENIZERS_PARALLELISM")
        os.environ.update({} if before is None else {"TOKENIZERS_PARALLELISM": before})


def _start_worker(encode: Callable[[list[Row]], Batch], parent: int) -> None:
    """A worker ends with its parent, which alone answers the terminal's signals."""
    global _encode_batch
    _encode_batch = encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(rows: list[Row]) -> Batch:
    return _encode_batch(rows)
