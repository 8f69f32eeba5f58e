"""What a Hugging Face directory holds beside its weights, and what a NeMo checkpoint tells about its origin.

NeMo's exporters lose parts of it, so config, tokenizer, chat template and generation config are kept verbatim in
`context/hf`, but for what a run is told about conversations. Nothing here imports NeMo.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import PROVENANCE
from nemo_tvkd.data.tokenizer import Dialogue, load_tokenizer, set_tokens
from nemo_tvkd.errors import UserError

WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.msgpack",
    "*.h5",
    "*.onnx",
)
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)


def copy_side_files(source: Path, target: Path) -> None:
    """The files of a Hugging Face directory that are no weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _side_files(source):
        shutil.copy2(file, target / file.name)


def replace_tokenizer(tokenizer: str, folder: Path) -> None:
    """Another tokenizer instead of the source's, of which no file may stay: a template left over would be applied."""
    _put_tokenizer(load_tokenizer(tokenizer, "student.tokenizer"), folder)


def _put_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saved elsewhere first: it may have been loaded from the files that it replaces, and copies some of them."""
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        for pattern in TOKENIZER_FILES:
            for file in folder.glob(pattern):
                file.unlink()
        copy_side_files(Path(made), folder)


def write_dialogue(dialogue: Dialogue, folder: Path) -> None:
    """Let side files say how a run wrote conversations; those that say it already stay as they are.

    The tokenizer gets the template and the tokens, config.json the tokens, generation_config.json every token that
    ends a response: the run's and the model's own.
    """
    tokenizer = load_tokenizer(dialogue.tokenizer or str(folder), "student.path")
    set_tokens(tokenizer, dialogue.end_token, dialogue.pad_token)
    if dialogue.chat_template is not None:
        tokenizer.chat_template = dialogue.chat_template
    if not _is_tokenizer_of(folder, tokenizer):
        _name_tokens(dialogue, folder)
    if not _is_tokenizer_of(folder, tokenizer):  # no file to name them in, or one that says too little
        _put_tokenizer(tokenizer, folder)
    tokens: dict[str, Any] = {}
    if dialogue.end_token:
        tokens["eos_token_id"] = tokenizer.eos_token_id
    if dialogue.pad_token:
        tokens["pad_token_id"] = tokenizer.pad_token_id
    config, generation = _entries(folder / "config.json"), _entries(folder / "generation_config.json")
    own = [*_as_ids(generation.get("eos_token_id")), *_as_ids(config.get("eos_token_id"))]
    ends = list(dict.fromkeys([*_as_ids(tokens.get("eos_token_id")), dialogue.end_id, *own]))
    if not generation and config.get("bos_token_id") is not None:
        generation["bos_token_id"] = config["bos_token_id"]
    if set(ends) != set(_as_ids(generation.get("eos_token_id"))):
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if dialogue.pad_token:
        generation["pad_token_id"] = tokenizer.pad_token_id
    _write_entries(folder / "generation_config.json", generation)
    _write_entries(folder / "config.json", config | tokens)


def _is_tokenizer_of(folder: Path, tokenizer: Any) -> bool:
    """Whether a folder's tokenizer reads, ends, pads and writes conversations as this one."""
    try:
        there = load_tokenizer(str(folder), "student.path")
    except UserError:
        return False
    return _sayings(there) == _sayings(tokenizer)


def _sayings(tokenizer: Any) -> tuple[Any, ...]:
    added = {i: (str(token), token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    named = [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")]
    return tokenizer.get_vocab(), added, named, tokenizer.chat_template


def _name_tokens(dialogue: Dialogue, folder: Path) -> None:
    """By single entries in the tokenizer's files, which stay as they are otherwise."""
    tokens = {"eos_token": dialogue.end_token, "pad_token": dialogue.pad_token}
    named: dict[str, Any] = {name: token for name, token in tokens.items() if token}
    if (folder / "special_tokens_map.json").exists():
        _write_entries(folder / "special_tokens_map.json", _entries(folder / "special_tokens_map.json") | named)
    if not (folder / "tokenizer_config.json").exists():
        return
    if dialogue.chat_template is not None:  # the one place that every reader of tokenizers looks at
        named["chat_template"] = dialogue.chat_template
        for file in folder.glob("chat_template*"):
            file.unlink()
    _write_entries(folder / "tokenizer_config.json", _entries(folder / "tokenizer_config.json") | named)


def _entries(file: Path) -> dict[str, Any]:
    """Of a JSON file; none where it is not there, or none that transformers would read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_entries(file: Path, entries: dict[str, Any]) -> None:
    if entries != _entries(file):
        file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_ids(eos: Any) -> list[int]:
    return [int(i) for i in (eos if isinstance(eos, list) else [eos]) if i is not None]


def side_fingerprint(place: Path) -> str:
    """sha256 over what an import keeps beside the weights: config, tokenizer, templates."""
    digest = hashlib.sha256()
    for file in [place] if place.is_file() else _side_files(place):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def write_provenance(checkpoint: Path, facts: dict[str, str | bool]) -> None:
    """Add to a NeMo checkpoint's record of where it comes from and which heads it has (see `models.hf.Checkpoint`)."""
    file = checkpoint / "context" / PROVENANCE
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | facts, indent=1))


def _side_files(place: Path) -> list[Path]:
    files = sorted(f for f in place.iterdir() if f.is_file() and not f.name.startswith("."))
    return [f for f in files if not any(f.match(pattern) for pattern in WEIGHT_FILES)]
