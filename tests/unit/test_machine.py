"""`doctor` on a node: real gloo ranks; GPUs are a stand-in (no GPU is here)."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_tvkd.commands.doctor import machine
from nemo_tvkd.commands.doctor.machine import GIB, machine_checks

PROGRAM = """
import json, os, sys, time
from dataclasses import asdict
from nemo_tvkd.commands.doctor import machine
seconds, late, broken = float(sys.argv[1]), sys.argv[2], sys.argv[3]
rank = os.environ["RANK"]
if rank == late:
    time.sleep(30)
if broken == rank:  # a link that loses bits
    import torch.distributed as dist
    whole = dist.all_reduce
    def lossy(tensor, **options):
        whole(tensor, **options)
        if tensor.numel() > 1:
            tensor[-1] += 1
    dist.all_reduce = lossy
began = time.monotonic()
check = machine.all_reduce_check(seconds)
line = json.dumps({"rank": int(rank), "seconds": time.monotonic() - began, **asdict(check)})
os.write(1, f"{line}\\n".encode())  # in one piece: torchrun's ranks share their output
os._exit(0)
"""


def ranks(
    tmp_path: Path, seconds: float, late: str = "", broken: str = "", count: int = 2
) -> dict[int, dict[str, Any]]:
    """What `all_reduce_check` says on each rank."""
    processes = []
    for rank in range(count):
        launcher = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **launcher, "NEMO_TVKD_MEETING_POINT": f"file://{tmp_path}/rendezvous"}
        arguments = [sys.executable, "-c", PROGRAM, str(seconds), late, broken]
        processes.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True))
    found = {}
    try:
        for rank, process in enumerate(processes):
            if str(rank) != late:
                found[rank] = json.loads(process.communicate(timeout=60)[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def test_a_wrong_sum_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    found = ranks(tmp_path, 30, broken="1")
    assert [check["level"] for check in found.values()] == ["FAIL", "FAIL"]
    assert "a wrong sum on some rank (expected 3)" in found[0]["detail"]


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    check = ranks(tmp_path, 3, late="1")[0]
    assert check["level"] == "FAIL"
    assert check["seconds"] < 15
    assert "MASTER_ADDR" in check["advice"]


def test_two_ranks_of_torchrun(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "program.py"), "30", "", ""], capture_output=True, text=True, timeout=120, check=False
    )
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [check["level"] for check in checks] == ["OK", "OK"], done.stderr
    for check in checks:
        assert check["detail"].startswith("2 ranks by gloo, 1 MiB: ")
        assert float(check["detail"].split()[-2]) > 0


def test_no_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NEMO_TVKD_MEETING_POINT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check = machine.all_reduce_check(5)
    assert (check.level, check.detail) == ("FAIL", "2 ranks: no meeting point: MASTER_ADDR and MASTER_PORT are not set")


def test_a_wait_that_nothing_ends_is_a_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_all_reduce", lambda seconds: time.sleep(60))
    began = time.monotonic()
    assert machine.all_reduce_check(-4.5).level == "FAIL"  # and five seconds of grace
    assert time.monotonic() - began < 3


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    checks = machine_checks()
    assert [(c.name, c.level) for c in checks] == [("versions", "OK"), ("GPUs", "OK")]
    assert checks[1].detail == "no GPU here: not checked"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert machine_checks()[1].level == "WARN"


class CudaStandIn:
    """Answers of `torch.cuda` on a node of four 80 GB cards; no GPU is behind it."""

    def __init__(self, free: tuple[float, ...] = (79, 79, 79, 79), names: tuple[str, ...] = ("H100",) * 4) -> None:
        self.free, self.names = free, names
        self.nccl = SimpleNamespace(version=lambda: (2, 27, 3))

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.names)

    def get_device_name(self, index: int) -> str:
        return self.names[index]

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return int(self.free[index] * GIB), 80 * GIB

    def can_device_access_peer(self, one: int, other: int) -> bool:
        return {one, other} != {0, 3}


def torch_stand_in(**cuda: Any) -> Any:
    return SimpleNamespace(cuda=CudaStandIn(**cuda), version=SimpleNamespace(cuda="12.9"))


def test_gpus_of_a_stand_in() -> None:
    check = machine._gpus(torch_stand_in())
    assert (check.level, check.detail) == ("OK", "4 x H100; 80.0 GiB each; free GiB: 79.0 79.0 79.0 79.0")
    busy = machine._gpus(torch_stand_in(free=(79, 20, 79, 79)))
    assert busy.level == "WARN"
    assert "GPU 1:" in busy.advice
    mixed = machine._gpus(torch_stand_in(names=("H100", "A100", "A100", "A100")))
    assert mixed.level == "WARN"
    assert mixed.detail.startswith("3 x A100, 1 x H100")


def test_driver_and_links_of_a_stand_in() -> None:
    stand_in = torch_stand_in()
    assert "torch built for CUDA 12.9, NCCL 2.27.3" in machine._driver(stand_in).detail
    (check,) = machine._links(stand_in)
    assert (check.level, check.detail) == ("WARN", "none between 2 of 12: 0-3, ...")
    assert machine._links(torch_stand_in(names=("H100",))) == []


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    assert machine._shared_memory().level == "WARN"
    assert machine._shared_memory().detail == "0.06 GiB"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(total=16 * GIB))
    assert machine._shared_memory().level == "OK"
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (8 * 2**20, resource.RLIM_INFINITY))
    assert (machine._locked_memory().level, machine._locked_memory().detail) == ("WARN", "8.0 MiB (ulimit -l)")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    assert machine._locked_memory().level == "OK"


def test_other_ranks_of_a_node_leave_it_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert machine_checks() == []
