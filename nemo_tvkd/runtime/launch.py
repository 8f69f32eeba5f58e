"""Processes: joining a job that a launcher started, or starting one on this machine.

Under torchrun or srun a command joins what is there. Otherwise a command that needs several ranks starts them itself
with torch's elastic agent; the first rank that dies ends the others, and its error and exit code are the command's.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch

from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime import cpu, signals
from nemo_tvkd.runtime.exits import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    MEETING_POINT,
    NOTHING_TO_SAVE,
    SAVE_SIGNALS,
    STOP_SIGNALS,
    guarded,
    rank_variables,
    under_launcher,
)


def world_size(parallel: Any) -> int:
    """Number of ranks that a command needs: the launcher's, or model parallel size x data parallel size.

    Raises:
        UserError: the launcher's number of ranks does not fit the layout, or there are too few GPUs.
    """
    _keep_launches_in_order()  # before anything asks for GPUs
    model = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    if under_launcher():
        world = rank_variables()["world"]
        if world % model:
            raise UserError(
                f"{world} ranks were started but parallel.tensor_model_parallel_size x pipeline_model_parallel_size x "
                f"context_parallel_size is {model}, which does not divide them"
            )
        _check_gpus(rank_variables()["local_world"])
        return world
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = int(model * (parallel.data_parallel_size or max(gpus // model, 1)))
    _check_gpus(ranks)
    return ranks


def _keep_launches_in_order() -> None:
    """Tensor parallelism overlaps its messages with the computation only then."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def _check_gpus(ranks: int) -> None:
    """One GPU for each rank on this machine, or none at all."""
    if torch.cuda.is_available() and torch.cuda.device_count() < ranks:
        raise UserError(
            f"the layout under `parallel` starts {ranks} ranks here but {torch.cuda.device_count()} GPUs are visible "
            "(srun: use --gpu-bind=none); set CUDA_VISIBLE_DEVICES= (empty) to run on the CPU"
        )


def join(parallel: Any, seed: int = 1234, init_method: str | None = None) -> None:
    """Join the job's process group and set up Megatron's model-parallel groups in this process.

    Args:
        parallel: the `parallel` section of the configuration.
        seed: of Python, NumPy and torch.
        init_method: rendezvous URL; the launcher's environment when None.
    """
    _keep_launches_in_order()
    cpu.prepare_nemo()
    ranks = rank_variables()
    if not torch.distributed.is_initialized():
        if not cpu.on_cpu():
            torch.cuda.set_device(ranks["local_rank"])
        init_method = init_method or os.environ.get(MEETING_POINT)
        if init_method is None and "MASTER_ADDR" not in os.environ:
            if ranks["world"] > 1:
                raise UserError(
                    f"{ranks['world']} ranks were started without a meeting point: export MASTER_ADDR (the first "
                    "node's address) and MASTER_PORT, as slurm/ranks.sbatch does"
                )
            init_method = f"file://{tempfile.mkdtemp()}/rendezvous"
        torch.distributed.init_process_group(
            "gloo" if cpu.on_cpu() else "nccl",
            init_method=init_method,
            rank=ranks["rank"],
            world_size=ranks["world"],
            timeout=timedelta(minutes=60),
        )
    _init_model_parallel(parallel, seed, ranks)


def _init_model_parallel(parallel: Any, seed: int, ranks: dict[str, int]) -> None:
    from megatron.core import parallel_state
    from megatron.core.model_parallel_config import ModelParallelConfig
    from nemo.lightning import _strategy_lib

    layout = ModelParallelConfig(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        pipeline_dtype=torch.float32,
    )
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    _strategy_lib.init_parallel_ranks(world, rank, ranks["local_rank"], layout, seed=seed + 1)  # NeMo refuses 0
    _strategy_lib.init_model_parallel()
    if not cpu.on_cpu() and parallel.pipeline_model_parallel_size > 1:
        # NCCL connects a group at its first use, with all its ranks; three stages that start to exchange shapes in
        # pairs would wait for each other.
        torch.distributed.barrier(group=parallel_state.get_pipeline_model_parallel_group())
        torch.distributed.barrier()  # shapes travel over the default group


