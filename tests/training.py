"""Running real training in the rank pool: tiny checkpoints, packed items, gradients written as a checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import reference as ref
import torch
from rank_pool import Layout, RankPool

VOCAB = 131  # no multiple of 128: the padded columns of the second shard are mostly padding


def save_hf(model: Any, folder: Path) -> Path:
    """A tiny model as a real Hugging Face checkpoint."""
    model.save_pretrained(folder)
    return folder


def import_checkpoint(source: str, output: str) -> None:
    """Task: Hugging Face to NeMo, one rank."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.models.conversion import import_hf

    import_hf(find_checkpoint(source, "source"), Path(output))


def export_checkpoint(source: str, output: str) -> None:
    """Task: NeMo to Hugging Face, one rank."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.models.conversion import export_hf

    export_hf(find_checkpoint(source, "checkpoint"), Path(output))


def make_items(pairs: list[ref.RefPair]) -> list[Any]:
    """Reference pairs as the items that batches are made of."""
    from nemo_tvkd.data.batch import Item

    as_array = lambda ids: np.asarray(ids, dtype=np.int32)  # noqa: E731
    return [
        Item(
            SimpleNamespace(
                prompt_ids=as_array(p.prompt),
                chosen_ids=as_array(p.chosen),
                rejected_ids=as_array(p.rejected),
                pair_id=f"{index:032x}",
                source=f"test:{index}",
            )
        )
        for index, p in enumerate(pairs)
    ]


def fit_prepared(config: Any, prepared: Any) -> None:
    """Task: the training that the parent prepared."""
    from nemo_tvkd.commands.train import fit

    fit(config, prepared)


def train_task(
    overrides: list[str],
    items: list[Any],
    student: str,
    frozen: dict[str, str],
    steps: int,
    gradients: str,
    hook: Any,
    validation: list[Any],
) -> None:
    """Task: `fit` as the command runs it, with data given as items."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.commands import train
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.prepare.training import Prepared

    config = compose("train", overrides)
    models = {need: find_checkpoint(path, need) for need, path in frozen.items()}
    prepared = Prepared(find_checkpoint(student, "student.path"), items, validation, steps, 0, models)
    original = train._Run._callbacks

    def with_hooks(self: Any, model: Any, scorer: Any) -> list[Any]:
        extra = [GradientDump(gradients)] if gradients else []
        return original(self, model, scorer) + extra + ([hook()] if hook else [])

    train._Run._callbacks = with_hooks  # type: ignore[method-assign]
    try:
        train.fit(config, prepared)
    finally:
        train._Run._callbacks = original  # type: ignore[method-assign]


def run_training(
    pool: RankPool,
    layout: Layout,
    output: Path,
    *,
    algorithm: str,
    student: Path,
    items: list[Any],
    frozen: dict[str, Path] | None = None,
    steps: int = 1,
    options: list[str] | None = None,
    gradients: str = "",
    hook: Any = None,
    validation: list[Any] | None = None,
) -> list[dict[str, Any]]:
    """Train and return the rows of metrics.jsonl."""
    overrides = [
        f"algorithm={algorithm}",
        *layout.overrides(),
        f"trainer.output_dir={output}",
        "trainer.precision=fp32",
        "trainer.global_batch_size=4",
        "logger.tensorboard=false",
        "data.shuffle=false",
        "optim.lr=1e-3",
        "optim.warmup_ratio=0",
        *(options or []),
    ]
    models = {need: str(path) for need, path in (frozen or {}).items()}
    pool.run(layout, train_task, overrides, items, str(student), models, steps, gradients, hook, validation or [])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def gradient_callback() -> type:
    """The class of :class:`GradientDump`, made late because Lightning is imported in ranks only."""
    import lightning.pytorch as pl

    class Dump(pl.Callback):
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step:
                return
            from megatron.core import dist_checkpointing
            from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
            from megatron.core.utils import unwrap_model

            state = unwrap_model(pl_module.module).sharded_state_dict(prefix="module.")
            for entry in state.values():
                if isinstance(entry, ShardedTensor | ShardedTensorFactory) and entry.data is not None:
                    entry.data = entry.data.main_grad.detach()
            if torch.distributed.get_rank() == 0:
                Path(self.folder, "weights").mkdir(parents=True)
            torch.distributed.barrier()
            dist_checkpointing.save({"state_dict": state}, str(Path(self.folder, "weights")))

    return Dump


def GradientDump(folder: str) -> Any:
    """A callback that writes the first step's gradients as a distributed checkpoint, whatever the layout."""
    return gradient_callback()(folder)


def gradients_as_hf(folder: str, student: str) -> dict[str, torch.Tensor]:
    """Task (one rank): the dumped gradients under their Hugging Face names, by the exporter."""
    import shutil

    from nemo_tvkd.checkpoints.hf import HF_SIDE_DIR, find_checkpoint
    from nemo_tvkd.models.conversion import PolicyExporter

    shutil.copytree(find_checkpoint(student, "student").hf_dir, Path(folder) / HF_SIDE_DIR)
    model = PolicyExporter(folder)._converted()
    tied = model.config.tie_word_embeddings
    return {name: w.clone() for name, w in model.state_dict().items() if not (tied and name == "lm_head.weight")}
