"""Hugging Face import and export, and NeMo checkpoints written whole or not at all.

Weights go through NeMo's own converters. Everything else of a Hugging Face directory (config, tokenizer, chat
template, generation config) is kept verbatim beside them, in `context/hf`, because NeMo's exporters lose parts of it.
"""

import copy
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from megatron.core.transformer.module import MegatronModule
from nemo import lightning as nl
from nemo.collections.llm.gpt.model.llama import HFLlamaExporter, HFLlamaImporter
from nemo.lightning import io
from nemo.lightning.ckpt_utils import ckpt_to_context_subdir
from nemo.lightning.io.state import _ModelState

from nemo_tvkd.checkpoints.hf import (
    HF_SIDE_DIR,
    Checkpoint,
    find_checkpoint,
    padded_vocab_size,
    weights_dtype,
    weights_fingerprint,
)
from nemo_tvkd.checkpoints.hf_weights import own_weights, pad_rows, read_model, write_reward_head
from nemo_tvkd.checkpoints.reward_models import export_kind, make_reward_model
from nemo_tvkd.checkpoints.side_files import (
    copy_side_files,
    replace_tokenizer,
    side_fingerprint,
    write_dialogue,
    write_provenance,
)
from nemo_tvkd.data.tokenizer import Dialogue
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import take_lock
from nemo_tvkd.models.architecture import CausalLMConfig, model_config
from nemo_tvkd.models.frozen import load_weights
from nemo_tvkd.models.policy import PolicyModel
from nemo_tvkd.runtime.launch import on_rank_zero

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


def _without_output_layer(hf_config: Any) -> Any:
    """A config by which NeMo's converters look for no output layer: they expect none where it is the embedding."""
    config = copy.deepcopy(hf_config)
    config.tie_word_embeddings = True
    return config


@io.model_importer(PolicyModel, "hf")
class PolicyImporter(HFLlamaImporter):
    """Llama and Mistral checkpoints; both families store the same tensors under the same names."""

    def init(self) -> PolicyModel:
        return PolicyModel(self.config, tokenizer=None)

    @property
    def config(self) -> CausalLMConfig:
        return self._config(find_checkpoint(str(self), "source"))

    @staticmethod
    def _config(source: Checkpoint, dtype: torch.dtype | None = None) -> CausalLMConfig:
        config = model_config(source.config, "source", dtype, lm_head=source.has_lm_head)
        config.reward_head = source.has_reward_head
        return config

    def apply(self, output_path: Path) -> Path:
        place = find_checkpoint(str(self), "source")
        source, reward_head = read_model(place)
        target = PolicyModel(self._config(place, source.dtype))
        trainer = self.nemo_setup(target, _conversion_trainer())
        state = dict(source.state_dict())
        for name in VOCABULARY_KEYS:
            if name in state:
                state[name] = pad_rows(state[name], padded_vocab_size(source.config))
        config = source.config if place.has_lm_head else _without_output_layer(source.config)
        self.convert_state(_ModelState(state, config), target)
        if reward_head is not None:
            target.module.reward_head.weight.data.copy_(reward_head)
        self.nemo_save(output_path, trainer)
        facts: dict[str, str | bool] = {"dtype": str(source.dtype).removeprefix("torch.")}
        facts |= {"lm_head": place.has_lm_head, "reward_head": place.has_reward_head}
        write_provenance(output_path, facts | {"reward_model": place.is_reward_model})
        return output_path

    def on_import_ckpt(self, model: Any) -> None:
        """Nothing to attach: the tokenizer stays in the checkpoint's Hugging Face side folder."""


@io.model_exporter(PolicyModel, "hf")
class PolicyExporter(HFLlamaExporter):
    """The reverse; the target is built from the source's own config.json."""

    lm_head = True

    @property
    def config(self) -> Any:
        return find_checkpoint(str(self), "checkpoint").config

    def is_llama4(self) -> bool:
        return False

    def apply(self, output_path: Path) -> Path:
        module = self._module()
        target = self._converted(module)
        target.save_pretrained(output_path, state_dict=own_weights(target))
        if module.config.reward_head:
            write_reward_head(output_path, module.reward_head.weight)
        return output_path

    def _converted(self, module: MegatronModule | None = None) -> Any:
        """The Hugging Face model with this checkpoint's weights, in the dtype of the import."""
        module = module or self._module()
        return self.convert_state(module, self.init(module.config.params_dtype))

    def _module(self) -> MegatronModule:
        source = find_checkpoint(str(self), "checkpoint")
        dtype = getattr(torch, weights_dtype(source))
        config = model_config(source.config, "checkpoint", dtype, lm_head=self.lm_head)
        config.reward_head = source.has_reward_head
        config.perform_initialization = False
        module = config.configure_model(tokenizer=None)
        load_weights(module, source)
        return module


