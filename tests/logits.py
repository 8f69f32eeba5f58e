"""A checkpoint's logits from the ranks of a layout and from transformers, and how close they must be."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from transformers import PreTrainedModel

TOLERANCE = 1e-5
LENGTHS = [5, 150, 1, 33, 70, 12]


def make_sequences(vocab: int) -> list[list[int]]:
    """Token ids of LENGTHS; the last token of the vocabulary among them."""
    rng = np.random.default_rng(11)
    sequences = [rng.integers(3, vocab, n).tolist() for n in LENGTHS]
    sequences[1][3] = vocab - 1
    return sequences


@torch.no_grad()
def hf_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """transformers' own float32 logits [sum of lengths, V], one sequence at a time."""
    return torch.cat([model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0] for ids in sequences])


def logits_task(path: str, rows: list[list[list[int]]]) -> tuple[int, list[np.ndarray]] | None:
    """Task: this rank's columns of the logits of packed rows (last stage), with its tensor-parallel rank."""
    from megatron.core import parallel_state

    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.data.batch import Item, collate
    from nemo_tvkd.models.frozen import load_frozen, pipeline_forward

    def item(ids: list[int]) -> Item:
        whole = {"prompt_ids": np.asarray(ids), "chosen_ids": np.asarray([], dtype=np.int64), "rejected_ids": None}
        return Item(SimpleNamespace(**whole))

    module = load_frozen(find_checkpoint(path, "model"), "model", "fp32")
    batches = [collate([item(ids) for ids in row]) for row in rows]
    shards = pipeline_forward(module, batches, lambda batch, readout: (readout.hidden @ readout.weight.t()).numpy())
    if not parallel_state.is_pipeline_last_stage():
        return None
    return parallel_state.get_tensor_model_parallel_rank(), shards


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The largest difference within TOLERANCE of the logits' spread (a float32 ulp of the largest is 1e-6)."""
    spread = expected.std().item()
    assert 1.5 < spread < 5
    assert (got - expected).abs().max().item() <= TOLERANCE * spread
