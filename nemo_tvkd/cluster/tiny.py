"""recipe_scale=tiny: a rehearsal of a whole chain with random models of the same families in tiny sizes.

It tries what a night in the queue would try otherwise: accounts, containers, paths, tokenizers and templates, data,
signals and restarts. The tokenizers and the data are the recipe's own.
"""

import json
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder

HEADS, HEAD_DIM, LAYERS = 8, 16, 4
SIZES = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "micro_batch_size": 1}
STEPS = {"trainer.max_steps": 4, "trainer.save_interval": 2, "data.max_length": 512, "data.max_prompt_length": 400}


def architecture(name: str, key: str) -> dict[str, Any]:
    """A model's published config.json.

    Raises:
        UserError: there is no such file in conf/model; names `key`.
    """
    folder = package_folder("conf") / "model"
    file = folder / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.json")))
        raise UserError(f"{key}={name} is none of the known architectures: {known}")
    return json.loads(file.read_text())


def tiny_architecture(full: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The same family, with its rope, its tying and its share of key/value heads, in a size that any machine trains."""
    groups = full["num_attention_heads"] // full["num_key_value_heads"]
    return full | {
        "hidden_size": HEADS * HEAD_DIM,
        "head_dim": HEAD_DIM,
        "intermediate_size": 2 * HEADS * HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": max(HEADS // groups, 2),
        "vocab_size": vocabulary,
    }


def shrink(config: Any, run_dir: Path, clusters: dict[str, Any]) -> None:
    """Change a recipe, in place, into its rehearsal: paths of tiny models, few steps, layouts of at most TP2 x PP2.

    Args:
        clusters: of the stages that have their own.
    """
    from omegaconf import OmegaConf

    OmegaConf.set_struct(config, False)
    recipe = config.recipe
    moved = {}
    for name, model in recipe.models.items():
        model.tokenizer = model.tokenizer or model.path
        moved[model.path] = str(run_dir / "tiny" / name)
    for name, stage in recipe.stages.items():
        for key, value in stage.settings.items():  # interpolations are resolved by now
            if isinstance(value, str) and value in moved:
                stage.settings[key] = moved[value]
        stage.settings.pop("student.tokenizer", None)  # the tiny model's own
        for layouts in recipe.layouts.values():
            layout = layouts.get(name, {})
            for size, most in SIZES.items():
                if size in layout:
                    layout[size] = min(layout[size], most)
        if stage.command == "train":
            ranks = _ranks(config, name, clusters.get(name, config.cluster))
            stage.settings.update(STEPS | {"trainer.global_batch_size": 2 * ranks, "optim.lr": 1e-4})
            stage.settings.pop("trainer.max_epochs", None)
        elif stage.command in ("score", "evaluate"):
            stage.settings.update({key: value for key, value in STEPS.items() if key.startswith("data.")})
        elif stage.command == "benchmark":
            stage.settings["benchmark.limit"] = 4
    for model in recipe.models.values():
        model.path = moved[model.path]


def _ranks(config: Any, name: str, cluster: Any) -> int:
    from nemo_tvkd.cluster.recipe import ranks_per_node

    layout = config.recipe.layouts.get(cluster.node_type, {}).get(name) or {}
    return int((cluster.nodes or layout.get("nodes", 1)) * ranks_per_node(cluster))


def make_models(submission: Any) -> None:
    """Random checkpoints of the recipe's models where they are not there yet, each with its real tokenizer."""
    for name, model in submission.config.recipe.models.items():
        path = Path(model.path)
        if path.exists():
            continue
        key = f"recipe.models.{name}"
        _make(architecture(model.architecture, f"{key}.architecture"), model.tokenizer, f"{key}.tokenizer", path)
        print(f"{path}: a random {model.architecture} in a tiny size, with the tokenizer of {model.tokenizer}")


def _make(full: dict[str, Any], tokenizer: str, key: str, path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.data.tokenizer import load_tokenizer

    place = tokenizer if Path(tokenizer).expanduser().exists() else str(find_checkpoint(tokenizer, key).hf_dir)
    loaded = load_tokenizer(place, key)
    size = max(loaded.get_vocab().values()) + 1
    config = AutoConfig.for_model(**tiny_architecture(full, size))
    partial = path.with_name(f".{path.name}.incomplete")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(partial)
    loaded.save_pretrained(partial)
    partial.rename(path)
