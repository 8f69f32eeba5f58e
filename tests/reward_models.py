"""Reward models as users have them (sequence-classification models, and policies with a head), and their rewards."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import reference as ref
import torch
from conversions import add_tokenizer
from training import make_items
from transformers import AutoModelForSequenceClassification, PreTrainedModel

Ids = tuple[list[int], list[int]]
"""Token ids of a prompt and a response."""
VOCAB = 261  # add_tokenizer's


def classifier(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The sequence-classification model with one label around a tiny causal LM's layers; rewards spread by about 1."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        made = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    made.model.load_state_dict(model.model.state_dict())
    made.score.weight.data = random_head(seed, config.hidden_size)
    return made.to(model.dtype)


def random_head(seed: int, hidden: int) -> torch.Tensor:
    """[1, hidden] float32 of standard deviation 1 / sqrt(hidden)."""
    return torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed)) * hidden**-0.5


def make_reward_model(folder: Path, model: PreTrainedModel, *, shards: bool = False) -> Path:
    """A source directory whose files look like nothing that a library would write again by itself."""
    add_tokenizer(folder)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    content = json.loads((folder / "config.json").read_text())
    content |= {"transformers_version": "4.0.0", "a_field_of_their_own": [1, 2]}
    (folder / "config.json").write_text(json.dumps(content, indent=5, sort_keys=True) + "\n\n")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 4],\n  "bos_token_id": 1}')
    (folder / "README.md").write_text("# a model card\n")
    assert (folder / "model.safetensors.index.json").exists() == shards
    return folder


def add_head(folder: Path, weight: torch.Tensor, name: str = "weight") -> Path:
    """A reward head beside a causal LM."""
    from safetensors.torch import save_file

    save_file({name: weight}, folder / "reward_head.safetensors")
    return folder


def random_texts(seed: int, count: int, vocab: int = VOCAB) -> list[Ids]:
    """Prompts and responses of many lengths; each response ends with the end token 2."""
    pairs = ref.random_pairs(seed, -(-count // 2), vocab, long_prompt=90)
    return [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)][:count]


@torch.no_grad()
def hf_rewards(folder: Path, texts: list[Ids], padded: bool = True) -> np.ndarray:
    """What transformers' forward pass says of a right-padded batch, or of one text after the other."""
    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    if not padded:
        alone = [model(input_ids=torch.tensor([prompt + response]), use_cache=False) for prompt, response in texts]
        return torch.cat([one.logits[:, 0] for one in alone]).numpy()
    width = max(len(prompt) + len(response) for prompt, response in texts)
    tokens = torch.zeros(len(texts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, (prompt, response) in enumerate(texts):
        length = len(prompt) + len(response)
        tokens[row, :length] = torch.tensor([*prompt, *response])
        tokens[row, length:] = model.config.pad_token_id
        mask[row, :length] = 1
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, 0].numpy()


def as_item(text: Ids) -> Any:
    """One text as an example to pack."""
    from nemo_tvkd.data.batch import Item

    prompt, response = (np.asarray(ids, dtype=np.int32) for ids in text)
    return Item(SimpleNamespace(prompt_ids=prompt, chosen_ids=response, rejected_ids=None))  # type: ignore[arg-type]


def as_pairs(texts: list[Ids]) -> list[Any]:
    """Texts two by two as pairs, which have one prompt: that of the first."""
    pairs = [ref.RefPair(texts[at][0], texts[at][1], texts[at + 1][1]) for at in range(0, len(texts), 2)]
    return make_items(pairs)


def rewards_task(path: str, rows: list[list[Any]], multiple: int = 1) -> list[np.ndarray] | None:
    """Task: the rewards of packed rows of items, on the last pipeline stage."""
    from megatron.core import parallel_state

    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.data.batch import collate
    from nemo_tvkd.models.frozen import load_frozen, pipeline_forward

    module = load_frozen(find_checkpoint(path, "model"), "model", "fp32")
    batches = [collate(items, multiple) for items in rows]
    found = pipeline_forward(module, batches, lambda batch, readout: readout.response_rewards(batch).numpy())
    return found if parallel_state.is_pipeline_last_stage() else None


def assert_loads_as_reward_model(folder: Path) -> PreTrainedModel:
    """As a user would, with tokenizer and a padding token that ends nothing."""
    from transformers import AutoTokenizer

    options = {"torch_dtype": "auto", "output_loading_info": True}
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return model
