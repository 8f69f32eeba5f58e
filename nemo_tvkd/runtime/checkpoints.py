"""Hugging Face import and export, and NeMo checkpoints written whole or not at all.

Weights go through NeMo's own converters. Everything else of a Hugging Face directory (config, tokenizer, chat
template, generation config) is kept verbatim beside them, in `context/hf`, because NeMo's exporters lose parts of it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.fabric.plugins.environments import LightningEnvironment
from nemo import lightning as nl
from nemo.collections.llm.gpt.model.llama import HFLlamaExporter, HFLlamaImporter
from nemo.lightning import io
from nemo.lightning.ckpt_utils import ckpt_to_context_subdir
from nemo.lightning.io.state import _ModelState

from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError
from nemo_tvkd.models.architecture import CausalLMConfig, model_config
from nemo_tvkd.models.frozen import load_weights
from nemo_tvkd.models.hf import (
    HF_SIDE_DIR,
    PROVENANCE,
    Checkpoint,
    find_checkpoint,
    padded_vocab_size,
    weights_dtype,
    weights_fingerprint,
)
from nemo_tvkd.models.policy import PolicyModel
from nemo_tvkd.runtime.launch import on_rank_zero

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
FORMAT = 1
"""Of imported checkpoints; raise it when older imports must not be used any more."""
VOCABULARY_KEYS = ("model.embed_tokens.weight", "lm_head.weight")


class SingleProcess(nl.MegatronStrategy):
    """The strategy of conversions: the process group and the model-parallel groups (of one rank) exist already."""

    def setup_distributed(self) -> None:
        self.set_world_ranks()


def _conversion_trainer() -> nl.Trainer:
    strategy = SingleProcess(ckpt_save_optimizer=False, ckpt_async_save=False, setup_optimizers=False)
    # Otherwise Lightning reads Slurm's variables, which are the whole job's. (NeMo stores the strategy's arguments in
    # the checkpoint and cannot write this one, so it is no argument.)
    strategy.cluster_environment = LightningEnvironment()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return nl.Trainer(devices=1, accelerator="cpu", strategy=strategy, **quiet)


@io.model_importer(PolicyModel, "hf")
class PolicyImporter(HFLlamaImporter):
    """Llama and Mistral checkpoints; both families store the same tensors under the same names."""

    def init(self) -> PolicyModel:
        return PolicyModel(self.config, tokenizer=None)

    @property
    def config(self) -> CausalLMConfig:
        from transformers import AutoConfig

        return model_config(AutoConfig.from_pretrained(str(self)), "source")

    def apply(self, output_path: Path) -> Path:
        from transformers import AutoModelForCausalLM

        source = AutoModelForCausalLM.from_pretrained(str(self), torch_dtype="auto")
        target = PolicyModel(model_config(source.config, "source", source.dtype))
        trainer = self.nemo_setup(target, _conversion_trainer())
        state = dict(source.state_dict())
        for name in VOCABULARY_KEYS:
            if name in state:
                state[name] = _pad_rows(state[name], padded_vocab_size(source.config))
        self.convert_state(_ModelState(state, source.config), target)
        self.nemo_save(output_path, trainer)
        _write_provenance(output_path, {"dtype": str(source.dtype).removeprefix("torch.")})
        return output_path

    def on_import_ckpt(self, model: Any) -> None:
        """Nothing to attach: the tokenizer stays in the checkpoint's Hugging Face side folder."""


@io.model_exporter(PolicyModel, "hf")
class PolicyExporter(HFLlamaExporter):
    """The reverse; the target is built from the source's own config.json."""

    @property
    def config(self) -> Any:
        return find_checkpoint(str(self), "checkpoint").config

    def is_llama4(self) -> bool:
        return False

    def apply(self, output_path: Path) -> Path:
        target = self._converted()
        target.save_pretrained(output_path, state_dict=_own_weights(target))
        return output_path

    def _converted(self) -> Any:
        """The Hugging Face model with this checkpoint's weights, in the dtype of the import."""
        source = find_checkpoint(str(self), "checkpoint")
        dtype = getattr(torch, weights_dtype(source))
        config = model_config(source.config, "checkpoint", dtype)
        config.perform_initialization = False
        module = config.configure_model(tokenizer=None)
        load_weights(module, source)
        return self.convert_state(module, self.init(dtype))


def _own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The state dict without the output layer where it is the embedding."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def _pad_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    padding = weight.new_zeros(rows - weight.size(0), *weight.shape[1:])
    return torch.cat([weight, padding]) if padding.numel() else weight


