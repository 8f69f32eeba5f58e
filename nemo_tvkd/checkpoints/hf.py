"""Checkpoints seen from outside, without importing NeMo: what a path holds, and what its HF config demands.

A checkpoint is a Hugging Face directory, a hub id, a NeMo checkpoint (weights/, context/) or a training run's
output directory (its newest complete checkpoint). NeMo checkpoints made here keep the source's config, tokenizer,
chat template and generation config verbatim in `context/hf`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError, one_line

HF_SIDE_DIR = "context/hf"
REWARD_HEAD_FILE = "reward_head.safetensors"
"""Beside a Hugging Face causal LM: its reward head, one tensor `weight` [1, H]."""
PROVENANCE = "nemo_tvkd.json"
SUPPORTED_TYPES = ("llama", "mistral")
VOCAB_PADDING = 128
"""Vocabularies are padded to a multiple of this, whatever TP is, so checkpoints move freely between layouts."""


@dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint: `kind` is "hf" or "nemo"; `hf_dir` holds config.json and the tokenizer."""

    kind: str
    path: Path
    hf_dir: Path

    @property
    def config(self) -> Any:
        """The Hugging Face config (transformers' PretrainedConfig).

        Raises:
            UserError: it cannot be read, or is of a model family that transformers does not know; names the file.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.hf_dir)
        except (OSError, ValueError, TypeError, LookupError) as error:
            reason = one_line(error).partition(". ")[0]
            raise UserError(f"{self.hf_dir / 'config.json'} is not a model's config: {reason}") from error

    @property
    def has_lm_head(self) -> bool:
        """Whether it says anything about tokens; a reward model need not."""
        if self.kind == "nemo":
            return _provenance(self).get("lm_head", True)
        return not classifies_sequences(self.config)

    @property
    def has_reward_head(self) -> bool:
        if self.kind == "nemo":
            return _provenance(self).get("reward_head", False)
        return classifies_sequences(self.config) or (self.path / REWARD_HEAD_FILE).is_file()

    @property
    def is_reward_model(self) -> bool:
        """Whether it was made to be one, rather than a policy with a reward head."""
        if self.kind == "nemo":
            return _provenance(self).get("reward_model", False)
        return classifies_sequences(self.config)


def find_checkpoint(path: str, key: str) -> Checkpoint:
    """Recognise what `path` is.

    Raises:
        UserError: nothing is there, or it is no checkpoint; names `key`.
    """
    if not path:
        raise UserError(f"{key} is not set: give a Hugging Face directory, a hub id or a NeMo checkpoint")
    place = Path(path).expanduser()
    if not place.exists():
        place = _from_hub(path, key)
    if (place / "checkpoints").is_dir():
        newest = newest_complete(place / "checkpoints")
        if newest is None:
            raise UserError(f"{key}: {path} is a run without a complete checkpoint")
        place = newest
    if (place / "weights").is_dir() and (place / "context").is_dir():
        side = place / HF_SIDE_DIR
        if not (side / "config.json").is_file():
            raise UserError(
                f"{key}: NeMo checkpoint {place} has no {HF_SIDE_DIR}/config.json: it was not made by "
                "`nemo-tvkd import-hf` or `train`; export it to Hugging Face with NeMo and give that directory"
            )
        return Checkpoint("nemo", place, side)
    if (place / "config.json").is_file():
        _check_weights(place, key)
        return Checkpoint("hf", place, place)
    raise UserError(
        f"{key}: {place} is no checkpoint: expected a Hugging Face directory (config.json and *.safetensors) "
        "or a NeMo checkpoint (weights/ and context/)"
    )


def _check_weights(place: Path, key: str) -> None:
    """Whether weight files are there, all of them where an index lists them."""
    if not [*place.glob("*.safetensors"), *place.glob("pytorch_model*.bin")]:
        raise UserError(f"{key}: {place} has a config.json but no *.safetensors weights")
    safe = any(place.glob("*.safetensors"))  # then other formats, of which an index may be left over, are not read
    for index in place.glob("*.safetensors.index.json" if safe else "*.index.json"):
        try:
            listed = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{key}: {index} is not a readable index of weight files") from error
        if missing := [name for name in listed if not (place / name).is_file()]:
            raise UserError(f"{key}: {place} lacks {missing[0]}, one of the {len(listed)} files in {index.name}")


def _from_hub(path: str, key: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise UserError(f"{key}: {path} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{key}: {path} is neither a local path nor a hub id that can be reached or is cached ({reason})"
        ) from error


def complete_checkpoints(directory: Path) -> list[Path]:
    """The complete NeMo checkpoints in a run's checkpoints/ folder, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(
        folder
        for folder in directory.iterdir()
        if re.fullmatch(r"step-\d{8}", folder.name) and (folder / "weights/metadata.json").is_file()
    )


