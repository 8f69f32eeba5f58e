"""The Triton kernel of the sweep against the equations in float64 and against the torch path.

There is no GPU here: Triton's interpreter runs the kernel on CPU tensors, and its compiler shows that it compiles. Both
happen in processes of their own, since what Triton is told when it is imported must not reach other tests.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from head_cases import equation, fp32_error, within
from torch import Tensor

from nemo_tvkd.parallel import fused, vocab
from nemo_tvkd.parallel.statistic import ACTION_KINDS, KINDS, Statistic, Sweep
from nemo_tvkd.parallel.vocab import finish

INF, NAN = float("inf"), float("nan")
STATISTICS = [Statistic("soft_value", tau) for tau in (0.01, 0.5, 1.0, 5.0)]
STATISTICS += [Statistic(kind) for kind in KINDS if kind != "soft_value"]
SWEEPS = {"all": Sweep.over(STATISTICS)} | {s.name: Sweep.over([s]) for s in STATISTICS}

GOOD = ("normal", "bf16", "fp16", "large", "lowest", "close", "minus infinity", "empty tiles", "empty row", "padding")
GOOD += ("one tile", "default tile", "whole tiles", "one column", "two columns", "duplicates", "rising", "falling")
GOOD += ("labels elsewhere", "one token", "no tokens", "strided")
BAD = tuple(f"{kind} {value}" for kind in ("normal", "falling", "minus infinity") for value in (NAN, INF))
ALONE = ("minus infinity", "empty row", "one column", f"falling {NAN}", f"falling {INF}")
"""Cases in which each statistic is also asked for by itself."""

CANARY = 7.0
TOKENS, WIDTH, BLOCK = 5, 84, 32  # three tiles, the last one not full


@dataclass
class Case:
    logits: Tensor
    labels: Tensor
    valid: int = WIDTH
    block: int = BLOCK

    @property
    def z(self) -> Tensor:
        return self.logits[:, : self.valid].double()

    @property
    def usual(self) -> Tensor:
        """[T] bool: rows without NaN and +inf in which something is finite."""
        return self.z.amax(-1).isfinite()


def make_case(name: str) -> Case:
    generator = torch.Generator().manual_seed(len(name))
    width = {"one tile": 20, "whole tiles": 96, "one column": 1, "two columns": 2}.get(name, WIDTH)
    tokens = {"one token": 1, "no tokens": 0}.get(name, TOKENS)
    z = torch.randn(tokens, width, generator=generator) * 3
    case = Case(z, torch.randint(0, width, (tokens,), generator=generator), width)
    if name in ("bf16", "fp16"):
        case.logits = z.to(torch.bfloat16 if name == "bf16" else torch.float16)
    if name == "large":
        z += torch.where(torch.rand(z.shape, generator=generator) < 0.5, -1e4, 1e4)
    if name == "lowest":  # a usual mask
        z[:, ::3] = z[0, :40] = z[1, 40:] = torch.finfo(torch.float32).min
    if name == "close":  # differences of the order of the smallest temperature
        z.mul_(0.003).add_(100)
    if name.startswith("minus infinity"):
        z[torch.rand(z.shape, generator=generator) < 0.4] = -INF
    if name == "empty tiles":
        z[0, :32] = z[1, 32:64] = z[2, 64:] = z[3, :83] = z[4, 1:] = -INF
    if name == "empty row":
        z[1] = -INF
    if name == "padding":
        case.valid = 69
        z[:, 69:] = torch.tensor([NAN, 1e30, INF])[torch.randint(0, 3, (TOKENS, WIDTH - 69), generator=generator)]
        case.labels = torch.tensor([0, 68, 69, 83, 31])
    if name == "default tile":
        case.block = fused.BLOCK
    if name == "duplicates":  # of the maximum: in a tile, in two, everywhere; of the second; of neither
        z[0, [5, 6]] = z[1, [5, 70]] = z[2, [3, 33, 66]] = 20.0
        z[2] = 1.5
        z[3, 40], z[3, [2, 80]] = 20.0, 19.0
    if name.startswith(("rising", "falling")):  # 40 nats a tile: each one outweighs the ones before, or counts nothing
        z += (1.25 if name == "rising" else -1.25) * torch.arange(width)
    if name == "labels elsewhere":
        case.labels = torch.tensor([-1, -WIDTH, WIDTH, 10**9, WIDTH - 1])
    if name == "strided":
        wide = torch.full((2 * TOKENS, WIDTH + 12), CANARY)
        case.logits, case.labels = wide[::2, 5 : 5 + WIDTH], case.labels.repeat_interleave(2)[::2]
        case.logits.copy_(z)
    if name in BAD:  # in one column of the first, the middle, the last tile; at the label; in row 4 nothing
        value = float(name.split()[-1])
        z[[0, 1, 2, 3], [0, 40, WIDTH - 1, 50]] = value
        case.labels[3] = 50
    return case


def sweeps_of(name: str) -> dict[str, Sweep]:
    return SWEEPS if name in ALONE else {"all": SWEEPS["all"]}


def interpret(path: str) -> None:
    """In a process of its own: the kernel's partial numbers of all cases, each within a larger tensor [P, T + 5]."""
    assert "triton" not in sys.modules, "the torch path has imported Triton"
    results = {}
    for name in (*GOOD, *BAD):
        case = make_case(name)
        for asked, sweep in sweeps_of(name).items():
            whole = torch.full((sweep.rows, case.labels.numel() + 5), CANARY)
            out = whole[:, 3:-2]
            fused.collect(case.logits, case.labels, sweep, case.valid, out, largest_block=case.block)
            results[name, asked] = whole
    torch.save(results, path)


