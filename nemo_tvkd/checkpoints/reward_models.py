"""Reward models as Hugging Face has them: sequence-classification models with one label, and their padding token.

transformers reads a sequence's reward at its last token that is not the padding token, whatever the attention mask
says. So that token must end no text, or the reward would be read before the end token. Nothing here imports NeMo.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import Checkpoint, check_heads, classifies_sequences
from nemo_tvkd.config.commands import CHECKPOINT_KINDS
from nemo_tvkd.data.records import row_from_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from nemo_tvkd.errors import UserError

ARCHITECTURES = {"llama": "LlamaForSequenceClassification", "mistral": "MistralForSequenceClassification"}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
UNUSED = ("pad", "reserved_special_token", "unk")
"""What tokens that end no text are called, the best first."""

NAMING = ("tokenizer_config.json", "special_tokens_map.json")
"""A tokenizer's files that name its padding token."""


def export_kind(checkpoint: Checkpoint, kind: str) -> str:
    """What a NeMo checkpoint is exported as: "causal_lm" or "reward_model", also where `kind` is "auto".

    Raises:
        UserError: the checkpoint lacks the head.
    """
    assert kind in CHECKPOINT_KINDS, kind
    if kind == "auto":
        kind = "reward_model" if checkpoint.is_reward_model else "causal_lm"
    lm = kind == "causal_lm"
    check_heads(checkpoint, f"kind={kind}", lm=lm, reward=not lm)
    if lm and classifies_sequences(checkpoint.config):
        raise UserError(f"kind={kind}: {checkpoint.hf_dir / 'config.json'} is a sequence-classification model's")
    return kind


def make_reward_model(folder: Path, name: str) -> str:
    """Change a Hugging Face directory's config and tokenizer into a reward model's; files that are so already stay.

    Args:
        name: of the directory, for people.

    Returns:
        a warning, or "".
    """
    from transformers import AutoConfig

    config, tokenizer = AutoConfig.from_pretrained(folder), _tokenizer(folder)
    pad = choose_pad_token(tokenizer, config, end_ids(folder, config, tokenizer))
    changed: dict[str, Any] = {}
    if not classifies_sequences(config):
        changed["architectures"] = [ARCHITECTURES[config.model_type]]
    if config.num_labels != 1:
        changed |= ONE_LABEL
    if config.pad_token_id != pad:
        changed["pad_token_id"] = pad
    if changed:
        without = ("num_labels",) if "id2label" in changed else ()
        _change(folder / "config.json", changed, without)
    if pad is None:
        return (
            f"warning: {name} has no token to pad with, so its config.json sets no pad_token_id: the rewards "
            "that transformers gives are right for batches of one only"
        )
    if tokenizer is not None and not (tokenizer.pad_token_id == pad and _names_tokens(folder)):
        _set_pad_token(folder, tokenizer, pad)
    return ""


def pad_token_warning(source: Checkpoint) -> str:
    """A warning where transformers reads a reward model's rewards before the end token, or ""."""
    config = source.config
    if not classifies_sequences(config):
        return ""
    try:
        tokenizer = _tokenizer(source.hf_dir)
    except UserError:  # the weights can be used with another one
        tokenizer = None
    ends = end_ids(source.hf_dir, config, tokenizer)
    if config.pad_token_id not in ends:
        return ""
    return (
        f"warning: {source.path}: its padding token {config.pad_token_id} also ends texts, so transformers reads "
        "rewards at the token before the end token; here they are read at the end token"
    )


def end_ids(folder: Path, config: Any, tokenizer: Any | None) -> set[int]:
    """Tokens that end texts: those of the config, the generation config, the tokenizer and its chat template."""
    named = [config.eos_token_id, _generation_end(folder / "generation_config.json")]
    ends = {int(i) for ids in named for i in (ids if isinstance(ids, list) else [ids]) if i is not None}
    if tokenizer is None or tokenizer.eos_token_id is None:
        return ends
    ends.add(tokenizer.eos_token_id)
    record = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b"}
    try:
        tokenized = Template(tokenizer).encode(row_from_record(record, "", False), 1 << 20, None)
    except UserError:  # a template that wants other turns
        return ends
    return ends | {int(tokenized.chosen_ids[-1])}


def _generation_end(file: Path) -> Any:
    try:
        return json.loads(file.read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError):  # none, or none that transformers would read
        return None


def choose_pad_token(tokenizer: Any | None, config: Any, ends: Collection[int]) -> int | None:
    """The token to pad with: the tokenizer's own or the config's if it ends no text, else an unused special token.

    Args:
        tokenizer: None where there is none; then all there is to choose from is the config's token.
        ends: tokens that end texts.

    Returns:
        a token of the model's vocabulary, or None.
    """
    configured = config.pad_token_id
    if tokenizer is None:
        return None if configured in ends else configured
    own = tokenizer.pad_token_id
    if own is not None and own not in ends and own < config.vocab_size:
        return own
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    never = {*ends, tokenizer.bos_token_id, config.bos_token_id}
    usable = {i: special[i] for i in sorted(special) if i not in never and i < config.vocab_size}
    if configured in usable:
        return configured
    for name in UNUSED:
        if candidates := [i for i, text in usable.items() if name in text.lower()]:
            return candidates[0]
    return tokenizer.unk_token_id if tokenizer.unk_token_id in usable else None


def _tokenizer(folder: Path) -> Any | None:
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    return load_tokenizer(str(folder), "checkpoint")


def _names_tokens(folder: Path) -> bool:
    """Whether a tokenizer's files say what its tokens are for; a bare tokenizer.model does not."""
    return any((folder / name).exists() for name in NAMING)


def _set_pad_token(folder: Path, tokenizer: Any, pad: int) -> None:
    """By one entry in the tokenizer's files, which stay as they are otherwise."""
    text = tokenizer.convert_ids_to_tokens(pad)
    if not _names_tokens(folder):
        tokenizer.pad_token = text
        tokenizer.save_pretrained(folder)
        return
    for name in NAMING:
        if (folder / name).exists():
            _change(folder / name, {"pad_token": text})


def _change(file: Path, entries: dict[str, Any], without: Collection[str] = ()) -> None:
    """Other entries in a JSON file, the rest and their order as they are."""
    content = {k: v for k, v in json.loads(file.read_text(encoding="utf-8")).items() if k not in without}
    file.write_text(json.dumps(content | entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