def leave() -> None:
    """Undo :func:`join`."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator

    unset_num_microbatches_calculator()
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_rank_zero(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns on rank 0, on every rank (collective).

    Raises:
        UserError: on every rank, what it raised on rank 0.
    """
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = function(*args)
        except UserError as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def run(entry: Callable[..., Any], args: tuple, ranks: int) -> int:
    """Run `entry(*args)` on `ranks` ranks and return the exit code.

    Under a launcher, or with one rank, it runs here. Otherwise the ranks are started on this machine: forked on the
    CPU (so that NeMo is imported once), spawned with CUDA. SIGUSR1, SIGTERM and SIGINT are passed on to the ranks,
    which save a checkpoint in their own time, or end at once where there is nothing to save.
    """
    if under_launcher():
        return _leave_at_once(guarded(entry, *args))
    if ranks == 1:
        return guarded(entry, *args)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if cpu.on_cpu():
        cpu.prepare_nemo()  # imported once, before the ranks are forked
    code, ends = 0, _PassOn(ranks)
    with signals.acting(ends, SAVE_SIGNALS):  # to the end: a later signal must not speak of itself once more
        with tempfile.TemporaryDirectory(prefix="nemo-tvkd-") as folder:
            if cpu.on_cpu():
                os.environ[MEETING_POINT] = f"file://{folder}/rendezvous"
            try:
                elastic_launch(_launch_config(ranks), _rank_main)(entry, args)
            except ChildFailedError as error:
                code = _exit_code(error, ends.told)
            finally:
                ends.over.set()
                os.environ.pop(MEETING_POINT, None)
        # The end of a process that has imported NeMo takes seconds, which nobody who sent a signal should wait for.
        if ends.told and code == EXIT_PREEMPTED:
            return _leave_at_once(code)
    return code


def _launch_config(ranks: int) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    if os.environ.get("NEMO_TVKD_DEBUG") != "1":  # the ranks say themselves what went wrong
        for name in ("torch.distributed.elastic", "torch.multiprocessing"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # The agent's own way with SIGTERM and SIGINT is SIGKILL after 30 s, in the middle of a checkpoint.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    agent: dict[str, Any] = {}
    if hasattr(LaunchConfig, "signals_to_handle"):  # torch 2.9 and later write it over the variable
        agent["signals_to_handle"] = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]
    return LaunchConfig(
        **agent,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=f"nemo-tvkd-{os.getpid()}",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.2,
        start_method="fork" if cpu.on_cpu() else "spawn",
    )


class _PassOn:
    """Passes signals on to the ranks of this process, also to those that it starts only afterwards."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.told: list[int] = []
        self.over = threading.Event()

    def __call__(self, signum: int) -> None:
        if signum == signal.SIGINT and signum in self.told:  # a second Ctrl-C stops at once
            signals.end(EXIT_INTERRUPTED, "nemo-tvkd: interrupted")
        self.told.append(signum)
        threading.Thread(target=self._send, args=(signum,), daemon=True).start()

    def _send(self, signum: int) -> None:
        # To a rank, SIGTERM is what torch's agent sends when another one has failed.
        number = signal.SIGINT if signum == signal.SIGINT else signal.SIGUSR1
        reached: set[int] = set()
        while len(reached) < self.ranks and not self.over.is_set():
            for child in _ranks_of_this_process():
                if child.pid not in reached:
                    reached.add(child.pid)
                    with contextlib.suppress(psutil.Error):
                        child.send_signal(number)
            time.sleep(0.02)


def _ranks_of_this_process() -> list[psutil.Process]:
    """The children, but for the one that multiprocessing keeps for spawned ones."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                found.append(child)
    return found


def _rank_main(entry: Callable[..., Any], args: tuple) -> None:
    _leave_at_once(guarded(entry, *args))


def _leave_at_once(code: int) -> int:
    """A rank that failed must not wait for its peers in Python's or NCCL's shutdown."""
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


_ENDED_BY_SIGNAL = {code for number in STOP_SIGNALS for code in (-number, 128 + number)}
"""Of a rank that a signal reached before it could say anything itself."""


def _exit_code(error: Any, told: list[int]) -> int:
    """The command's exit code from the rank that failed first.

    Args:
        told: signals that this process was given.
    """
    rank, failure = next(iter(sorted(error.failures.items(), key=lambda item: item[1].timestamp)))
    if set(told) & set(STOP_SIGNALS) and failure.exitcode in _ENDED_BY_SIGNAL:
        print(NOTHING_TO_SAVE, file=sys.stderr)
        return EXIT_PREEMPTED
    if failure.exitcode < 0:
        print(
            f"nemo-tvkd: rank {rank} (pid {failure.pid}) was killed by signal {-failure.exitcode}; the other ranks "
            "were stopped. Run the same command again to continue from the last checkpoint.",
            file=sys.stderr,
        )
    return failure.exitcode if failure.exitcode > 0 else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