def compile_for_gpus(path: str) -> None:
    """In a process of its own: PTX of what would be launched, where a driver says that there is a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from nemo_tvkd.parallel import kernel

    made: dict[tuple[int, str, int], str] = {}
    sweep_row = kernel.sweep_row
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        driver.set_active(
            SimpleNamespace(
                get_current_device=lambda here=capability: here,
                get_current_stream=lambda device: 0,
                get_current_target=lambda target=target: target,
            )
        )
        for asked, dtype, width in [
            ("all", torch.bfloat16, 32128),
            ("all", torch.float32, 1),
            ("logprob", torch.bfloat16, 32128),
            ("logprob", torch.float32, 4000),
            ("logprob", torch.float16, 50257),
            ("expectation", torch.bfloat16, 32128),
            ("logit", torch.bfloat16, 32128),
        ]:

            def launch(*args: Any, key: tuple = (capability, asked, width), **options: Any) -> None:
                assert args[2] <= args[3] <= args[0].size(1), "columns that do not exist are read"
                made[key] = sweep_row.warmup(*args, grid=(1,), **options).asm["ptx"]

            logits, sweep = torch.zeros(2, width, dtype=dtype), SWEEPS[asked]
            with mock.patch.object(kernel, "sweep_row", {(2,): launch}):
                valid = 32003 if width == 32128 else width
                fused.collect(logits, torch.zeros(2, dtype=torch.int64), sweep, valid, torch.zeros(sweep.rows, 2))
    torch.save(made, path)


def in_process(function: str, path: Path, **environment: str) -> Any:
    tests = Path(__file__).parent.parent
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    folders = os.pathsep.join([str(tests), str(tests / "unit"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import test_fused; test_fused.{function}({str(path)!r})"],
        env=inherited | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Tensor]:
    """By case and what was asked for."""
    return in_process("interpret", tmp_path_factory.mktemp("fused") / "partials", TRITON_INTERPRET="1")


def partials(computed: dict[tuple[str, str], Tensor], name: str) -> Iterator[tuple[Sweep, Tensor]]:
    """What the kernel filled, and nothing beside it."""
    for asked, sweep in sweeps_of(name).items():
        whole = computed[name, asked]
        assert (whole[:, :3] == CANARY).all()
        assert (whole[:, -2:] == CANARY).all()
        yield sweep, whole[:, 3:-2]


def expected_partial(case: Case, sweep: Sweep) -> tuple[Tensor, Tensor]:
    """[P, T] float64 and what fp32 may be off by: nothing where a logit is picked."""
    z, labels = torch.nn.functional.pad(case.z, (0, 1), value=-INF), case.labels
    first, second = z.topk(2, -1).values.unbind(-1)
    delta = z - torch.where(first.isneginf(), 0.0, first)[:, None]
    rows = [first, *((delta / tau).exp().sum(-1) for tau in sweep.temperatures)]
    if sweep.weighted:
        rows.append(torch.where(delta.isneginf(), 0.0, delta * delta.exp()).sum(-1))
    sums = len(rows)
    if sweep.labels:
        here = (labels >= 0) & (labels < case.valid)
        rows.append(torch.where(here, z.gather(-1, (labels * here)[:, None])[:, 0], 0.0))
    rows += [second] * sweep.second
    expected = torch.stack(rows)
    allowed = torch.zeros_like(expected)
    allowed[1:sums] = 1e-5 * expected[1:sums].abs() + 1e-30
    return expected, allowed


@pytest.mark.parametrize("name", GOOD)
def test_partial_numbers_match_float64(computed: dict[tuple[str, str], Tensor], name: str) -> None:
    case = make_case(name)
    for sweep, partial in partials(computed, name):
        within(partial, *expected_partial(case, sweep), f"{name}, {sweep}")


@pytest.mark.parametrize("name", GOOD)
def test_partial_numbers_are_the_torch_paths(computed: dict[tuple[str, str], Tensor], name: str) -> None:
    case = make_case(name)
    assert not fused.usable(case.logits)
    for sweep, partial in partials(computed, name):
        torch_path = torch.full_like(partial, CANARY)
        vocab.collect(case.logits, case.labels, sweep, case.valid, torch_path)
        within(partial, torch_path.double(), expected_partial(case, sweep)[1], f"{name}, {sweep}")


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_statistics_match_float64(computed: dict[tuple[str, str], Tensor], name: str) -> None:
    case = make_case(name)
    z = torch.nn.functional.pad(case.z, (0, 1), value=-INF)
    here = (case.labels >= 0) & (case.labels < case.valid)
    for (sweep, partial), (asked, _) in zip(partials(computed, name), sweeps_of(name).items(), strict=True):
        for statistic in STATISTICS if asked == "all" else [s for s in STATISTICS if s.name == asked]:
            rows = case.usual & here if statistic.kind in ACTION_KINDS else case.usual
            expected = equation(z[rows], case.labels[rows], statistic)
            got = finish(statistic, partial, sweep)
            within(got[rows], expected, fp32_error(statistic, expected), f"{name}, {statistic.name}")
            if statistic.kind != "logit":
                assert not got[~case.usual].isfinite().any(), statistic


@pytest.mark.parametrize("name", BAD)
def test_bad_logits_show(computed: dict[tuple[str, str], Tensor], name: str) -> None:
    """A NaN or +inf, also in tiles that add nothing: in the peak and in all sums, in no other token's."""
    case = make_case(name)
    assert case.usual.tolist() == [False] * 4 + [True]
    for sweep, partial in partials(computed, name):
        expected, allowed = expected_partial(case, sweep)
        within(partial[:, 4:], expected[:, 4:], allowed[:, 4:], f"{name}, {sweep}")
        torch.testing.assert_close(partial[0].double(), case.z.amax(-1), rtol=0, atol=0, equal_nan=True)
        assert partial[1 : 1 + len(sweep.temperatures) + sweep.weighted, :4].isnan().all(), sweep
        if sweep.labels:
            label = partial[sweep.label_row].double()
            torch.testing.assert_close(label, expected[sweep.label_row], rtol=0, atol=0, equal_nan=True)


