"""Frozen models (teacher, reference, and whatever is scored or evaluated): forward only, through the pipeline schedule.

A frozen model lives beside the policy, outside its modules, with its own sizes and number of layers; it shares the
job's tensor and pipeline groups.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.data.batch import Batch, Item, micro_batches, to_device
from nemo_tvkd.models.architecture import model_config
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.runtime import cpu

Statistics = Callable[[Batch, Readout], Any]
"""(micro-batch on the device, what reads its hidden states) -> what to keep; runs on the last pipeline stage."""
Asked = Callable[[Batch, Readout], Sequence[Any]]
"""The same, with an entry for each of a micro-batch's N responses, chosen first."""
BATCHES_PER_PASS = 16
"""Micro-batches per trip through the pipeline schedule: enough to fill it; hidden states of no more exist at a time,
and what is done between two trips (progress, signals) is done often enough."""


def packed_forward(module: nn.Module, batch: Batch) -> Tensor:
    """One stage's forward pass over a packed row; on the last stage hidden states [1, T (/TP), H], model's dtype."""
    cu_seqlens = batch["cu_seqlens"]
    longest = max(batch["lengths"])
    packing = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    inner = unwrap_model(module)
    half = {"fp32_output": False} if _wrapped_in(module, Float16Module) else {}
    assert isinstance(inner, MegatronModule)
    return module(
        input_ids=batch["tokens"],
        position_ids=batch["position_ids"],
        attention_mask=None,
        packed_seq_params=packing,
        **half,
    )


def _wrapped_in(module: nn.Module, kind: type) -> bool:
    while hasattr(module, "module"):
        if isinstance(module, kind):
            return True
        module = module.module  # type: ignore[assignment]
    return False


@torch.no_grad()
def pipeline_forward(module: nn.Module, batches: Sequence[Batch], statistics: Statistics) -> list[Any]:
    """Run micro-batches through a (possibly pipelined) model without gradients.

    Args:
        module: this stage's Megatron module, wrapped or bare.
        batches: the same micro-batches on every stage; on the host or the device.
        statistics: applied to each micro-batch on the last stage.

    Returns:
        one result per micro-batch on the last stage, an empty list on the others.
    """
    if not batches:
        return []
    device = cpu.device()

    def forward_step(iterator: Any, model: nn.Module) -> tuple[Tensor, Callable]:
        batch = to_device(next(iterator), device)
        output = packed_forward(model, batch)
        return output, lambda hidden, non_loss_data=True: statistics(batch, Readout.of(model, hidden))

    training = module.training
    module.eval()
    results = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[module],
        num_microbatches=len(batches),
        seq_length=1,  # shapes travel with the tensors (variable_seq_lengths)
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    module.train(training)
    return results


def measure(module: nn.Module, items: Sequence[Item], size: int, asked: Asked) -> list[tuple[Any, Any]]:
    """What is asked of each pair's chosen and rejected response, in the items' order, on every rank (collective).

    Args:
        module: of :func:`load_frozen`.
        items: pairs; replica r of d measures every d-th of them from the r-th on.
        size: pairs per micro-batch.
    """
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    own = range(replica, len(items), replicas)
    mine: list[tuple[Any, Any]] = []
    for start in range(0, len(own), size * BATCHES_PER_PASS):
        some = own[start : start + size * BATCHES_PER_PASS]
        for found in pipeline_forward(module, list(micro_batches([items[i] for i in some], size, 1)), asked):
            mine += zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True)
    if parallel_state.get_tensor_model_parallel_rank():
        mine = []  # the tensor-parallel ranks all have the same
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (replica, mine))
    ordered: list[Any] = [None] * len(items)
    for index, part in everyone:
        if part:
            ordered[index::replicas] = part
    return ordered


def load_frozen(
    checkpoint: Checkpoint, key: str, precision: str, lm_head_memory: int = 0, lm_head: bool = True
) -> MegatronModule:
    """This rank's shard of a NeMo checkpoint's model, in evaluation mode and without gradients.

    Args:
        checkpoint: of kind "nemo".
        key: configuration key to name in errors.
        precision: "fp32" or "bf16", the dtype of the parameters.
        lm_head_memory: bytes that logits may take at a time; 0: the device's default.
        lm_head: False leaves out the output layer of a model that is asked for rewards alone.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = model_config(checkpoint.config, key, dtype, lm_head and checkpoint.has_lm_head)
    config.reward_head = checkpoint.has_reward_head
    config.perform_initialization = False
    config.lm_head_memory = lm_head_memory
    config.tensor_model_parallel_size = parallel_state.get_tensor_model_parallel_world_size()
    config.pipeline_model_parallel_size = parallel_state.get_pipeline_model_parallel_world_size()
    # A frozen model keeps few activations, so sequence parallelism would only add messages.
    config.sequence_parallel = False
    config.__post_init__()
    module = config.configure_model(tokenizer=None).to(cpu.device())
    load_weights(module, checkpoint)
    return module.requires_grad_(False).eval()


def load_weights(module: MegatronModule, checkpoint: Checkpoint) -> None:
    """Fill a bare Megatron module with this rank's part of a NeMo checkpoint, whatever layout it was saved at."""
    folder = str(checkpoint.path / "weights")
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = None
    if replicas.size() > 1:  # each replica reads a part and hands it to the others
        strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(folder), replicas)
    state = {"state_dict": module.sharded_state_dict(prefix="module.")}
    loaded = dist_checkpointing.load(state, folder, sharded_strategy=strategy)
    own = {name.removeprefix("module."): value for name, value in loaded["state_dict"].items()}
    module.load_state_dict(own)


def release_memory() -> None:
    """Give a model that nothing refers to any more back to the device: the next one needs the room."""
    gc.collect()  # circles of references would keep it until some later collection
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