def newest_complete(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None. Unfinished ones carry another name until they are whole."""
    checkpoints = complete_checkpoints(directory)
    return checkpoints[-1] if checkpoints else None


def classifies_sequences(config: Any) -> bool:
    """Whether a Hugging Face config is of a sequence-classification model, whose `score` is a reward head."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def check_heads(checkpoint: Checkpoint, key: str, *, lm: bool = False, reward: bool = False) -> None:
    """Whether a checkpoint has the heads that are asked of it.

    Raises:
        UserError: names `key` and what would have one.
    """
    if lm and not checkpoint.has_lm_head:
        raise UserError(f"{key}: {checkpoint.path} is a reward model without an output layer: give a language model")
    if reward and not checkpoint.has_reward_head:
        raise UserError(
            f"{key}: {checkpoint.path} has no reward head: give a checkpoint that algorithm=reward or algorithm=drdo "
            "trained, or a Hugging Face sequence-classification model with one label"
        )


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.path / "context" / PROVENANCE
    return json.loads(file.read_text()) if file.is_file() else {}


def weights_dtype(checkpoint: Checkpoint) -> str:
    """Name of the dtype that a checkpoint's weights had as a Hugging Face checkpoint, and are exported in."""
    dtype = getattr(checkpoint.config, "torch_dtype", None)
    return _provenance(checkpoint).get("dtype") or str(dtype or "float32").removeprefix("torch.")


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over a checkpoint's weight files (hex). An import carries its source's, as the weights are the same."""
    if source := _provenance(checkpoint).get("source_weights"):
        return source
    folder, patterns = (
        (checkpoint.path, ("*.safetensors", "pytorch_model*.bin"))
        if checkpoint.kind == "hf"
        else (checkpoint.path / "weights", ("*.distcp", ".metadata"))
    )
    digest = hashlib.sha256()
    for file in sorted({f for pattern in patterns for f in folder.glob(pattern)}):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def head_dim(config: Any) -> int:
    """Size of one attention head; explicit in the config or hidden size / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def padded_vocab_size(config: Any) -> int:
    """The vocabulary as stored in NeMo checkpoints: the next multiple of :data:`VOCAB_PADDING`."""
    return -(-int(config.vocab_size) // VOCAB_PADDING) * VOCAB_PADDING


def check_architecture(config: Any, key: str) -> None:
    """Refuse what the layers here do not compute exactly.

    Raises:
        UserError: another model family, a bias, an activation or a rope type that is not supported.
    """
    if config.model_type not in SUPPORTED_TYPES:
        raise UserError(f"{key}: model type {config.model_type!r} is not supported: llama and mistral are")
    if classifies_sequences(config) and config.num_labels != 1:
        raise UserError(f"{key}: a classifier with {config.num_labels} labels: a reward model has num_labels=1")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise UserError(f"{key}: attention_bias and mlp_bias are not supported")
    if config.hidden_act != "silu":
        raise UserError(f"{key}: hidden_act {config.hidden_act!r} is not supported: silu is")
    rope = getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{key}: rope type {kind!r} is not supported: default, linear and llama3 are")


def check_layout(config: Any, key: str, tensor: int, pipeline: int) -> None:
    """Whether a model can be split `tensor` ways inside layers and `pipeline` ways between them.

    Raises:
        UserError: names the parallel key and the number that it does not divide.
    """
    tp, pp = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for what, number in (
        ("attention heads", config.num_attention_heads),
        ("key/value heads", kv_heads),
        ("padded vocabulary entries", padded_vocab_size(config)),
        ("feed-forward columns", config.intermediate_size),
    ):
        if number % tensor:
            raise UserError(f"{tp}={tensor} does not divide the {number} {what} of {key}")
    if config.num_hidden_layers % pipeline:
        raise UserError(f"{pp}={pipeline} does not divide the {config.num_hidden_layers} layers of {key}")
