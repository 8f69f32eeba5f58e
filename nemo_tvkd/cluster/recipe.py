"""From a recipe, a cluster and what the user typed to the stages of a chain, each a complete command line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_tvkd.cluster.times import seconds, shorter
from nemo_tvkd.cluster.typed import Typed, check_choice, check_first, first, typed_of
from nemo_tvkd.config.cluster import ClusterConfig, LayoutConfig, ModelConfig, StageConfig
from nemo_tvkd.config.compose import compose, written
from nemo_tvkd.config.paths import PATH_KEYS, absolute
from nemo_tvkd.config.values import check_values
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.outputs import argument, is_done

OUTPUT_KEYS = {
    "train": "trainer.output_dir",
    "score": "score.output",
    "export-hf": "output",
    "evaluate": "output",
    "benchmark": "output",
}
MICRO_BATCH_KEYS = {
    "train": "trainer.micro_batch_size",
    "score": "score.micro_batch_size",
    "evaluate": "micro_batch_size",
}
"""Of the commands whose ranks share a model; the others are one process."""


@dataclass(frozen=True)
class Stage:
    """One job of the chain, or an array of jobs."""

    name: str
    command: str
    overrides: tuple[str, ...]
    """As typed behind `nemo-tvkd COMMAND`; with a sweep what its tasks have in common."""
    after: tuple[str, ...]
    """Stages whose output it reads."""
    output: Path
    """With a sweep the folder that holds the tasks' outputs 0, 1, ..."""
    sweep: tuple[tuple[str, ...], ...]
    """Further overrides of each array task; (): no array."""
    state: str
    """submitted (it has to run) | done (its output is there) | replaced (by a path) | unneeded (nothing reads it)."""
    models: dict[str, ModelConfig]
    """Configuration key -> the recipe's model that it is, or was before earlier stages trained it."""
    cluster: ClusterConfig
    nodes: int
    ranks_per_node: int

    @property
    def outputs(self) -> list[Path]:
        """Of each task."""
        return [self.output / str(i) for i in range(len(self.sweep))] if self.sweep else [self.output]

    def config(self, task: int = 0) -> Any:
        """The resolved configuration of the command (of one array task).

        Raises:
            UserError: as compose; the stage is named.
        """
        own = self.sweep[task] if self.sweep else ()
        try:
            return compose(self.command, [*self.overrides, *own])
        except UserError as error:
            raise UserError(f"stage {self.name}: {error}") from error


