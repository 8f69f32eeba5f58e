"""Gloo ranks that stay alive for the whole test session; importing NeMo once costs 10 s, not 10 s per test.

Workers are forked from a server process that has NeMo imported. A task is a function run on the first `world` ranks
of a fresh process group with fresh Megatron groups. A rank that dies or hangs fails its test, with what it printed.
"""

import multiprocessing as mp
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

SIZE = 4
TASKS_PER_WORKER = 20
"""Something in a training run keeps the run's process groups alive, with fifty threads of gloo each: after a hundred
runs they fill the machine. Forking new workers takes no time."""


@dataclass(frozen=True)
class Layout:
    """How a model is split, and over how many replicas."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    sp: bool = False

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def name(self) -> str:
        return f"tp{self.tp}{'sp' if self.sp else ''}-pp{self.pp}-dp{self.dp}"

    def overrides(self) -> list[str]:
        return [
            f"parallel.tensor_model_parallel_size={self.tp}",
            f"parallel.pipeline_model_parallel_size={self.pp}",
            f"parallel.data_parallel_size={self.dp}",
            f"parallel.sequence_parallel={str(self.sp).lower()}",
        ]


def forking() -> Any:
    """The context whose processes are forked from the one server that has NeMo imported."""
    folder = str(Path(__file__).parent)
    if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["rank_pool_preload"])
    return context


def _serve(rank: int, pipe: Connection, log: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    while True:
        try:
            world, rendezvous, layout, function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, _run(rank, world, rendezvous, layout, function, arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _run(rank: int, world: int, rendezvous: str, layout: Layout, function: Callable, arguments: tuple) -> Any:
    from nemo_tvkd.config.commands import ParallelConfig
    from nemo_tvkd.runtime import launch

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    parallel = ParallelConfig(layout.tp, layout.pp, 1, layout.sp, layout.dp)
    launch.join(parallel, init_method=f"file://{rendezvous}")
    try:
        return function(*arguments)
    finally:
        launch.leave()


class RankPool:
    """The pool; `run` is all of it."""

    def __init__(self) -> None:
        self.logs = Path(tempfile.mkdtemp(prefix="rank-pool-"))
        self.context = forking()
        self.workers: list[tuple[Any, Connection]] = []
        self.tasks = 0

    def run(self, layout: Layout, function: Callable, *arguments: Any, timeout: float = 240) -> list[Any]:
        """`function(*arguments)` on `layout.world` ranks; the results by rank. The function must be importable."""
        if self.tasks % TASKS_PER_WORKER == 0:
            self.stop()
        self._start()
        self.tasks += 1
        rendezvous = str(self.logs / f"rendezvous-{self.tasks}-{time.monotonic_ns()}")
        chosen = self.workers[: layout.world]
        for _, pipe in chosen:
            pipe.send((layout.world, rendezvous, layout, function, arguments))
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        while len(results) + len(failures) < len(chosen):
            waiting = {p: r for r, (_, p) in enumerate(chosen) if r not in results and r not in failures}
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0))
            if not ready:
                failures |= dict.fromkeys(waiting.values(), f"did not answer within {timeout if not failures else 5} s")
            for pipe in ready:
                rank = waiting[pipe]  # type: ignore[index]
                try:
                    done, value = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    done, value = False, "died"
                (results if done else failures)[rank] = value
            if failures:  # the others fail too, or wait for it for ever: hear them, but not for long
                deadline = min(deadline, time.monotonic() + 5)
        if failures:
            cause_first = sorted(failures.items(), key=lambda item: "Connection closed by peer" in item[1])
            self._fail("\n".join(f"rank {r}: {f}" for r, f in cause_first), chosen)
        return [results[rank] for rank in range(layout.world)]

    def _start(self) -> None:
        if self.workers:
            return
        for rank in range(SIZE):
            ours, theirs = self.context.Pipe()
            log = str(self.logs / f"rank-{rank}.log")
            process = self.context.Process(target=_serve, args=(rank, theirs, log))
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def _fail(self, reason: str, chosen: list[tuple[Any, Connection]]) -> None:
        """The other ranks wait for the failed one, so all are replaced."""
        logs = "\n".join(f"--- rank {rank}\n{_tail(self.logs / f'rank-{rank}.log')}" for rank in range(len(chosen)))
        self.stop()
        raise AssertionError(f"{reason}\n{logs}")

    def stop(self) -> None:
        for process, pipe in self.workers:
            pipe.close()
            process.kill()
            process.join()
        self.workers = []


def _tail(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-15:]) if file.exists() else ""
