"""A look at the machine that `doctor` runs on: versions, GPUs, limits, and an all-reduce over all ranks."""

import os
import re
import resource
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.versions import line, problems, versions
from nemo_tvkd.runtime.exits import MEETING_POINT, rank_variables

GIB = 2**30
SHARED_MEMORY_GIB = 1
"""NCCL's ranks on a node exchange through /dev/shm; docker gives 64 MiB unless told otherwise."""
FREE_SHARE = 0.9
"""A GPU with less of its memory free is in use by somebody."""
GPU_BYTES, CPU_BYTES = 256 * 2**20, 2**20
ROUNDS = 5


def machine_checks() -> list[Check]:
    """Versions and hardware of this node, from its first rank; [] from its others."""
    if rank_variables()["local_rank"]:
        return []
    found = versions()
    checks = [Check("versions", "OK", line(found))]
    checks += [Check("versions", level, said) for level, said in problems(found)]
    import torch

    if not torch.cuda.is_available():
        level = "WARN" if "SLURM_JOB_ID" in os.environ else "OK"
        advice = "ask for GPUs: cluster.gpus_per_node, cluster.gpu_directive" if level == "WARN" else ""
        return [*checks, Check("GPUs", level, "no GPU here: not checked", advice)]
    return [*checks, _gpus(torch), _driver(torch), *_links(torch), _shared_memory(), _locked_memory()]


def _gpus(torch: Any) -> Check:
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    memory = [torch.cuda.mem_get_info(i) for i in range(count)]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    free = " ".join(f"{f / GIB:.1f}" for f, _ in memory)
    detail = f"{kinds}; {min(total for _, total in memory) / GIB:.1f} GiB each; free GiB: {free}"
    if len(set(names)) > 1:
        return Check("GPUs", "WARN", detail, "ranks wait for the slowest: use nodes with GPUs of one kind")
    used = [str(i) for i, (f, total) in enumerate(memory) if f < FREE_SHARE * total]
    if used:
        return Check("GPUs", "WARN", detail, f"somebody uses GPU {', '.join(used)}: nvidia-smi shows who")
    return Check("GPUs", "OK", detail)


def _driver(torch: Any) -> Check:
    file = Path("/proc/driver/nvidia/version")
    number = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.read_text() if file.is_file() else "")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    driver = number.group(1) if number else "unknown"
    return Check("driver", "OK", f"driver {driver}, torch built for CUDA {torch.version.cuda}, NCCL {nccl}")


def _links(torch: Any) -> list[Check]:
    """Whether the GPUs reach each other's memory (over NVLink or PCIe)."""
    count = torch.cuda.device_count()
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    if not pairs:
        return []
    apart = [f"{i}-{j}" for i, j in pairs if not torch.cuda.can_device_access_peer(i, j)]
    if not apart:
        return [Check("peer access", "OK", "between all GPUs")]
    advice = "tensor parallelism goes through host memory between them: see nvidia-smi topo -m"
    return [Check("peer access", "WARN", f"none between {len(apart)} of {len(pairs)}: {apart[0]}, ...", advice)]


def _shared_memory() -> Check:
    size = shutil.disk_usage("/dev/shm").total / GIB
    advice = "NCCL needs more: docker run --ipc=host, or --shm-size=16g"
    return Check("/dev/shm", "OK" if size >= SHARED_MEMORY_GIB else "WARN", f"{size:.2f} GiB", advice)


def _locked_memory() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return Check("locked memory", "OK", "unlimited")
    advice = "InfiniBand needs `ulimit -l unlimited` (docker run --ulimit memlock=-1)"
    return Check("locked memory", "WARN", f"{limit / 2**20:.1f} MiB (ulimit -l)", advice)


def all_reduce_check(seconds: float = 120.0) -> Check:
    """Sum a buffer over all ranks that srun or torchrun started, and time it (collective; a group of its own).

    Args:
        seconds: after which it is a FAIL, also where a rank never came or NCCL waits for ever.
    """
    outcome: list[Check] = []

    def attempt() -> None:
        try:
            outcome.append(_all_reduce(seconds))
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            outcome.append(_failed(text[0][:200]))

    # In a thread, as nothing ends a wait of NCCL; a daemon, as it must not keep the process.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds + 5)
    return outcome[0] if outcome else _failed(f"no result within {seconds:.0f} s")


def _failed(detail: str) -> Check:
    advice = "see that MASTER_ADDR and MASTER_PORT are reachable from all nodes; NCCL_DEBUG=INFO says more"
    return Check("all-reduce", "FAIL", f"{rank_variables()['world']} ranks: {detail}", advice)


def _all_reduce(seconds: float) -> Check:
    import torch
    import torch.distributed as dist

    ranks = rank_variables()
    gpu = torch.cuda.is_available()
    if gpu:
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # else torch aborts the process before the line is said
        torch.cuda.set_device(ranks["local_rank"])
    where = os.environ.get(MEETING_POINT)
    if where is None and "MASTER_ADDR" not in os.environ:
        return _failed("no meeting point: MASTER_ADDR and MASTER_PORT are not set")
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=where,
        rank=ranks["rank"],
        world_size=ranks["world"],
        timeout=timedelta(seconds=seconds),
    )
    device = torch.device("cuda", ranks["local_rank"]) if gpu else torch.device("cpu")
    buffer = torch.empty((GPU_BYTES if gpu else CPU_BYTES) // 4, device=device)
    expected = ranks["world"] * (ranks["world"] + 1) / 2
    times = []
    wrong = torch.zeros(1, device=device)
    for _ in range(ROUNDS):
        buffer.fill_(ranks["rank"] + 1)
        times.append(_timed(dist.all_reduce, buffer, torch.cuda.synchronize if gpu else lambda: None))
        wrong += (buffer != expected).any()
    dist.all_reduce(wrong)
    dist.destroy_process_group()
    if wrong.item():
        return _failed(f"a wrong sum on some rank (expected {expected:.0f})")
    moved = 2 * (ranks["world"] - 1) / ranks["world"] * buffer.numel() * 4  # as nccl-tests count a bus bandwidth
    pace = moved / statistics.median(times[1:]) / 1e9  # the first one connects
    detail = (
        f"{ranks['world']} ranks by {'nccl' if gpu else 'gloo'}, {buffer.numel() * 4 / 2**20:.0f} MiB: {pace:.2f} GB/s"
    )
    return Check("all-reduce", "OK", detail)


def _timed(reduce: Callable[[Any], Any], buffer: Any, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    reduce(buffer)
    synchronize()
    return time.perf_counter() - start
