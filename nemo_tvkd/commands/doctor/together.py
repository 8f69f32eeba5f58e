"""Settings of a computing stage that are wrong only together, as its command would find them at its start."""

from nemo_tvkd.checkpoints.hf import check_heads
from nemo_tvkd.commands.doctor.stages import StageChecks
from nemo_tvkd.commands.score import check_what
from nemo_tvkd.config.values import as_list
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.methods import DEFAULT_PATHS, METHODS


def check_together(stage: StageChecks) -> None:
    """Whether a method is given the models or scores that it needs, and score something that it can score.

    Raises:
        UserError: it is not; names the key.
    """
    config = stage.config
    if stage.stage.command == "score":
        check_what(config.score.what)
    if stage.stage.command != "train":
        return
    method = METHODS[config.algorithm.name]
    method.check(config.algorithm)
    for need in method.frozen(config.algorithm):
        section = config[need]
        scores, paths = any(as_list(section.scores)), any(as_list(section.path))
        asks = f"algorithm={config.algorithm.name} with {need}.mode={section.mode}"
        if section.mode == "online" and scores:
            raise UserError(f"{need}.scores is set but {need}.mode=online would not read it: set {need}.mode=cached")
        if section.mode == "online" and not paths and need not in DEFAULT_PATHS:
            raise UserError(f"{need}.path is not set: {asks} reads a model")
        if section.mode == "cached" and not scores:
            raise UserError(f"{need}.scores is not set: {asks} reads a score store that `nemo-tvkd score` wrote")


def check_heads_of(stage: StageChecks) -> None:
    """Whether models that are there have the heads that are asked of them.

    Raises:
        UserError: one has not; names the key.
    """
    for key in stage.running:
        checkpoint = stage.found(key).checkpoint
        if checkpoint is not None:
            check_heads(checkpoint, key, **_heads(stage, key))


def _heads(stage: StageChecks, key: str) -> dict[str, bool]:
    config, command = stage.config, stage.stage.command
    if command == "evaluate":
        judges = key in ("oracle.path", "teacher.path")
        return {"lm": key == "teacher.path" if judges else bool(config.reference), "reward": key == "oracle.path"}
    if command == "score":
        return {"lm": bool({"value", "logprob"} & set(config.score.what)), "reward": "reward" in config.score.what}
    if key == stage.own_key:
        return {"lm": "lm" in METHODS[config.algorithm.name].heads(config.algorithm)}
    quantities = METHODS[config.algorithm.name].frozen(config.algorithm)[key.partition(".")[0]]
    heads = {what.head for what in quantities}
    return {"lm": "lm" in heads, "reward": "reward" in heads}
