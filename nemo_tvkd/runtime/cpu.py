"""Megatron-Core and NeMo on machines without CUDA; nothing happens where CUDA is there.

Both assume a GPU in many small ways (`device="cuda"`, streams, pinned memory). :func:`enable` answers these
assumptions with the CPU, once per process and before NeMo is imported. It is the only module that knows of them.
"""

import contextlib
import os
from typing import Any

import torch
import torch._dynamo
from torch.overrides import TorchFunctionMode

_enabled = False


def on_cpu() -> bool:
    """Whether this process computes on the CPU (no CUDA device is visible)."""
    return not torch.cuda.is_available()


def device() -> torch.device:
    """The device that models and batches live on in this process."""
    return torch.device("cpu") if on_cpu() else torch.device("cuda", torch.cuda.current_device())


def enable() -> None:
    """Redirect CUDA calls to the CPU for the rest of this process. Idempotent; does nothing with CUDA present."""
    global _enabled
    if _enabled or not on_cpu():
        return
    _enabled = True
    # Megatron compiles small functions with torch.compile; on the CPU that costs minutes and a C++ compiler.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    torch._dynamo.config.disable = True
    _CudaToCpu().__enter__()
    _patch_cuda_module()


def prepare_nemo() -> None:
    """Import NeMo with :func:`enable` in force and mend what it builds from CUDA devices. About 10 s the first time."""
    enable()
    _import_quietly()
    _save_without_manager()
    if not on_cpu():
        return
    import nemo.lightning.io.pl as checkpoint_io
    from megatron.core.tensor_parallel import random

    checkpoint_io._fix_tensors_device = lambda checkpoint: checkpoint
    # Megatron's CUDA RNG tracker cannot fork CPU generators; dropout is off, so the no-op tracker is exact.
    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    random._get_cuda_rng_state = _returning(torch.empty(0, dtype=torch.uint8))
    random._set_cuda_rng_state = _returning(None)


def _save_without_manager() -> None:
    """Checkpoints are saved synchronously, so results pass through a queue in this process.

    Megatron would start a manager process per rank (seconds, and an orphan if the rank is killed).
    """
    import queue

    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith("cuda")
    return isinstance(value, torch.device) and value.type == "cuda"


class _CudaToCpu(TorchFunctionMode):
    """Rewrites CUDA devices in every torch call of the process to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)  # Megatron's clipping asserts the CUDA name
        if "device" in kwargs and (_is_cuda(kwargs["device"]) or isinstance(kwargs["device"], int)):
            kwargs = {**kwargs, "device": "cpu"}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to and any(_is_cuda(a) for a in args[1:]):
            args = tuple("cpu" if _is_cuda(a) else a for a in args)
        return func(*args, **kwargs)


class _NoStream:
    """Stands in for CUDA streams and events: work on the CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *exc: object) -> None: ...


def _returning(value: Any) -> Any:
    return lambda *args, **kwargs: value


def _patch_cuda_module() -> None:
    cuda: Any = torch.cuda
    # Each name gets a function of its own: torch's dynamo refuses one object under two names.
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed"):
        setattr(cuda, name, _returning(None))
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        setattr(cuda, name, _returning(0))
    # A device, not its number: inside a nested backward pass the function mode is off, and numbers mean CUDA.
    cuda.current_device = _returning(torch.device("cpu"))
    cuda.is_initialized = _returning(False)
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = _returning(_NoStream())
    cuda.default_stream = _returning(_NoStream())
    cuda.stream = _returning(contextlib.nullcontext())
    cuda.nvtx.range_push = _returning(None)
    cuda.nvtx.range_pop = _returning(None)
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _import_quietly() -> None:
    """Import NeMo; it, Lightning and Megatron log hundreds of lines per run. Errors and our own lines stay."""
    import logging
    import warnings

    quiet = os.environ.get("NEMO_TVKD_DEBUG") != "1"
    if quiet:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
    try:
        import transformers
        from nemo.collections import llm  # noqa: F401
        from nemo.utils import logging as nemo_logging
    finally:
        logging.disable(logging.NOTSET)
    if not quiet:
        return
    noisy = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for name in (*noisy, "megatron", "nv_one_logger", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    nemo_logging.setLevel(logging.ERROR)
