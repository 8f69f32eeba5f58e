"""`nemo-tvkd import-hf` and `nemo-tvkd export-hf`."""

import os
import sys
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import check_architecture, find_checkpoint
from nemo_tvkd.checkpoints.hf_weights import head_beside
from nemo_tvkd.checkpoints.reward_models import export_kind, pad_token_warning
from nemo_tvkd.config.paths import check_writable
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError


def import_main(config: Any) -> int:
    """Hugging Face to NeMo; mistakes are found before NeMo is imported."""
    _hide_gpus()
    source = find_checkpoint(config.source, "source")
    if source.kind != "hf":
        raise UserError(f"source: {config.source} is a NeMo checkpoint already")
    check_architecture(source.config, "source")
    head_beside(source)
    output = _new(config.output)
    if config.tokenizer:
        load_tokenizer(config.tokenizer, "tokenizer")
    _join_alone()
    from nemo_tvkd.models.conversion import import_hf

    import_hf(source, output, config.tokenizer)
    _warn(pad_token_warning(source))
    print(f"{output}: NeMo checkpoint of {config.source}")
    return 0


def export_main(config: Any) -> int:
    """NeMo to Hugging Face."""
    _hide_gpus()
    check_values(config)
    checkpoint = find_checkpoint(config.checkpoint, "checkpoint")
    if checkpoint.kind != "nemo":
        raise UserError(f"checkpoint: {config.checkpoint} is a Hugging Face directory already")
    kind = export_kind(checkpoint, config.kind)
    output = _new(config.output)
    _join_alone()
    from nemo_tvkd.models.conversion import export_hf

    _warn(export_hf(checkpoint, output, kind))
    made = "reward model" if kind == "reward_model" else "checkpoint"
    print(f"{output}: Hugging Face {made} of {checkpoint.path}")
    return 0


def _warn(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)


def _hide_gpus() -> None:
    """A conversion moves tensors and computes nothing: on the CPU it is the same on every machine."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _new(output: str) -> Path:
    if not output:
        raise UserError("output is not set: give the directory to make")
    if Path(output).exists():
        raise UserError(f"output: {output} exists; remove it or choose another name")
    check_writable(output, "output")
    return Path(output)


def _join_alone() -> None:
    """A conversion is a world of one rank."""
    from nemo_tvkd.config.commands import ParallelConfig
    from nemo_tvkd.runtime import launch

    if launch.under_launcher():
        raise UserError("conversions run as one process: start them without srun or torchrun")
    launch.join(ParallelConfig())
