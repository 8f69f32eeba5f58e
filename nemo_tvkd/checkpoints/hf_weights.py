"""Weights of Hugging Face models as transformers reads them, with a reward head where there is one.

A sequence-classification model's reward head is its `score`; a causal LM's lies beside it in a file of its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tvkd.checkpoints.hf import REWARD_HEAD_FILE, Checkpoint, classifies_sequences
from nemo_tvkd.errors import UserError, one_line


def read_model(source: Checkpoint) -> tuple[Any, Tensor | None]:
    """The transformers model of a Hugging Face checkpoint, and its reward head [1, H] fp32 if it has one.

    Raises:
        UserError: the weights cannot be read, or the model needs some that are not there, which transformers would
            draw at random; names the first.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    head = head_beside(source)
    if not classifies_sequences(source.config):
        return _complete(AutoModelForCausalLM, source.path), head
    model = _complete(AutoModelForSequenceClassification, source.path)
    return model, model.score.weight.detach().float()


def head_beside(source: Checkpoint) -> Tensor | None:
    """The reward head [1, H] fp32 in a file of its own, if there is one.

    Raises:
        UserError: the file is not one, or the model has a reward head already.
    """
    file = source.path / REWARD_HEAD_FILE
    if not file.exists():
        return None
    if classifies_sequences(source.config):
        raise UserError(f"source: {source.path} has two reward heads: its score.weight and {file.name}; remove one")
    return _read_reward_head(file, source.config.hidden_size)


def _complete(kind: Any, place: Path) -> Any:
    """The model in `place`, all of whose weights are there in their sizes; weights without a use are told."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells at length what is told below in a line
    options = {"torch_dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = kind.from_pretrained(str(place), **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"source: the weights in {place} cannot be read: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    name = type(model).__name__
    missing, unlike, unused = (sorted(found[f"{which}_keys"]) for which in ("missing", "mismatched", "unexpected"))
    if missing:
        raise UserError(f"source: {place} lacks {missing[0]}, a weight of {name} (missing: {len(missing)})")
    if unlike:  # names; some versions of transformers add sizes
        weight = unlike[0] if isinstance(unlike[0], str) else unlike[0][0]
        raise UserError(f"source: {place}: {weight} has not the size of {name}'s with its config.json")
    if unused:
        print(f"warning: {place}: {name} has no {unused[0]} (unused weights: {len(unused)})", file=sys.stderr)
    return model


def _read_reward_head(file: Path, hidden_size: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"source: {file} cannot be read as safetensors: {one_line(error)}") from error
    wanted = f"one tensor `weight` [1, {hidden_size}] of floats"
    if sorted(tensors) != ["weight"]:
        raise UserError(f"source: {file} holds {', '.join(sorted(tensors)) or 'nothing'}: a reward head is {wanted}")
    weight = tensors["weight"]
    if tuple(weight.shape) != (1, hidden_size) or not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise UserError(f"source: {file} holds `weight` {list(weight.shape)} of {kind}: a reward head is {wanted}")
    if not weight.isfinite().all():
        raise UserError(f"source: {file} holds `weight` with a value that is not finite")
    return weight.float()


def write_reward_head(folder: Path, weight: Tensor) -> None:
    """Write a reward head [1, H] beside a causal LM, in fp32.

    Loaders that would take every *.safetensors for the model's get an index, which does not list it.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        with safe_open(single, framework="pt") as tensors:
            names = sorted(tensors.keys())
        content = {"metadata": {"total_size": single.stat().st_size}, "weight_map": dict.fromkeys(names, single.name)}
        index.write_text(json.dumps(content, indent=2) + "\n")
    save_file({"weight": weight.detach().float().contiguous()}, folder / REWARD_HEAD_FILE, metadata={"format": "pt"})


def own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The state dict without the output layer where it is the embedding."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def pad_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """[rows, H]: the weight with zeros below."""
    padding = weight.new_zeros(rows - weight.size(0), *weight.shape[1:])
    return torch.cat([weight, padding]) if padding.numel() else weight