def import_hf(source: Checkpoint, output: Path, tokenizer: str = "") -> None:
    """Convert a Hugging Face checkpoint to a NeMo checkpoint. Needs :func:`runtime.launch.join` with one rank.

    Args:
        source: of kind "hf".
        output: the NeMo checkpoint to make; appears whole or not at all.
        tokenizer: a tokenizer directory or .model file to keep instead of the source's own.
    """
    partial = _fresh_partial(output)
    PolicyImporter(str(source.path)).apply(partial)
    _copy_side_files(source.hf_dir, partial / HF_SIDE_DIR)
    if tokenizer:
        _replace_tokenizer(tokenizer, partial / HF_SIDE_DIR)
    _write_provenance(partial, {"source": str(source.path.resolve()), "source_weights": weights_fingerprint(source)})
    partial.rename(output)


def _write_provenance(checkpoint: Path, facts: dict[str, str]) -> None:
    """Add to a NeMo checkpoint's record of where it comes from."""
    file = checkpoint / "context" / PROVENANCE
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | facts, indent=1))


def _fresh_partial(output: Path) -> Path:
    partial = output.with_name(f".{output.name}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _replace_tokenizer(tokenizer: str, folder: Path) -> None:
    """Another tokenizer instead of the source's, of which no file may stay: a template left over would be applied."""
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            file.unlink()
    load_tokenizer(tokenizer, "student.tokenizer").save_pretrained(folder)


def _copy_side_files(source: Path, target: Path) -> None:
    """The files of a Hugging Face directory that are no weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _side_files(source):
        shutil.copy2(file, target / file.name)


def _side_files(place: Path) -> list[Path]:
    files = sorted(f for f in place.iterdir() if f.is_file() and not f.name.startswith("."))
    return [f for f in files if not any(f.match(pattern) for pattern in WEIGHT_FILES)]


def export_hf(source: Checkpoint, output: Path) -> None:
    """Convert a NeMo checkpoint made here to a Hugging Face directory. Needs `join` with one rank.

    The config, tokenizer, chat template and generation config are the source's own, byte for byte.
    """
    partial = _fresh_partial(output)
    PolicyExporter(str(source.path)).apply(partial)
    (partial / "generation_config.json").unlink(missing_ok=True)  # transformers makes one up
    _copy_side_files(source.hf_dir, partial)
    partial.rename(output)


def write_context(model: PolicyModel, student: Checkpoint, folder: Path) -> None:
    """Write a training checkpoint's context/ (rank 0): NeMo's model description and the student's side files."""
    trainer = _conversion_trainer()
    context = io.TrainerContext(model=model, trainer=trainer, extra={})
    context.io_dump(ckpt_to_context_subdir(folder), yaml_attrs=["model"])
    _copy_side_files(student.hf_dir, folder / HF_SIDE_DIR)
    _write_provenance(folder, {"dtype": weights_dtype(student)})


def import_folder() -> Path:
    """Where imports of Hugging Face checkpoints are kept: $NEMO_TVKD_CACHE, or runs/imported here."""
    return Path(os.environ.get("NEMO_TVKD_CACHE", "runs/imported"))


def as_nemo(wanted: dict[str, tuple[Checkpoint, str]]) -> dict[str, Checkpoint]:
    """NeMo checkpoints for each key's (checkpoint, tokenizer): itself, or its import (collective).

    Rank 0 imports what is missing, in a process of its own (a conversion needs a world of one rank); every rank
    learns where it is. An import is reused while the source's weights are the same.

    Raises:
        UserError: on every rank, what the import said.
    """
    return on_rank_zero(lambda: {key: _imported(ckpt, key, tokenizer) for key, (ckpt, tokenizer) in wanted.items()})


def _imported(checkpoint: Checkpoint, key: str, tokenizer: str) -> Checkpoint:
    if checkpoint.kind == "nemo":
        return checkpoint
    digest = hashlib.sha256(f"{FORMAT} {weights_fingerprint(checkpoint)}".encode())
    digest.update(_side_fingerprint(checkpoint.hf_dir).encode())
    if tokenizer:
        digest.update(_side_fingerprint(Path(tokenizer)).encode())
    output = import_folder() / f"{checkpoint.path.resolve().name}-{digest.hexdigest()[:12]}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{output}.lock"):
        if not output.exists():
            _import_in_subprocess(checkpoint, output, tokenizer)
    return find_checkpoint(str(output), key)


def _side_fingerprint(place: Path) -> str:
    """sha256 over what an import keeps beside the weights: config, tokenizer, templates."""
    digest = hashlib.sha256()
    for file in [place] if place.is_file() else _side_files(place):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _import_in_subprocess(checkpoint: Checkpoint, output: Path, tokenizer: str) -> None:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC", "SLURM_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    command = [sys.executable, "-m", "nemo_tvkd", "import-hf", f"source={checkpoint.path}", f"output={output}"]
    if tokenizer:
        command.append(f"tokenizer={tokenizer}")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("nemo-tvkd: "))
    if done.returncode:
        raise RuntimeError(f"importing {checkpoint.path} failed:\n{done.stderr}")
