"""Estimates of a stage: memory of a GPU by part, hours, and bytes on disk."""

from typing import Any

from nemo_tvkd.checkpoints.hf import check_architecture
from nemo_tvkd.cluster.times import seconds
from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.hours import READING_UTILISATION, TRAINING_UTILISATION, reading_hours, training_hours
from nemo_tvkd.commands.doctor.memory import (
    OUTSIDE_TENSORS,
    MemoryEstimate,
    Model,
    Settings,
    forward_memory,
    training_memory,
)
from nemo_tvkd.commands.doctor.parameters import model_parameters
from nemo_tvkd.commands.doctor.stages import OWN_MODEL, StageChecks
from nemo_tvkd.losses.methods import METHODS

GIB = 2**30
FULL, SURE = 0.9, 1.15
"""Shares of a card: above the first an estimate is no comfort, above the second it is certain that it does not fit."""


def model_in(stage: StageChecks) -> Model:
    """The model that a computing stage is about, with the heads that it has there."""
    config = stage.own.config
    if stage.stage.command != "train":
        return Model(config)
    heads = METHODS[stage.config.algorithm.name].heads(stage.config.algorithm)
    return Model(config, lm_head="lm" in heads, reward_head="reward" in heads)


def online_models(stage: StageChecks) -> list[Model]:
    """Frozen models that run in the training job."""
    algorithm = stage.config.algorithm
    models = []
    for name, quantities in METHODS[algorithm.name].frozen(algorithm).items():
        if stage.config[name].mode != "online":
            continue
        heads = {what.head for what in quantities}
        keys = [key for key in stage.keys if key.partition("[")[0] == f"{name}.path"]
        configs = [stage.found(key).config for key in keys] or [stage.own.config]  # its path is the student's
        models += [Model(each, lm_head="lm" in heads, reward_head="reward" in heads) for each in configs]
    return models


def settings_of(stage: StageChecks) -> Settings:
    """What the memory of a rank depends on, at the lengths that the configuration admits."""
    config, command = stage.config, stage.stage.command
    pairs = command != "train" or METHODS[config.algorithm.name].pairs
    micro = {"train": "trainer", "score": "score"}.get(command)
    size = config[micro].micro_batch_size if micro else config.micro_batch_size
    precision = config[micro].precision if micro else config.precision
    return Settings(
        layout=stage.layout,
        tokens=size * (2 if pairs else 1) * config.data.max_length,
        precision=precision,
        recompute=command == "train" and config.trainer.recompute,
        micro_batches=_micro_batches(stage),
        lm_head_memory=config.parallel.lm_head_memory_mib * 2**20,
        device="cuda" if stage.stage.cluster.gpus_per_node else "cpu",
    )


def _micro_batches(stage: StageChecks) -> int | None:
    """Of a step and replica."""
    if stage.stage.command != "train":
        return None
    trainer = stage.config.trainer
    return max(int(trainer.global_batch_size // (trainer.micro_batch_size * stage.layout.data)), 1)


def estimate(stage: StageChecks) -> MemoryEstimate:
    """Of the fullest rank of a computing stage."""
    if stage.stage.command == "train":
        return training_memory(model_in(stage), settings_of(stage), online_models(stage))
    return forward_memory(models_read(stage), settings_of(stage))


def models_read(stage: StageChecks) -> list[Model]:
    """Of a command that only reads; evaluate has one model at a time, so the largest of its own."""
    others = [key for key in stage.running if key != stage.own_key]
    models = [model_in(stage), *(Model(stage.found(key).config) for key in others)]
    return [max(models, key=lambda model: model_parameters(model.config))]


def memory_check(stage: StageChecks) -> Check:
    """The estimate by part against the card."""
    name = stage.name("memory")
    found = estimate(stage)
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "frozen")
    said = ", ".join(
        f"{part} {getattr(found, part) / GIB:.1f}" for part in parts if getattr(found, part) > 0.02 * found.total
    )
    cluster = stage.stage.cluster
    if not cluster.gpus_per_node:
        return Check(name, "OK", f"{found.total / GIB:.1f} GiB a rank, on the CPU: {said}")
    need, card = found.total + OUTSIDE_TENSORS, cluster.gpu_memory_gib * GIB
    said += f", CUDA and NCCL {OUTSIDE_TENSORS / GIB:.0f}"
    text = f"{need / GIB:.1f} of {cluster.gpu_memory_gib:g} GiB a GPU at full length: {said}"
    if need <= FULL * card:
        return Check(name, "OK", text)
    advice = "a smaller micro-batch, trainer.recompute=true, or a larger tensor_model_parallel_size"
    return Check(name, "FAIL" if need > SURE * card else "WARN", text, advice)


def disk_bytes(stage: StageChecks) -> int:
    """What a stage will have on disk at most."""
    command, config = stage.stage.command, stage.config
    tasks = len(stage.stage.outputs)
    if command in OWN_MODEL:
        check_architecture(stage.own.config, OWN_MODEL[command])  # else there may be no such sizes in it
    if command == "train":
        state = 14 if config.trainer.precision == "bf16" else 12
        kept = config.trainer.keep_checkpoints + 1  # the next one is written before the oldest goes
        return tasks * kept * state * model_parameters(stage.own.config)
    if command == "score":
        sample = stage.sample()
        return 0 if sample is None else tasks * int(4 * sample.rows * sample.mean)  # measured: 3.2 bytes a token
    if command == "export-hf":
        return tasks * 2 * model_parameters(stage.found("checkpoint").config)
    return 0


def hours_check(stage: StageChecks) -> Check:
    """The estimate against the time limit; a stage that needs longer goes on in further jobs."""
    name, cluster = stage.name("hours"), stage.stage.cluster
    sample = stage.sample()
    if sample is None:
        return Check(name, "WARN", "not estimated without a tokenizer", "the stage's own model brings it")
    pairs = sample.sequences == 2
    config, gpus = stage.config, stage.stage.nodes * stage.stage.ranks_per_node
    work: dict[str, Any] = {"length": sample.mean / sample.sequences, "gpus": gpus, "tflops": cluster.gpu_tflops}
    work["read"] = sample.responses
    if stage.stage.command == "train":
        trainer = config.trainer
        steps = trainer.max_steps or trainer.max_epochs * sample.rows // trainer.global_batch_size
        if not steps:
            rows = f"{trainer.max_epochs} epochs of {sample.rows} rows"
            return Check(name, "FAIL", f"{rows} are no step of trainer.global_batch_size={trainer.global_batch_size}")
    if not cluster.gpus_per_node:
        return Check(name, "OK", "not estimated for nodes without GPUs")
    if stage.stage.command == "train":
        tokens = steps * trainer.global_batch_size * sample.mean
        frozen = online_models(stage)
        hours = training_hours(model_in(stage), tokens=tokens, recompute=trainer.recompute, frozen=frozen, **work)
        about, share = f"{steps} steps, ", TRAINING_UTILISATION
    else:
        hours = reading_hours(models_read(stage), tokens=sample.rows * sample.mean, **work)
        about, share = f"{sample.rows} {'pairs' if pairs else 'rows'}, ", READING_UTILISATION
    limit = seconds(cluster.time) / 3600
    text = (
        f"about {hours:.2g} h: {about}{gpus} GPUs at an assumed {100 * share:.0f} % of {cluster.gpu_tflops:g} TFLOP/s"
    )
    if hours < limit:
        return Check(name, "OK", text)
    jobs = int(hours // limit) + 1
    return Check(
        name, "WARN", f"{text}; {jobs} jobs of {cluster.time}", "cluster.nodes, or patience: each goes on where it was"
    )
