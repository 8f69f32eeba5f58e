"""What a Hugging Face directory holds beside its weights, and what a NeMo checkpoint tells about its origin.

NeMo's exporters lose parts of it, so config, tokenizer, chat template and generation config are kept verbatim in
`context/hf`. Nothing here imports NeMo.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.models.hf import PROVENANCE

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
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            file.unlink()
    load_tokenizer(tokenizer, "student.tokenizer").save_pretrained(folder)


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