def test_an_empty_row_has_sums_of_nothing(computed: dict[tuple[str, str], Tensor]) -> None:
    for sweep, partial in partials(computed, "empty row"):
        assert partial[0, 1] == -INF
        assert (partial[1 : 1 + len(sweep.temperatures) + sweep.weighted, 1] == 0).all()
        assert not sweep.second or partial[-1, 1] == -INF


def test_compiles_for_gpus(tmp_path: Path) -> None:
    """With 16-byte loads wherever rows begin at multiples of 16 columns, whatever the number of real columns."""
    made = in_process("compile_for_gpus", tmp_path / "ptx", TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert len(made) == 14
    for (capability, asked, width), ptx in made.items():
        assert f".target sm_{capability}" in ptx
        assert ("ld.global.v4" in ptx) == (width % 16 == 0), (capability, asked, width)


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_triton_supports", lambda device: device == 0)

    def on_gpu(dtype: torch.dtype, stride: int = 1, device: int = 0) -> Any:
        where = SimpleNamespace(index=device)
        return SimpleNamespace(is_cuda=True, dtype=dtype, device=where, stride=lambda dim: (8, stride)[dim])

    assert all(fused.usable(on_gpu(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float32))
    assert not fused.usable(on_gpu(torch.float64))
    assert not fused.usable(on_gpu(torch.float32, stride=2))
    assert not fused.usable(on_gpu(torch.float32, device=1))
    assert not fused.usable(torch.zeros(2, 3))
