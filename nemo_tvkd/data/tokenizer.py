"""Tokenizers from what models are published with, as `transformers` tokenizers; a fingerprint tells them apart."""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

LLAMA3_RANKS = 128_000
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2, 246)),
)
"""The 256 tokens after the ranks, in the order and with the names of PyPI's llama-models."""


@dataclass(frozen=True)
class Dialogue:
    """How a run writes conversations where its configuration says so: what its checkpoints must carry."""

    tokenizer: str
    """As student.tokenizer: whose tokens these are; "" the student's own."""
    chat_template: str | None
    """The template's text; None: what the tokenizer has."""
    end_token: str
    """As data.end_token."""
    pad_token: str
    end_id: int
    """The token that responses end with."""


def load_tokenizer(path: str, key: str = "student.tokenizer") -> Any:
    """A `transformers` tokenizer from an HF directory, a sentencepiece `.model` file or Llama 3's `tokenizer.model`.

    Raises:
        UserError: `path` is none of them; names `key`.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{key}: {path} does not exist")
    if place.is_dir():
        present = [name for name in TOKENIZER_FILES if (place / name).exists()]
        if present == ["tokenizer.model"]:  # as Mistral and Meta publish it, with nothing beside it
            return load_tokenizer(str(place / "tokenizer.model"), key)
        if present:
            return _from_directory(place, key)
    else:
        with place.open("rb") as file:
            start = file.read(64)
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", start):
            return _from_ranks(place, key)
        if tokenizer := _from_sentencepiece(place, key):
            return tokenizer
    raise UserError(
        f"{key}: {path} is not a tokenizer: give a Hugging Face tokenizer's directory, a sentencepiece .model file "
        "or Llama 3's tokenizer.model"
    )


def _from_directory(path: Path, key: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # damaged files surface as whatever the tokenizer's class or its Rust core raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{key}: the tokenizer in {path} cannot be loaded: {reason}") from error


def _from_sentencepiece(path: Path, key: str) -> Any | None:
    """A Llama-style sentencepiece model as a fast tokenizer that gives sentencepiece's own ids; or None."""
    import sentencepiece
    from transformers import LlamaTokenizerFast

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        return None
    if (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) != (0, 1, 2):
        raise UserError(f"{key}: {path} is not a Llama-style sentencepiece model: unk, bos, eos must be ids 0, 1, 2")
    # Without add_prefix_space=True the converted tokenizer drops the space that sentencepiece puts before a text.
    # legacy=True puts it behind <s> and </s> too ("<s> [INST]"), as Mistral's own v1 encoder does; models whose
    # [INST] is a control token of its own (v2 on) have no space there.
    has_controls = any(pieces.is_control(i) for i in range(3, min(pieces.vocab_size(), 1000)))
    return LlamaTokenizerFast(vocab_file=str(path), add_prefix_space=True, legacy=not has_controls)


def _from_ranks(path: Path, key: str) -> Any:
    """Llama 3's tiktoken ranks as a fast tokenizer, special tokens and BOS as in the published one."""
    from tiktoken.load import load_tiktoken_bpe
    from tokenizers import processors  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    try:
        # tiktoken caches a file under its path, whatever becomes of the file; the hash makes it look again, and the
        # converter below, which cannot pass one, finds the right copy
        ranks = load_tiktoken_bpe(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    except ValueError as error:
        raise UserError(f"{key}: {path} is a damaged list of BPE ranks: {error}") from error
    if sorted(ranks.values()) != list(range(LLAMA3_RANKS)):
        raise UserError(f"{key}: {path} has {len(ranks)} BPE ranks; Llama 3's tokenizer.model has {LLAMA3_RANKS}")
    backend = TikTokenConverter(vocab_file=str(path), additional_special_tokens=list(LLAMA3_SPECIAL)).converted()
    bos, eos, pad = LLAMA3_SPECIAL[0], LLAMA3_SPECIAL[1], LLAMA3_SPECIAL[4]
    add_bos = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, LLAMA3_RANKS)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), add_bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )


def set_tokens(tokenizer: Any, end_token: str, pad_token: str) -> None:
    """Make these a tokenizer's end and padding tokens; "" leaves it its own.

    Raises:
        UserError: no token of its vocabulary; names data.end_token or data.pad_token, and what is near.
    """
    vocabulary = tokenizer.get_vocab() if end_token or pad_token else {}
    for name, attribute, token in (("end_token", "eos_token", end_token), ("pad_token", "pad_token", pad_token)):
        if not token:
            continue
        if token not in vocabulary:
            raise UserError(f"data.{name}={token} is not in the tokenizer's vocabulary{_near(tokenizer, token)}")
        if vocabulary[token] in tokenizer.added_tokens_decoder:
            setattr(tokenizer, attribute, token)
        else:  # text that spells a plain word of the vocabulary is only read as that one token once it is special
            tokenizer.add_special_tokens({attribute: token})


def _near(tokenizer: Any, token: str) -> str:
    special = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
    near = difflib.get_close_matches(token, dict.fromkeys(special), 3)
    tokens = near or list(dict.fromkeys(special))[:8]
    return f": {'near it' if near else 'its special tokens'} {'is' if len(tokens) == 1 else 'are'} {', '.join(tokens)}"


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether token ids mean the same to two tokenizers; which of them ends a text may differ.

    A base model and the chat model made of it differ in that alone.
    """
    special = [(tokenizer.bos_token_id, tokenizer.unk_token_id) for tokenizer in (one, other)]
    return special[0] == special[1] and one.get_vocab() == other.get_vocab()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the vocabulary and the ids of bos, eos and unk: the same wherever the tokenizer was loaded from.

    The padding token is left out: it never reaches a model here, and many copies of a tokenizer differ in it alone.
    """
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    text = json.dumps([sorted(tokenizer.get_vocab().items()), special])
    return hashlib.sha256(text.encode()).hexdigest()
