"""Real NeMo models on the meta device: what each rank of a layout would hold, without holding it."""

import json
from pathlib import Path
from typing import Any

from rank_pool import Layout

FOLDER = Path(__file__).parents[1] / "conf" / "model"
NAMES = ("llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "mistral-7b", "danube3-500m")


def published(name: str, **changes: Any) -> Any:
    """The Hugging Face config in conf/model, with some keys changed."""
    from transformers import AutoConfig

    values = {**json.loads((FOLDER / f"{name}.json").read_text()), **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def shapes(name: str, layout: Layout, changes: dict[str, Any], heads: dict[str, bool]) -> list[tuple[str, tuple, bool]]:
    """Task: (name, shape, whether tensor-parallel ranks hold different parts) of this rank's parameters."""
    import torch

    from nemo_tvkd.models.architecture import model_config

    found = model_config(published(name, **changes), dtype=torch.bfloat16, lm_head=heads.get("lm_head", True))
    found.reward_head = heads.get("reward_head", False)
    found.tensor_model_parallel_size = layout.tp
    found.pipeline_model_parallel_size = layout.pp
    found.sequence_parallel = layout.sp
    found.init_model_with_meta_device = True
    found.__post_init__()
    model = found.configure_model(tokenizer=None)
    parameters = dict(model.named_parameters())
    assert all(p.is_meta for key, p in parameters.items() if not key.startswith("reward_head"))
    return [(key, tuple(p.shape), getattr(p, "tensor_model_parallel", False)) for key, p in parameters.items()]


def shapes_of_many_ranks(
    name: str, layout: Layout, changes: dict[str, Any], heads: dict[str, bool]
) -> list[list[tuple[str, tuple, bool]]]:
    """Task (one rank): `shapes` of every rank of a layout of any size, each in a process group that does nothing."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from nemo_tvkd.runtime import launch

    launch.leave()
    ranks = []
    for rank in range(layout.world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
        parallel_state.initialize_model_parallel(layout.tp, layout.pp, create_gloo_process_groups=False)
        ranks.append(shapes(name, layout, changes, heads))
        launch.leave()
    return ranks
