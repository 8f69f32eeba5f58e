"""`bench`: its own arithmetic, and every part of it run small."""

import math
from typing import Any

import pytest
import torch
from rank_pool import Layout, RankPool
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_tvkd.commands.bench import main
from nemo_tvkd.commands.table import table
from nemo_tvkd.config.compose import compose
from nemo_tvkd.errors import UserError

SMALL = [
    *("trainer.precision=fp32", "score.precision=fp32", "bench.repeats=1", "bench.pairs=2", "bench.growth=[1,2]"),
    *("bench.vocab_sizes=[1024]", "bench.tokens=8", "bench.hidden_size=16", "bench.prompt_length=3"),
    *("bench.response_length=5", "trainer.global_batch_size=2", "trainer.micro_batch_size=1"),
    *(f"bench.{name}.{key}" for name in ("student", "teacher") for key in ("hidden_size=32", "vocab_size=256")),
    *(f"bench.{name}.{key}" for name in ("student", "teacher") for key in ("num_layers=2", "num_heads=4")),
]


def measure_task(part: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Task: one part's rows."""
    from importlib import import_module

    config = compose("bench", [f"bench.part={part}", *SMALL, *overrides])
    return import_module(f"nemo_tvkd.commands.bench.{part}").measure(config)["rows"]


@pytest.mark.parametrize(
    ("part", "layout", "count"),
    [
        ("vocab", Layout(), 9),
        ("vocab", Layout(tp=2), 9),
        ("score", Layout(pp=2), 2),
        ("step", Layout(), 5),
        ("step", Layout(tp=2, pp=2, sp=True), 5),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else str(value),
)
def test_every_part_measures(pool: RankPool, part: str, layout: Layout, count: int) -> None:
    rows = pool.run(layout, measure_task, part, layout.overrides())[0]
    assert len(rows) == count
    lines = table(rows).splitlines()
    assert len(lines) == count + 1
    for row in rows:
        numbers = [v for v in row.values() if isinstance(v, float)]
        assert numbers
        assert all(math.isfinite(v) and v >= 0 for v in numbers), row
        assert row.get("MFU") is None  # no GPU whose peak is known


def both_logps() -> tuple[torch.Tensor, torch.Tensor]:
    """Task: a micro-batch's log-probabilities through chunks, and through full logits as the comparison has them."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_tvkd.commands.bench.models import random_items
    from nemo_tvkd.commands.bench.step import FullLogits
    from nemo_tvkd.config.commands import MeasuringConfig
    from nemo_tvkd.data.batch import collate
    from nemo_tvkd.models.readout import Readout

    group = parallel_state.get_tensor_model_parallel_group()
    batch = collate(random_items(2, MeasuringConfig(prompt_length=3, response_length=5), 256), multiple=2)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(batch["tokens"].size(1), 16, generator=generator)
    weight = torch.randn(256, 16, generator=generator).chunk(group.size())[dist.get_rank(group)]
    results = []
    for kind in (Readout, FullLogits):
        mine = hidden.chunk(group.size())[dist.get_rank(group)].clone().requires_grad_()
        readout = kind(mine, weight, 256, group, group.size() > 1, 0)
        logps = readout.response_logps(batch)
        logps.sum().backward()
        results.append(torch.cat([logps.detach(), mine.grad.double().flatten()]))
    return results[0], results[1]


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, sp=True)], ids=lambda layout: layout.name)
def test_the_comparison_computes_the_same(pool: RankPool, layout: Layout) -> None:
    for chunked, full in pool.run(layout, both_logps):
        torch.testing.assert_close(chunked, full, rtol=1e-5, atol=1e-5)


def flops() -> tuple[float, float]:
    """Task: torch's own count, on one sequence (all of the attention matrix, not the causal half), and ours."""
    from torch.utils.flop_counter import FlopCounterMode

    from nemo_tvkd.commands.bench.models import forward_flops

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 24, dtype=torch.long), use_cache=False)
    rotary = sum(
        sum(kinds.values()) for name, kinds in counter.get_flop_counts().items() if name.endswith("rotary_emb")
    )
    return counter.get_total_flops() - rotary, forward_flops(config, 24, 2 * 24, 24)


def test_flops_are_those_of_the_products(pool: RankPool) -> None:
    ((counted, ours),) = pool.run(Layout(), flops)
    assert counted == ours


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "bench: name the part to measure: nemo-tvkd bench vocab|score|step"),
        (["bench.part=memory"], "bench: name the part to measure"),
        (["bench.part=step", "algorithm=dpo"], "algorithm=dpo: bench compares algorithm=tvkd's steps with DPO's"),
        (["bench.part=vocab", "bench.repeats=0"], "bench.repeats=0 must be positive"),
        (["bench.part=vocab", "bench.vocab_sizes=[0]"], "bench.vocab_sizes=0 must be positive"),
        (["bench.part=score", "score.what=[foo]"], "score.what=foo is none of"),
    ],
)
def test_bad_requests(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        main(compose("bench", overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