@dataclass(frozen=True)
class Submission:
    """What `submit` and `doctor` work on."""

    config: Any
    stages: list[Stage]
    run_dir: Path

    def stage(self, name: str, option: str) -> Stage:
        """A stage by its name; a UserError names the option that asked for it."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"{option} {name} is none of the stages: {', '.join(s.name for s in self.stages)}")


def load_recipe(arguments: Sequence[str], folder: str = "") -> Submission:
    """Compose the recipe, the cluster and the overrides of both and of single stages.

    Args:
        arguments: recipe=NAME cluster=NAME and KEY=VALUE, STAGE.KEY=VALUE (one value, or several separated by commas:
            a sweep), STAGE=PATH (what is there instead of the stage's output).
        folder: of the user's own recipes and clusters, laid out as conf/ is.

    Raises:
        UserError: anything that is wrong with them; a stage's own mistakes name the stage.
    """
    groups = [word for word in arguments if word.split("=", 1)[0] in ("recipe", "cluster")]
    plain = _composed(groups, folder)
    names = list(plain.recipe.stages)
    check_first(arguments, names, list(plain))
    check_choice(arguments, "recipe.dataset", list(plain.recipe.datasets))
    typed = {name: [w for w in arguments if first(w) == name] for name in names}
    own = [word for word in arguments if first(word) not in names]
    config = _composed(own, folder)
    run_dir = Path(os.path.expanduser(config.run_dir)).absolute()
    clusters: dict[str, Any] = {}
    for name, words in typed.items():
        if about := [w.split(".", 1)[1] for w in words if w.startswith(f"{name}.cluster.")]:
            try:
                clusters[name] = _composed([*own, *about], folder).cluster
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from error
    if config.recipe_scale == "tiny":
        from nemo_tvkd.cluster.tiny import shrink

        shrink(config, run_dir, clusters)
    return Submission(config, without_unneeded(_Chain(config, run_dir, typed, clusters).stages()), run_dir)


def _composed(words: Sequence[str], folder: str) -> Any:
    """A checked configuration of `submit`."""
    from omegaconf.errors import InterpolationKeyError

    try:
        config = compose("submit", list(words), folder=folder)
    except InterpolationKeyError as error:  # in a stage's settings, whose dotted keys compose does not look into
        raise UserError(f"recipe.stages: {str(error).splitlines()[0]}") from error
    check_values(config)
    if not config.run_dir:
        raise UserError("run_dir is not set: name the folder of the chain, for example run_dir=runs/first")
    limit = config.cluster.time
    if limit.isdecimal():  # what YAML makes of 24:00:00 without quotes is a number, too
        raise UserError(f'cluster.time={limit} is no time limit: write hours:minutes:seconds, in YAML "24:00:00"')
    seconds(limit)
    for name in ("image", "install"):
        config.cluster.container[name] = absolute(config.cluster.container[name])
    return config


class _Chain:
    """Builds stages, each after those that it reads."""

    def __init__(self, config: Any, run_dir: Path, typed: dict[str, list[str]], clusters: dict[str, Any]) -> None:
        self.recipe, self.cluster, self.run_dir = config.recipe, config.cluster, run_dir
        self.typed = {name: typed_of(name, words) for name, words in typed.items()}
        self.words, self.clusters = typed, clusters
        self.found: dict[str, Stage] = {}
        self.origins: dict[str, str] = {}
        """Swept stage -> the stage whose values it follows."""

    def stages(self) -> list[Stage]:
        for name in self.recipe.stages:
            self._visit(name, ())
        return list(self.found.values())

    def _visit(self, name: str, path: tuple[str, ...]) -> None:
        if name in self.found:
            return
        if name in path:
            raise UserError(f"recipe.stages: {' -> '.join([*path, name])} is a circle")
        stage = self.recipe.stages[name]
        for other in stage.after:
            if other not in self.recipe.stages:
                known = ", ".join(self.recipe.stages)
                raise UserError(f"recipe.stages.{name}.after names {other}, which is none of {known}")
            self._visit(other, (*path, name))
        if stage.command not in OUTPUT_KEYS:
            raise UserError(f"recipe.stages.{name}.command={stage.command} is none of {', '.join(OUTPUT_KEYS)}")
        self.found[name] = self._build(name, stage)

    def _build(self, name: str, stage: StageConfig) -> Stage:
        typed = self.typed[name]
        self._check_output(name, stage.command, typed)
        path, choices = typed.path, typed.choices
        tasks = 0 if path else self._tasks(name, stage)
        cluster = self.clusters.get(name, self.cluster)
        layout = self._layout(name, cluster)
        output = path or self.run_dir / name
        lines = []
        for task in range(max(tasks, 1)):
            words = self._settings(name, stage, task) | _layout_settings(stage.command, layout)
            own = argument(stage.command, output / str(task) if tasks else output)
            words[OUTPUT_KEYS[stage.command]] = written(str(own))
            words |= typed.fixed | (choices[task] if choices and tasks else {})
            lines.append([f"{key}={value}" for key, value in words.items()])
        common = [word for word in lines[0] if all(word in line for line in lines)]
        computes = stage.command in MICRO_BATCH_KEYS
        made = Stage(
            name=name,
            command=stage.command,
            overrides=tuple(common),
            after=tuple(stage.after),
            output=output,
            sweep=tuple(tuple(word for word in line if word not in common) for line in lines) if tasks else (),
            state="replaced" if path else "submitted",
            models={key: self._model(name, key, model) for key, model in stage.models.items()},
            cluster=self._with_time(name, cluster, stage.time),
            nodes=(cluster.nodes or layout.nodes) if computes else 1,
            ranks_per_node=ranks_per_node(cluster) if computes else 1,
        )
        done = not path and all(is_done(stage.command, output) for output in made.outputs)
        return replace(made, state="done") if done else made

    def _tasks(self, name: str, stage: StageConfig) -> int:
        """Array tasks of a stage that runs: of the sweep that it begins, or follows."""
        origins = sorted({self.origins[other] for other in stage.after if other in self.origins})
        if self.typed[name].choices:
            origins.append(name)
        if len(origins) > 1:
            both = " and ".join(origins)
            raise UserError(f"stage {name}: a chain can sweep one stage, and those after it follow; {both} are swept")
        if origins:
            self.origins[name] = origins[0]
            return len(self.typed[origins[0]].choices)
        return 0

    def _check_output(self, name: str, command: str, typed: Typed) -> None:
        """Where a stage writes is known to those that read it."""
        key = OUTPUT_KEYS[command]
        if any(key in settings for settings in (typed.fixed, *typed.choices)):
            raise UserError(f"{name}.{key} cannot be set: stage {name} writes {self.run_dir / name}; set run_dir")

    def _layout(self, name: str, cluster: ClusterConfig) -> LayoutConfig:
        """OmegaConf does not see the type of a mapping's mapping's values."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        if cluster.node_type not in self.recipe.layouts:
            key = f"{name}.cluster" if name in self.clusters else "cluster"
            known = ", ".join(self.recipe.layouts)
            raise UserError(f"{key}.node_type={cluster.node_type} is none that the recipe has layouts for: {known}")
        key = f"recipe.layouts.{cluster.node_type}.{name}"
        written = self.recipe.layouts[cluster.node_type].get(name) or {}
        try:
            layout = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LayoutConfig), written))
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
        assert isinstance(layout, LayoutConfig)
        for size, value in vars(layout).items():
            if not isinstance(value, bool) and value < 1:
                raise UserError(f"{key}.{size}={value} must be positive")
        return layout

    def _with_time(self, name: str, cluster: Any, time: str) -> Any:
        """The cluster of a stage that takes less time than its jobs may."""
        if not time or any(word.startswith(f"{name}.cluster.time=") for word in self.words[name]):
            return cluster
        seconds(time, f"recipe.stages.{name}.time")
        own = cluster.copy()
        own.time = shorter(cluster.time, time)
        return own

    def _settings(self, name: str, stage: StageConfig, task: int) -> dict[str, str]:
        """The recipe's settings in Hydra's grammar, with outputs of other stages for @NAME."""
        from omegaconf import OmegaConf

        words = {}
        settings = OmegaConf.to_container(stage.settings)  # type: ignore[arg-type]
        assert isinstance(settings, dict)
        for key, value in settings.items():
            if isinstance(value, list):
                value = [self._output(name, stage, f"{key}={each}", each, task) for each in value]
            else:
                value = self._output(name, stage, f"{key}={value}", value, task)
            if value != "":
                words[key] = written(absolute(value) if key.rpartition(".")[2] in PATH_KEYS else value)
        return words

    def _output(self, name: str, stage: StageConfig, said: str, value: Any, task: int) -> Any:
        """What stage NAME writes for @NAME; any other value as it is."""
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        if value[1:] not in stage.after:
            after = ", ".join(stage.after) or "nothing"
            raise UserError(f"recipe.stages.{name}.settings: {said}, but the stage comes after {after}")
        other = self.found[value[1:]]
        return str(other.outputs[task] if other.sweep else other.output)

    def _model(self, name: str, key: str, model: str) -> ModelConfig:
        if model not in self.recipe.models:
            known = ", ".join(self.recipe.models)
            raise UserError(f"recipe.stages.{name}.models: {key}: {model} is none of recipe.models: {known}")
        return self.recipe.models[model]


def ranks_per_node(cluster: ClusterConfig) -> int:
    """Processes that share a node: one for each GPU, or as many as the cluster says."""
    return cluster.ranks_per_node or cluster.gpus_per_node or 1


def _layout_settings(command: str, layout: LayoutConfig) -> dict[str, str]:
    if command not in MICRO_BATCH_KEYS:
        return {}
    settings: dict[str, Any] = {
        "parallel.tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "parallel.pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        MICRO_BATCH_KEYS[command]: layout.micro_batch_size,
    }
    if layout.sequence_parallel:
        settings["parallel.sequence_parallel"] = True
    if layout.recompute and command == "train":
        settings["trainer.recompute"] = True
    return {key: written(value) for key, value in settings.items()}


def without_unneeded(stages: list[Stage]) -> list[Stage]:
    """Stages that only feed others which need not run need not run either."""
    read = {name for stage in stages for name in stage.after}
    found: list[Stage] = []
    wanted: set[str] = set()
    for stage in reversed(stages):
        if stage.state == "submitted" and stage.name in read and stage.name not in wanted:
            stage = replace(stage, state="unneeded")
        if stage.state == "submitted":
            wanted |= set(stage.after)
        found.append(stage)
    return found[::-1]