class RewardModelExporter(PolicyExporter):
    """To a sequence-classification model with one label, whose `score` is the reward head."""

    lm_head = False

    @property
    def config(self) -> Any:
        config = _without_output_layer(super().config)
        config.num_labels = 1
        return config

    def init(self, dtype: torch.dtype = torch.bfloat16) -> Any:
        from transformers import AutoModelForSequenceClassification
        from transformers.modeling_utils import no_init_weights

        with no_init_weights():
            return AutoModelForSequenceClassification.from_config(self.config, torch_dtype=dtype)

    def apply(self, output_path: Path) -> Path:
        module = self._module()
        target = self._converted(module)
        target.score.weight.data.copy_(module.reward_head.weight)
        target.save_pretrained(output_path)
        return output_path


def import_hf(source: Checkpoint, output: Path, tokenizer: str = "") -> None:
    """Convert a Hugging Face checkpoint to a NeMo checkpoint. Needs :func:`runtime.launch.join` with one rank.

    Args:
        source: of kind "hf".
        output: the NeMo checkpoint to make; appears whole or not at all.
        tokenizer: a tokenizer directory or .model file to keep instead of the source's own.
    """
    partial = _fresh_partial(output)
    PolicyImporter(str(source.path)).apply(partial)
    copy_side_files(source.hf_dir, partial / HF_SIDE_DIR)
    if tokenizer:
        replace_tokenizer(tokenizer, partial / HF_SIDE_DIR)
    write_provenance(partial, {"source": str(source.path.resolve()), "source_weights": weights_fingerprint(source)})
    partial.rename(output)


def _fresh_partial(output: Path) -> Path:
    partial = output.with_name(f".{output.name}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def export_hf(source: Checkpoint, output: Path, kind: str = "auto") -> str:
    """Convert a NeMo checkpoint made here to a Hugging Face directory. Needs `join` with one rank.

    The config, tokenizer, chat template and generation config are the source's own, byte for byte; but for what a
    reward model made of a causal LM needs.

    Args:
        kind: as `runtime.reward_models.export_kind`.

    Returns:
        a warning, or "".
    """
    kind = export_kind(source, kind)
    partial = _fresh_partial(output)
    exporter = RewardModelExporter if kind == "reward_model" else PolicyExporter
    exporter(str(source.path)).apply(partial)
    (partial / "generation_config.json").unlink(missing_ok=True)  # transformers makes one up
    copy_side_files(source.hf_dir, partial)
    warning = make_reward_model(partial, str(output)) if kind == "reward_model" else ""
    partial.rename(output)
    return warning


def write_context(
    model: PolicyModel,
    student: Checkpoint,
    folder: Path,
    reward_model: bool = False,
    dialogue: Dialogue | None = None,
) -> None:
    """Write a training checkpoint's context/ (rank 0): NeMo's model description and the student's side files.

    Args:
        reward_model: whether that is what is trained, rather than a policy that may have a reward head.
        dialogue: what the side files must say that the student's do not.
    """
    trainer = _conversion_trainer()
    context = io.TrainerContext(model=model, trainer=trainer, extra={})
    context.io_dump(ckpt_to_context_subdir(folder), yaml_attrs=["model"])
    copy_side_files(student.hf_dir, folder / HF_SIDE_DIR)
    if dialogue is not None:
        write_dialogue(dialogue, folder / HF_SIDE_DIR)
    heads = {"lm_head": bool(model.config.lm_head), "reward_head": bool(model.config.reward_head)}
    write_provenance(folder, {"dtype": weights_dtype(student), **heads, "reward_model": reward_model})


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
    if checkpoint.has_reward_head:
        digest.update(b"reward head")  # older imports have none
    digest.update(side_fingerprint(checkpoint.hf_dir).encode())
    if tokenizer:
        digest.update(side_fingerprint(Path(tokenizer)).encode())
    output = import_folder() / f"{checkpoint.path.resolve().name}-{digest.hexdigest()[:12]}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with take_lock(Path(f"{output}.lock"), math.inf):
        if not output.exists():
            try:
                _import_in_subprocess(checkpoint, output, tokenizer)
            except UserError as error:
                raise UserError(re.sub("^source: ", f"{key}: ", str(error))) from error
    return find_checkpoint(str(output), key)


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
    for line in done.stderr.splitlines():
        if line.startswith("warning:"):
            print(line, file=sys.stderr, flush=True)
