"""The NeMo trainer of a run: strategy, optimizer, learning-rate schedule and data module."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.lightning.pytorch.optim.base import LRSchedulerModule
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from nemo_tvkd.data.batch import collate
from nemo_tvkd.data.stream import Stream, open_stream
from nemo_tvkd.models.reward_head import RewardHead
from nemo_tvkd.runtime import cpu
from nemo_tvkd.runtime.exits import rank_variables


class JoinedEnvironment(ClusterEnvironment):
    """Tells Lightning about the process group that :func:`runtime.launch.join` set up."""

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return dist.is_initialized()

    def world_size(self) -> int:
        return dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        return rank_variables()["local_rank"]

    def node_rank(self) -> int:
        return dist.get_rank() // rank_variables()["local_world"]

    def set_world_size(self, size: int) -> None: ...

    def set_global_rank(self, rank: int) -> None: ...


class JoinedStrategy(nl.MegatronStrategy):
    """NeMo's strategy in a job whose process group and model-parallel groups exist already.

    Frozen models share these groups, so they must not be torn down and made again.
    """

    new_head = False
    """Whether the checkpoint that a fresh run starts from has no reward head, but the policy has."""

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self.data_sampler.setup(dist.get_rank())

    def selective_restore(self) -> None:
        """The weights that a fresh run starts from."""
        heads = [m for m in self.megatron_parallel.modules() if isinstance(m, RewardHead) and self.new_head]
        for head in heads:
            head.stored = False
        super().selective_restore()
        for head in heads:
            head.stored = True


def has_fused_adam() -> bool:
    """Whether Megatron will use TE's or apex's FusedAdam; its distributed optimizer cannot save torch's Adam."""
    if cpu.on_cpu():
        return False
    for module in ("transformer_engine.pytorch.optimizers", "apex.optimizers"):
        try:
            __import__(module)
            return True
        except ImportError:
            continue
    return False


def row_multiple(parallel: Any) -> int:
    """Packed rows are a multiple of this many tokens, so that sequence parallelism can split them."""
    return int(parallel.tensor_model_parallel_size) if parallel.sequence_parallel else 1


class WarmupSchedule(LRSchedulerModule):
    """Linear warm-up to the peak, then constant, linear or cosine down to `min_ratio` of it.

    At update n (from 0) of `steps`: n / warmup during warm-up, as in transformers' schedules.
    """

    def __init__(self, schedule: str, warmup: int, steps: int, min_ratio: float) -> None:
        super().__init__()
        self.schedule, self.warmup, self.steps, self.min_ratio = schedule, warmup, steps, min_ratio

    def factor(self, update: int) -> float:
        """The learning rate at an update, as a fraction of the peak."""
        if update < self.warmup:
            return update / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min((update - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        shape = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_ratio + (1 - self.min_ratio) * shape

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A checkpoint brings the rate that its own run would have gone on with; this run may be a longer one."""
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            for group, peak in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = peak * self.factor(scheduler.last_epoch)

    def scheduler(self, model: Any, optimizers: Any) -> dict[str, Any]:
        scheduler = {"scheduler": LambdaLR(optimizers, self.factor), "interval": "step", "frequency": 1}
        return {"optimizer": optimizers, "lr_scheduler": scheduler}


def optimizer(config: Any, max_steps: int) -> nl.MegatronOptimizerModule:
    """AdamW by Megatron: fused and distributed where TE or apex is present, torch's otherwise."""
    options = config.optim
    bf16 = config.trainer.precision == "bf16"
    adam = OptimizerConfig(
        optimizer="adam",
        lr=options.lr,
        min_lr=options.min_lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        adam_eps=options.eps,
        clip_grad=options.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=has_fused_adam(),
    )
    warmup = math.ceil(options.warmup_ratio * max_steps)
    schedule = WarmupSchedule(options.schedule, warmup, max_steps, options.min_lr / options.lr if options.lr else 0.0)
    return nl.MegatronOptimizerModule(config=adam, lr_scheduler=schedule)


class PackedData(pl.LightningDataModule):
    """Training pairs in the order of (seed, epoch), from the sample that the run continues with."""

    def __init__(self, stream: Stream, sampler: MegatronDataSampler, multiple: int) -> None:
        super().__init__()
        self.stream, self.data_sampler, self.multiple = stream, sampler, multiple

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.stream, collate_fn=lambda items: collate(items, self.multiple))


def data_module(config: Any, prepared: Any, start: int) -> PackedData:
    """The data of a run that continues after `start` steps."""
    options = config.trainer
    sampler = MegatronDataSampler(
        seq_len=1,  # shapes travel with the tensors (variable_seq_lengths)
        micro_batch_size=options.micro_batch_size,
        global_batch_size=options.global_batch_size,
        init_consumed_samples=start * options.global_batch_size,
        init_global_step=start,
        output_log=False,
    )
    # Longer than the run: max_steps ends it, never the end of an epoch in Lightning's sense.
    length = 2 * (prepared.max_steps + 1) * options.global_batch_size
    stream = open_stream(prepared.train, length, options.seed, config.data.shuffle, prepared.mixture)
    return PackedData(stream, sampler, row_multiple(config.parallel))


def _bf16() -> nl.MegatronMixedPrecision:
    """bf16 parameters and pipeline messages; without the dtypes NeMo builds the model in fp32 first."""
    half = torch.bfloat16
    return nl.MegatronMixedPrecision(precision="bf16-mixed", params_dtype=half, pipeline_dtype=half)


def trainer(
    config: Any,
    prepared: Any,
    callbacks: list[Any],
    sampler: MegatronDataSampler,
    restore: bool,
    new_head: bool = False,
) -> nl.Trainer:
    """The Lightning trainer.

    Args:
        restore: load the student's weights (a fresh run); a resumed one loads its checkpoint.
        new_head: whether these lack the policy's reward head.
    """
    parallel, bf16 = config.parallel, config.trainer.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=has_fused_adam(),
        grad_reduce_in_fp32=True,
        check_for_nan_in_grad=False,  # the recorder looks at the loss and the gradient norm on every rank
        overlap_grad_reduce=has_fused_adam(),
    )
    strategy = JoinedStrategy(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        cluster_environment=JoinedEnvironment(),
        data_sampler=sampler,
        ddp=ddp,
        pipeline_dtype=dtype,
        ckpt_async_save=False,
        ckpt_parallel_load=not cpu.on_cpu(),
        ckpt_optim_fully_reshardable=True,  # a run may continue at another layout
        distrib_optim_fully_reshardable_mem_efficient=True,  # else every replica gathers the whole stage's state
        replace_progress_bar=False,
        restore_config=nl.RestoreConfig(path=str(prepared.student.path), load_optim_state=False) if restore else None,
    )
    ranks = rank_variables()
    result = nl.Trainer(
        accelerator="cpu" if cpu.on_cpu() else "gpu",
        devices=ranks["local_world"],
        num_nodes=max(dist.get_world_size() // ranks["local_world"], 1),
        strategy=strategy,
        plugins=_bf16() if bf16 else None,
        max_steps=prepared.max_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # NeMo's trainer copies its arguments deeply; callbacks hold frozen models and process groups, so they come later.
    result.callbacks.extend(callbacks)
    result.strategy.new_head = new_head
    return result
