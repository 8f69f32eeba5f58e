"""Models as `doctor` finds them: on this machine, or their published sizes alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tvkd.checkpoints.hf import Checkpoint, find_checkpoint
from nemo_tvkd.cluster.tiny import architecture
from nemo_tvkd.config.cluster import ModelConfig
from nemo_tvkd.data.hub import HUB_ID
from nemo_tvkd.errors import UserError


@dataclass(frozen=True)
class Found:
    """A model of a stage."""

    config: Any
    """transformers' config."""
    checkpoint: Checkpoint | None
    """What the stage reads, or None while an earlier stage has yet to write it."""
    start: Checkpoint | None
    """What it is or descends from; None where that is not on this machine."""


def how_to_fetch(path: str) -> str:
    """How a model comes to this machine."""
    if HUB_ID.fullmatch(path):
        return f"`hf download {path}` with a network and the same HF_HOME, or recipe.models.*.path=DIRECTORY"
    return "give a directory that exists, or a hub id ORG/NAME"


def there(path: str, key: str) -> Checkpoint | None:
    """The checkpoint, or None where nothing is; a UserError where it is none."""
    if HUB_ID.fullmatch(path) and not Path(path).exists():
        if (cached := _cached(path)) is None:
            return None
        path = cached
    try:
        return find_checkpoint(path, key)
    except UserError:
        if Path(path).expanduser().exists():
            raise
        return None


def published(model: ModelConfig) -> Any:
    """transformers' config of a recipe's model as it was published (conf/model)."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**architecture(model.architecture, "recipe.models.*.architecture"))


def _cached(hub_id: str) -> str | None:
    """Where a model of the hub lies on this machine; nothing is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(hub_id, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
