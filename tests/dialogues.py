"""Base models as they are published: a tokenizer with tokens for turns but no chat template, and their files."""

import json
from pathlib import Path
from typing import Any

import reference as ref
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PAD, BOS, EOS, EOT = 0, 1, 2, 5
END = "data.end_token='<|eot_id|>'"
TOLD = ["data.chat_template=llama3", END, "data.pad_token='<pad>'"]
ROWS = [
    {"prompt": f"What colour is the {thing}?", "chosen": f"The {thing} is red.", "rejected": "A dull question, that."}
    for thing in ("lamp", "box", "chair", "table")
]


def base_tokenizer(**named: str) -> Any:
    """Byte-level, with Llama 3's marks; neither chat template nor padding token."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
    names = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS]} | named
    marks = [word for word in SPECIAL if word not in names.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=marks,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def base_model(folder: Path, seed: int, tokenizer: Any = None, **config: Any) -> Path:
    """A base model's folder; its generation config samples, as Llama 3.1's does."""
    tokenizer = tokenizer or base_tokenizer()
    model = ref.tiny_llama(seed, vocab=len(tokenizer), **config)
    model.config.pad_token_id = None
    model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.6, "a_field_of_theirs": [1]}
    (folder / "generation_config.json").write_text(json.dumps(told, indent=5))
    entries = json.loads((folder / "config.json").read_text()) | {"a_field_of_theirs": [1]}
    (folder / "config.json").write_text(json.dumps(entries, indent=5))
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def side_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "safetensors" not in file.name}
