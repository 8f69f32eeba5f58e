"""Hugging Face directories as users have them, their NeMo checkpoints, and what must be the same in an export."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference as ref
import torch
from rank_pool import Layout, RankPool
from training import VOCAB, export_checkpoint, import_checkpoint, make_items, run_training
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

ONE = Layout()
TP2PP2 = Layout(tp=2, pp=2)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Who owns the lamp?"}]
UNTOUCHING = ["optim.lr=1e-30", "optim.weight_decay=0"]
"""Adam's update is at most the rate: half a unit in the last place of any weight above 1e-22 is larger."""


def llama3(seed: int, scaled: bool = True, vocab: int = VOCAB) -> PreTrainedModel:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return ref.tiny_llama(seed, vocab=vocab, hidden=64, tie=True, rope_scaling=scaling if scaled else None)


def add_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> int:
    """A byte-level tokenizer as real ones come; returns its size, no multiple of 128."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(words)


def make_source(folder: Path, model: PreTrainedModel, *, shards: bool = False) -> Path:
    """A source directory whose files look like nothing that a library would write again by itself."""
    add_tokenizer(folder)
    model = copy.deepcopy(model)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 4], pad_token_id=0, do_sample=False, max_new_tokens=9, repetition_penalty=1.1
    )
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"transformers_version": "4.0.0", "a_field_of_their_own": [1, 2]}
        (folder / name).write_text(json.dumps(content, indent=5, sort_keys=name == "config.json") + "\n\n")
    (folder / "README.md").write_text("# a model card\n")
    assert (folder / "model.safetensors.index.json").exists() == shards
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "llama fp32 tied": lambda folder: make_source(folder, ref.tiny_llama(21, vocab=261, tie=True)),
    "llama fp32 sharded": lambda folder: make_source(folder, ref.tiny_llama(22, vocab=261, head_dim=12), shards=True),
    "mistral bf16": lambda folder: make_source(folder, ref.tiny_mistral(23, vocab=261).bfloat16()),
    "llama bf16 tied rope": lambda folder: make_source(folder, llama3(24, vocab=261).bfloat16(), shards=True),
    "mistral fp16": lambda folder: make_source(folder, ref.tiny_mistral(25, vocab=261, tie=True).half()),
}


class Sources:
    """Each source directory and its NeMo checkpoint, made when first asked for."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.made: dict[str, tuple[Path, Path]] = {}

    def __call__(self, name: str) -> tuple[Path, Path]:
        if name not in self.made:
            place = self.folder / name.replace(" ", "_")
            source = SOURCES[name](place / "hf")
            self.pool.run(ONE, import_checkpoint, str(source), str(place / "nemo"))
            self.made[name] = source, place / "nemo"
        return self.made[name]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def other_files(folder: Path) -> dict[str, bytes]:
    """Everything but weights."""
    files = [f for f in folder.rglob("*") if f.is_file() and ".safetensors" not in f.name]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def assert_same_weights(got: Path, expected: Path) -> None:
    ours, theirs = read_weights(got), read_weights(expected)
    assert sorted(ours) == sorted(theirs)
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype, name
        assert ours[name].shape == weight.shape, name
        assert torch.equal(ours[name].contiguous().view(torch.uint8), weight.contiguous().view(torch.uint8)), name


def assert_loads_and_generates(folder: Path) -> list[int]:
    """As a user would; returns the tokens of prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>Who owns the lamp?</s><|assistant|>"
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    generated = model.generate(**prompt)[0].tolist()
    assert len(prompt.input_ids[0]) < len(generated) <= len(prompt.input_ids[0]) + 9
    assert isinstance(tokenizer.decode(generated), str)
    return generated


def export(pool: RankPool, checkpoint: Path, output: Path) -> Path:
    pool.run(ONE, export_checkpoint, str(checkpoint), str(output))
    assert sorted(p.name for p in output.parent.iterdir() if "incomplete" in p.name) == []
    return output


def train(
    pool: RankPool, checkpoint: Path, output: Path, layout: Layout, options: list[str], precision: str = "fp32"
) -> list[dict[str, Any]]:
    return run_training(
        pool,
        layout,
        output,
        algorithm="dpo",
        student=checkpoint,
        items=make_items(ref.random_pairs(31, 4, 261)),
        frozen={"reference": checkpoint},
        steps=2,
        options=[f"trainer.precision={precision}", *options],
    )
