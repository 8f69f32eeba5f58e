"""Hugging Face models on this machine: one GPU, several of them, or the CPU."""

import logging
import os
import sys
from typing import Any

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.errors import UserError, one_line


def quiet() -> None:
    """Keep the libraries' own logs and, in a log, their progress bars out of the output.

    Called before they are imported: tqdm reads its variables then. Bars that cannot be switched off move rarely.
    """
    if os.environ.get("NEMO_TVKD_DEBUG") == "1":
        return
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning from a tokenizer in a forked process
    for name in ("lm_eval", "datasets", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_model(kind: str, checkpoint: Checkpoint, key: str, precision: str) -> Any:
    """A model for inference, its layers spread over the visible GPUs where there are several.

    Args:
        kind: transformers' class, AutoModelForCausalLM say.
        precision: bf16 | fp32.

    Raises:
        UserError: weights that cannot be loaded; names `key`.
    """
    import torch
    import transformers

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    place = "auto" if gpus > 1 else {"": 0} if gpus else None
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    try:
        model, report = getattr(transformers, kind).from_pretrained(
            checkpoint.path, torch_dtype=dtype, device_map=place, output_loading_info=True
        )
    except Exception as error:  # damaged files surface as whatever safetensors or a model's class raises
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{key}: {checkpoint.path} cannot be loaded: {one_line(error)}") from error
    if report["missing_keys"]:  # transformers draws them at random
        raise UserError(f"{key}: {checkpoint.path} has no weights for {sorted(report['missing_keys'])[0]}")
    return model.eval()


def free_memory() -> None:
    """Give back the GPU memory of a model that nobody refers to any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def positions(config: Any) -> int:
    """Longest sequence of a model, in tokens."""
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)
