"""The recipes' architectures, built as real NeMo models on the meta device at the recipes' layouts."""

import math
from typing import Any

import pytest
from architecture_shapes import NAMES, published, shapes, shapes_of_many_ranks
from rank_pool import Layout, RankPool

from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.commands.doctor import parameters
from nemo_tvkd.commands.doctor.parameters import model_parameters, rank_parameters
from nemo_tvkd.config.compose import choices

PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
}
LAYOUTS = [Layout(tp=4), Layout(tp=2, pp=2), Layout(tp=4, sp=True), Layout(pp=4), Layout()]
WIDE = [Layout(tp=8), Layout(tp=4, pp=2), Layout(tp=8, pp=2, sp=True)]
"""On whole nodes: more ranks than the pool has."""

Shapes = list[tuple[str, tuple, bool]]


def coordinates(rank: int, layout: Layout) -> tuple[int, int]:
    """(tensor-parallel rank, pipeline stage): Megatron's order is tensor, data, pipeline."""
    return rank % layout.tp, rank // (layout.tp * layout.dp)


def counted(ranks: list[Shapes], layout: Layout, config: Any) -> int:
    """All ranks' parameters without padded rows, the last stage's copy of a tied embedding, and copies of norms."""
    total = 0
    for rank, held in enumerate(ranks):
        tensor, stage = coordinates(rank, layout)
        for name, shape, sharded in held:
            copy = config.tie_word_embeddings and name == "output_layer.weight"
            if copy:
                assert stage == layout.pp - 1 > 0
            if (sharded or tensor == 0) and not copy:
                total += math.prod(shape)
            if "word_embeddings" in name or name == "output_layer.weight":
                first = tensor * shape[0]
                real = min(max(config.vocab_size - first, 0), shape[0])
                total -= 0 if copy else (shape[0] - real) * shape[1]
    return total


def check(name: str, layout: Layout, ranks: list[Shapes], changes: dict, heads: dict) -> None:
    config = published(name, **changes)
    split = parameters.Layout(layout.tp, layout.pp, layout.dp, layout.sp)
    for rank, held in enumerate(ranks):
        stage = coordinates(rank, layout)[1]
        ours = rank_parameters(config, split, stage, **heads)
        assert ours.total == sum(math.prod(shape) for _, shape, _ in held), (name, layout.name, rank)
        norms = [math.prod(shape) for key, shape, _ in held if "norm" in key]
        assert ours.norms == sum(norms)
    if changes or heads:
        return
    whole = counted(ranks, layout, config)
    assert whole == model_parameters(config)
    if name in PUBLISHED:
        assert whole == PUBLISHED[name]
    else:
        assert whole == pytest.approx(514e6, rel=0.005)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("name", NAMES)
def test_ranks_hold_the_published_parameters(pool: RankPool, name: str, layout: Layout) -> None:
    check(name, layout, pool.run(layout, shapes, name, layout, {}, {}), {}, {})


@pytest.mark.parametrize("layout", WIDE, ids=lambda layout: layout.name)
@pytest.mark.parametrize("name", NAMES)
def test_whole_nodes_hold_the_published_parameters(pool: RankPool, name: str, layout: Layout) -> None:
    (ranks,) = pool.run(Layout(), shapes_of_many_ranks, name, layout, {}, {})
    check(name, layout, ranks, {}, {})


def recipes() -> list[tuple[str, Layout]]:
    """The architectures and layouts of all stages of all recipes, on both kinds of nodes, without replicas."""
    found = set()
    for recipe in choices("recipe"):
        for node_type in ("8x80gb", "4x64gb"):
            chain = load_recipe([f"recipe={recipe}", "cluster=example_bare", f"cluster.node_type={node_type}"])
            for stage in chain.stages:
                if stage.command not in ("train", "score", "evaluate") or not stage.models:
                    continue
                parallel, own = stage.config().parallel, next(iter(stage.models.values()))
                tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
                found.add((own.architecture, (tensor, pipeline, bool(parallel.sequence_parallel))))
    return [(name, Layout(tp=tp, pp=pp, sp=sp)) for name, (tp, pp, sp) in sorted(found)]


@pytest.mark.parametrize(("name", "layout"), recipes(), ids=lambda value: getattr(value, "name", value))
def test_recipes_build_their_models_at_their_layouts(pool: RankPool, name: str, layout: Layout) -> None:
    (ranks,) = pool.run(Layout(), shapes_of_many_ranks, name, layout, {}, {})
    check(name, layout, ranks, {}, {})


def test_the_recipes_have_every_architecture() -> None:
    assert {name for name, _ in recipes()} == set(NAMES)


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, pp=2)], ids=lambda layout: layout.name)
@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"vocab_size": 32_001}, {}),
        ({"tie_word_embeddings": True}, {"reward_head": True}),
        ({"tie_word_embeddings": True}, {"lm_head": False, "reward_head": True}),
        ({}, {"lm_head": False, "reward_head": True}),
    ],
    ids=["padded", "tied-reward", "tied-headless", "headless"],
)
def test_padding_and_heads(pool: RankPool, changes: dict, heads: dict, layout: Layout) -> None:
    name = "danube3-500m"
    ranks = pool.run(layout, shapes, name, layout, changes, heads)
    check(name, layout, ranks, changes, heads)
    if changes.get("vocab_size"):
        assert counted(ranks, layout, published(name, **changes)) == model_parameters(published(name, **changes))


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_what_transformers_and_the_layers_take(name: str) -> None:
    import torch

    from nemo_tvkd.checkpoints.hf import check_architecture, check_layout, head_dim

    config = published(name)
    check_architecture(config, "student.path")
    check_layout(config, "student.path", 8, 4)
    assert config.torch_dtype == torch.bfloat16
    assert head_dim(config) * config.num_attention_heads == config.hidden_size
    assert getattr(config, "rope_scaling", None) is None or config.rope_scaling["rope_type"] == "llama3"
