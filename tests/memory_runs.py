"""What a real training step holds on a CPU rank: state by walking storages, the rest by the allocator's events."""

from types import SimpleNamespace
from typing import Any

import torch
from rank_pool import Layout, RankPool

SIZES: dict[str, Any] = {
    "vocab_size": 16000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
PROMPT = 48
"""Tokens; a micro-batch is one pair."""
STEPS = 3


def hf_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**SIZES, **changes})


def storage_bytes(tensors: Any) -> int:
    """Bytes behind tensors, shared storages once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class Allocations:
    """Net and peak bytes of torch's CPU allocator between enter and exit."""

    def __enter__(self) -> "Allocations":
        from torch.profiler import ProfilerActivity, profile

        self.trace = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.trace.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.trace.__exit__(None, None, None)
        self.held = self.peak = 0
        events = [e for e in self.trace.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            self.held += event.nbytes()
            self.peak = max(self.peak, self.held)


class SavedTensors:
    """Bytes that the autograd graph keeps of a step, weights and what they share storages with left out."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def measuring_callback(model: Any, results: dict[str, int]) -> Any:
    """A Lightning callback that fills `results` during the second and third step."""
    import lightning.pytorch as pl

    class Measure(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 1:
                results.update(state(model, trainer))
                self.passes = Allocations().__enter__()
            if trainer.global_step == 2:
                self.saved = SavedTensors(model.module)
                self.saved.hooks.__enter__()

        def on_before_optimizer_step(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 1:
                self.passes.__exit__()
                results["passes"] = self.passes.peak
                self.update = Allocations().__enter__()
            if trainer.global_step == 2:
                self.saved.hooks.__exit__()
                results["saved"] = self.saved.bytes

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 2 and hasattr(self, "update"):
                self.update.__exit__()
                results["update"] = self.update.peak
                del self.update

    return Measure()


def state(model: Any, trainer: Any) -> dict[str, int]:
    """Bytes that live between steps: weights, gradient buffers and the optimizer's tensors."""
    weights = list(model.module.parameters())
    buffers = [p.main_grad for p in weights]
    others: list[torch.Tensor] = []
    for optimizer in trainer.optimizers:
        inner = optimizer.mcore_optimizer
        for part in getattr(inner, "chained_optimizers", [inner]):
            others += [t for values in part.optimizer.state.values() for t in values.values() if torch.is_tensor(t)]
            others += [p for group in part.optimizer.param_groups for p in group["params"]]
    return {
        "weights": storage_bytes(weights),
        "gradients": storage_bytes(buffers),
        "optimizer": storage_bytes(weights + others) - storage_bytes(weights),
    }


def step_task(overrides: list[str], response: int, sizes: dict[str, Any]) -> dict[str, int]:
    """Task: real steps of a run with random weights; what this rank held, in bytes by part."""
    from nemo_tvkd.commands import train
    from nemo_tvkd.commands.bench.models import random_items
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.prepare.training import Prepared
    from nemo_tvkd.training import trainer as build

    config = compose("train", overrides)
    lengths = SimpleNamespace(prompt_length=PROMPT, response_length=response)
    items = random_items(config.trainer.global_batch_size, lengths, sizes["vocab_size"])
    student: Any = SimpleNamespace(config=hf_config(**sizes))
    prepared = Prepared(student, items, [], STEPS, 0)
    model = train._Run(config, prepared, 0, False)._model()
    data = build.data_module(config, prepared, 0)
    results: dict[str, int] = {}
    callback = measuring_callback(model, results)
    build.trainer(config, prepared, [callback], data.data_sampler, restore=False).fit(model, data)
    return results


def measure(
    pool: RankPool, layout: Layout, folder: Any, precision: str, *options: str, response: int, **sizes: Any
) -> list[Any]:
    """Each rank's bytes by part of a TVKD run (cached teacher) with one pair in a micro-batch."""
    overrides = [
        "algorithm=tvkd",
        *layout.overrides(),
        f"trainer.output_dir={folder}",
        f"trainer.precision={precision}",
        "trainer.micro_batch_size=1",
        "logger.tensorboard=false",
        *options,
    ]
    return pool.run(layout, step_task, overrides, response, {**SIZES, **sizes})


def reading_task(precision: str, layout: Layout, response: int, sizes: dict[str, Any]) -> dict[str, int]:
    """Task: a frozen model's forward pass with values at all response states, as scoring runs it."""
    from nemo_tvkd.commands.bench.models import random_frozen, random_items
    from nemo_tvkd.data.batch import collate
    from nemo_tvkd.models.frozen import pipeline_forward
    from nemo_tvkd.parallel.statistic import Statistic

    parallel = SimpleNamespace(
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp, lm_head_memory_mib=0
    )
    module = random_frozen(hf_config(**sizes), "score.model", precision, parallel)
    batch = collate(
        random_items(1, SimpleNamespace(prompt_length=PROMPT, response_length=response), sizes["vocab_size"])
    )
    value = Statistic("soft_value", 0.5)
    with Allocations() as allocations:
        pipeline_forward(module, [batch] * 4, lambda batch, readout: readout.statistics(batch, [value], "all"))
    return {"weights": storage_bytes(module.parameters()), "passes": allocations.peak}


def measure_reading(pool: RankPool, layout: Layout, precision: str, *, response: int, **sizes: Any) -> list[Any]:
    """Each rank's bytes of weights and of the fullest moment of reading a pair."""
    return pool.run(layout, reading_task, precision, layout, response, {**SIZES, **sizes})
