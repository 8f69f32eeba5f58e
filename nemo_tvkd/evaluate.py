"""`nemo-tvkd evaluate`: preference accuracy, margins and rewards of a checkpoint on held-out pairs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tvkd.data.batch import Batch, Item, micro_batches
from nemo_tvkd.data.template import Tokenized
from nemo_tvkd.encoder import Encoder, check_vocabulary
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_whole
from nemo_tvkd.losses import ORACLE_REWARDS
from nemo_tvkd.metrics import by_strength, correlation, implicit_rewards, preference_metrics, table
from nemo_tvkd.models.hf import Checkpoint, check_architecture, check_heads, check_layout, find_checkpoint
from nemo_tvkd.needs import Needs
from nemo_tvkd.oracles import resolve_oracles
from nemo_tvkd.runtime import launch
from nemo_tvkd.runtime.exits import is_rank_zero
from nemo_tvkd.values import as_list, check_values, check_writable, path_list

LOGPS, REWARDS = "logps", "rewards"
Numbers = list[tuple[float, float]]
"""One of the chosen and one of the rejected response, of each pair, in the data's order."""


@dataclass
class Evaluation:
    """What every rank needs to know."""

    models: dict[str, Checkpoint]
    """"checkpoint" and, where they are asked for, "reference" and "oracle.path"."""
    items: list[Item]
    ranks: int
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Tokenized]:
        """The pairs as the checkpoint reads them."""
        return [item.tokens for item in self.items]

    @property
    def oracle_rows(self) -> list[Tokenized]:
        """The pairs as an online oracle reads them."""
        reads = [item.readings.get(ORACLE_REWARDS) for item in self.items]
        return [row if read is None else read.tokens for row, read in zip(self.rows, reads, strict=True)]


def main(config: Any) -> int:
    """Check, launch the ranks and evaluate; returns the exit code."""
    job = prepare_evaluation(config)
    if is_rank_zero():
        print("\n".join(job.notes), flush=True)
    return launch.run(evaluate_rank, (config, job), job.ranks)


def prepare_evaluation(config: Any) -> Evaluation:
    """Check an evaluation's configuration and read its pairs.

    Raises:
        UserError: anything a user can get wrong.
    """
    check_values(config)
    if config.output:
        check_writable(config.output, "output")
        if Path(config.output).is_dir():
            raise UserError(f"output: {config.output} is a directory: give the name of a JSON file")
    models = {"checkpoint": find_checkpoint(config.checkpoint, "checkpoint")}
    if config.reference:
        models["reference"] = find_checkpoint(config.reference, "reference")
        if models["checkpoint"].is_reward_model:
            raise UserError(f"reference is set, but {config.checkpoint} is a reward model, whose rewards are its own")
        for key, model in models.items():
            check_heads(model, key, lm=True)
    layout = (config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size)
    for key, model in models.items():
        check_architecture(model.config, key)
        check_layout(model.config, key, *layout)
    encoder = Encoder.build(models["checkpoint"], config.tokenizer, config.data, "tokenizer")
    if "reference" in models:
        check_vocabulary(models["reference"], encoder, "reference", "checkpoint")
    notes: list[str] = []
    needs = Needs(encoder, pairs=True)
    if asked := [name for name in ("scores", "path") if any(as_list(config.oracle[name]))]:
        mode = {"scores": "cached", "path": "online"}[asked[0]]
        settings = OmegaConf.to_container(config)
        settings["oracle"]["mode"] = mode
        settings["student"] = {"path": config.checkpoint}
        resolve_oracles(OmegaConf.create(settings), needs, notes.append)
        if mode == "online":
            models["oracle.path"] = needs.frozen[ORACLE_REWARDS]
    elif unread := [name for name in ("tokenizer", "chat_template") if config.oracle[name]]:
        raise UserError(f"oracle.{unread[0]} is set without oracle.path or oracle.scores, which it would be about")
    items = needs.read(path_list(config.data.validation, "data.validation"), "data.validation", notes.append)
    if not asked:
        _use_columns(items, notes)
    return Evaluation(models, items, launch.world_size(config.parallel), notes)


def _use_columns(items: list[Item], notes: list[str]) -> None:
    """Take the data's rewards for the oracle's where every pair has them."""
    found = [(item.tokens.chosen_reward, item.tokens.rejected_reward) for item in items]
    complete = [(chosen, rejected) for chosen, rejected in found if chosen is not None and rejected is not None]
    if len(complete) == len(items):
        for item, rewards in zip(items, complete, strict=True):
            item.oracle_rewards = (rewards,)
    elif complete:
        notes.append(
            f"data.validation: {len(items) - len(complete)} of {len(items)} pairs have no reward columns: "
            "preferences are not told apart by strength"
        )


