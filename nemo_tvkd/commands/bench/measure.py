"""Clocks and gauges: interleaved timings, peak memory, the machine's name."""

import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_tvkd.runtime import cpu

MIB = 2**20

PEAK_TFLOPS = {
    **{"GB200": 2500, "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756},
    **{"H100": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121},
}
"""Dense bf16 tensor-core peaks by words of the device's name, from NVIDIA's data sheets; the first match counts."""


def synchronize() -> None:
    """Wait for the device."""
    if not cpu.on_cpu():
        torch.cuda.synchronize()


def machine() -> str:
    """What this ran on."""
    versions = f"torch {torch.__version__}"
    if not cpu.on_cpu():
        return f"{torch.cuda.get_device_name()}, {versions}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {len(names) or '?'} cores a rank, no GPU, {versions}"


def peak_tflops() -> float | None:
    """The GPU's dense bf16 peak, where it is known."""
    name = "" if cpu.on_cpu() else torch.cuda.get_device_name()
    return next((float(peak) for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def interleaved(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each case; a round runs every case once, so that a noisy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for function in cases.values():
        function()
    for _ in range(repeats):
        for name, function in cases.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seen) for name, seen in times.items()}


def peak_extra_bytes(function: Callable[[], Any]) -> int:
    """The most memory that `function` holds at a time beyond what was there, results included, by torch's allocator."""
    if not cpu.on_cpu():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    held = peak = 0
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that collectives and messages are about while it is entered, on this rank.

    A gathered tensor counts whole, as does one that is reduced, however a back end moves it; groups of one rank do
    not count. Enter it after everything that is timed: torch never compiles a function again that it saw in here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace and not any(map(_is_alone, args)):
            self.bytes += max(map(_bytes, args), default=0)
        return func(*args, **(kwargs or {}))


def _is_alone(argument: Any) -> bool:
    """Whether an operation's argument is a process group of one rank."""
    if not isinstance(argument, torch.ScriptObject) or "ProcessGroup" not in str(argument._type()):
        return False
    return dist.ProcessGroup.unbox(argument).size() == 1


def largest(number: float) -> float:
    """The largest of all ranks' numbers (collective): stages and shards differ."""
    maximum = torch.tensor(number, dtype=torch.float64, device=cpu.device())
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
    return float(maximum)


def _bytes(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_bytes, argument)) if isinstance(argument, list | tuple) else 0


class StepMemory:
    """The peak memory of a stretch of a program, above what it held at the start: the process's on a CPU."""

    def start(self) -> None:
        if not cpu.on_cpu():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        # glibc keeps what was freed; without this a step would reuse, unseen, what an earlier one has left.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (proc(5))
        self.before = _resident("VmRSS")

    def peak(self) -> int:
        """Bytes since `start`."""
        return (torch.cuda.max_memory_allocated() if not cpu.on_cpu() else _resident("VmHWM")) - self.before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