def evaluate_rank(config: Any, job: Evaluation) -> None:
    """One rank's part of the evaluation; rank 0 prints and writes."""
    launch.join(config.parallel)  # before anything imports NeMo, which it keeps quiet
    from nemo_tvkd.runtime.checkpoints import as_nemo

    models = as_nemo({key: (model, "") for key, model in job.models.items()})
    numbers: dict[str, dict[str, Numbers]] = {}
    for key, model in models.items():
        judges = key == "oracle.path" or model.is_reward_model
        heads = {LOGPS: not judges, REWARDS: model.has_reward_head and key != "reference"}
        rows = job.oracle_rows if key == "oracle.path" else job.rows
        numbers[key] = pair_numbers(config, model, key, rows, [name for name, there in heads.items() if there])
    if is_rank_zero():
        oracle = numbers["oracle.path"][REWARDS] if "oracle.path" in numbers else None
        if job.items[0].oracle_rewards is not None:
            oracle = [item.oracle_rewards[0] for item in job.items if item.oracle_rewards]
        result = {"checkpoint": config.checkpoint, "reference": config.reference or None, "beta": config.beta}
        source = config.oracle.scores or config.oracle.path or ("columns" if oracle else None)
        result["oracle"] = source if source is None or isinstance(source, str) else list(source)
        result |= figures(numbers["checkpoint"], numbers.get("reference"), oracle, config)
        if config.output:
            _write(Path(config.output), result)
        _show(result)
    launch.leave()


def _write(file: Path, result: dict[str, Any]) -> None:
    """Whole or not at all: where the file is, the evaluation is done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")


def figures(
    numbers: dict[str, Numbers], reference: dict[str, Numbers] | None, oracle: Numbers | None, config: Any
) -> dict[str, Any]:
    """The result: rewards are the implicit ones of a policy, and those of its head have their own names.

    A reward model has those of its head alone, as `rewards/`.
    """
    rewards: dict[str, Numbers] = {}
    if LOGPS in numbers:
        base = None if reference is None else reference[LOGPS]
        rewards["rewards"] = implicit_rewards(numbers[LOGPS], base, config.beta)
    if REWARDS in numbers:
        rewards["reward_head" if rewards else "rewards"] = numbers[REWARDS]
    result: dict[str, Any] = {"pairs": len(next(iter(rewards.values())))}
    for prefix, pairs in rewards.items():
        result |= preference_metrics(pairs, prefix)
    if LOGPS in numbers:
        for side, name in enumerate(("chosen", "rejected")):
            result[f"logps/{name}"] = math.fsum(pair[side] for pair in numbers[LOGPS]) / len(numbers[LOGPS])
    if oracle is not None:
        result |= preference_metrics(oracle, "oracle")
        result |= {f"{prefix}/oracle_correlation": correlation(pairs, oracle) for prefix, pairs in rewards.items()}
        result["by_strength"] = by_strength(rewards, oracle, config.strength_bins)
    return result


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name != "by_strength":
            print(f"{name:28} {value}")
    for prefix in ("rewards", "reward_head"):
        if "by_strength" in result and f"{prefix}/accuracies" in result:
            print(f"\n{prefix}, by the strength of the preference:\n{table(result['by_strength'], prefix)}")


def pair_numbers(
    config: Any, checkpoint: Checkpoint, key: str, rows: list[Tokenized], wanted: Sequence[str]
) -> dict[str, Numbers]:
    """What a model says of each pair, in order, on every rank (collective).

    Args:
        wanted: of LOGPS (log pi, nats) and REWARDS (of the reward head, reward units).
    """
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_tvkd.models.frozen import load_frozen, pipeline_forward

    def statistics(batch: Batch, readout: Any) -> torch.Tensor:
        read = {LOGPS: readout.response_logps, REWARDS: readout.response_rewards}
        return torch.stack([read[name](batch) for name in wanted])

    memory = config.parallel.lm_head_memory_mib * 2**20
    module = load_frozen(checkpoint, key, config.precision, memory, lm_head=LOGPS in wanted)
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    batches = list(micro_batches([Item(r) for r in rows], config.micro_batch_size, 1, replica, replicas))
    mine: list[list[list[float]]] = []
    for result in pipeline_forward(module, batches, statistics):
        mine += result.unflatten(1, (2, -1)).permute(2, 0, 1).tolist()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (replica, mine))
    ordered: list[Any] = [[(math.nan, math.nan)] * len(wanted)] * len(rows)
    for index, part in everyone:
        if part:
            ordered[index::replicas] = part
    return {name: [(pair[i][0], pair[i][1]) for pair in ordered] for i, name in enumerate(wanted)}
