"""What `doctor` says of one stage of a recipe: its settings against the models, the data and the cluster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tvkd.cluster.config import ModelConfig
from nemo_tvkd.cluster.recipe import Stage, Submission
from nemo_tvkd.cluster.tiny import architecture
from nemo_tvkd.doctor.check import Check
from nemo_tvkd.doctor.parameters import Layout
from nemo_tvkd.doctor.sample import Sample, count_rows, read_sample
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses import METHODS
from nemo_tvkd.models.hf import Checkpoint, check_architecture, check_layout, find_checkpoint, padded_vocab_size
from nemo_tvkd.prepare import check_batches, check_output
from nemo_tvkd.values import check_values, path_list

MODEL_KEYS = ("student.path", "teacher.path", "reference.path", "oracle.path", "score.model", "checkpoint")
OWN_MODEL = {"train": "student.path", "score": "score.model", "evaluate": "checkpoint"}
"""The model that a computing command is about."""


@dataclass(frozen=True)
class Found:
    """A model of a stage."""

    config: Any
    """transformers' config."""
    checkpoint: Checkpoint | None
    """What the stage reads, or None while an earlier stage has yet to write it."""
    start: Checkpoint | None
    """What it is or descends from; None where that is not on this machine."""


class StageChecks:
    """The checks of one stage; `all` gives them in the order of a table."""

    def __init__(self, submission: Submission, stage: Stage) -> None:
        self.submission, self.stage = submission, stage

    def all(self) -> Iterator[Check]:
        """Nothing further is looked at where the configuration itself is wrong."""
        broken = self.check("configuration", self._configuration)
        yield broken
        if broken.level == "FAIL":
            return
        if (same := self.same_run()).level != "OK":
            yield same
        yield from self._paths()
        for name, check in self._computing():
            yield self.check(name, check)

    def same_run(self) -> Check:
        """Whether what a training stage has written, all or a part, was made with the settings of now."""
        return self.check("output", self._same_run)

    def _same_run(self) -> str:
        for task in range(len(self.stage.outputs) if self.stage.command == "train" else 0):
            try:
                check_output(self.stage.config(task))
            except UserError as error:
                raise UserError(f"{error}; --from {self.stage.name} sets it aside") from error
        return "none yet, or of this run"

    def check(self, name: str, check: Callable[[], Check | str]) -> Check:
        """What a check says; a UserError is a failure."""
        full = f"{self.stage.name}: {name}"
        try:
            said = check()
        except UserError as error:
            return Check(full, "FAIL", str(error))
        return said if isinstance(said, Check) else Check(full, "OK", said)

    def _computing(self) -> list[tuple[str, Callable[[], Check | str]]]:
        if self.stage.command not in OWN_MODEL:
            return []
        checks: list[tuple[str, Callable[[], Check | str]]] = [("layout", self._layout), ("batch", self._batch)]
        if self.stage.command != "train":
            del checks[1]
        return [*checks, ("tokenizer", self._tokenizer), ("data", self._data)]

    @cached_property
    def config(self) -> Any:
        return self.stage.config()

    def _configuration(self) -> str:
        for task in range(len(self.stage.outputs)):
            check_values(self.stage.config(task))
        return f"nemo-tvkd {self.stage.command}" + (f", {len(self.stage.sweep)} tasks" if self.stage.sweep else "")

    def _paths(self) -> Iterator[Check]:
        """Models that are there already, or whose first form is."""
        for key in self.keys:
            name = f"{self.stage.name}: {key}"
            try:
                yield self._path_check(name, key, self.found(key))
            except UserError as error:
                yield Check(name, "FAIL", str(error))

    def _path_check(self, name: str, key: str, found: Found) -> Check:
        if found.checkpoint is not None:
            return Check(name, "OK", str(found.checkpoint.path))
        if self._pending(key):
            return Check(name, "OK", f"{self._value(key)}, which an earlier stage writes")
        model = self._origin(key)
        text = f"{model.path} is not on this machine; sizes are those of {model.architecture}"
        advice = f"`hf download {model.path}` with a network and the same HF_HOME, or recipe.models.*.path=DIRECTORY"
        return Check(name, "FAIL", text, advice)

    def _value(self, key: str) -> str:
        return str(OmegaConf.select(self.config, key) or "")

    @property
    def keys(self) -> list[str]:
        """Keys that name a model which this stage reads."""
        known = [*self.stage.models, *MODEL_KEYS]
        return [key for key in dict.fromkeys(known) if key in self.stage.models or isinstance(self._path(key), str)]

    def _path(self, key: str) -> str | None:
        value = OmegaConf.select(self.config, key)
        return value if isinstance(value, str) and value else None

    def _origin(self, key: str) -> ModelConfig:
        """The recipe's model that a key names, or was before earlier stages trained it; else the path alone."""
        return self.stage.models.get(key) or ModelConfig(path=self._value(key))

    def _pending(self, key: str) -> bool:
        """Whether a stage that has yet to run, or to go on, writes what the key names."""
        stages = [stage for stage in self.submission.stages if stage.state == "submitted"]
        return self._value(key) in {str(output) for stage in stages for output in stage.outputs}

    def found(self, key: str) -> Found:
        """The model that a key names.

        Raises:
            UserError: there is no model, nor a published architecture of its name.
        """
        model, value = self._origin(key), self._value(key)
        checkpoint = None if self._pending(key) else _there(value, key)
        start = checkpoint or _there(model.path, key)
        if start is not None:
            return Found(start.config, checkpoint, start)
        if not model.architecture:
            raise UserError(f"{key}: {value} is not on this machine")
        return Found(published(model), None, None)

    @property
    def own(self) -> Found:
        return self.found(OWN_MODEL[self.stage.command])

    @property
    def layout(self) -> Layout:
        parallel = self.config.parallel
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        ranks = self.stage.nodes * self.stage.ranks_per_node
        if ranks % (tensor * pipeline):
            raise UserError(
                f"{self.stage.nodes} nodes x {self.stage.ranks_per_node} ranks are no multiple of "
                f"parallel.tensor_model_parallel_size x pipeline_model_parallel_size = {tensor * pipeline}"
            )
        return Layout(tensor, pipeline, ranks // (tensor * pipeline), bool(parallel.sequence_parallel))

    def _layout(self) -> Check | str:
        layout = self.layout
        check_architecture(self.own.config, OWN_MODEL[self.stage.command])
        for key in self.keys:
            check_layout(self.found(key).config, key, layout.tensor, layout.pipeline)
        text = f"TP{layout.tensor} x PP{layout.pipeline} x DP{layout.data} on {self.stage.nodes} nodes"
        if layout.tensor > self.stage.ranks_per_node:
            advice = "tensor parallelism across nodes is slow: lower it and raise pipeline_model_parallel_size"
            return Check(f"{self.stage.name}: layout", "WARN", text, advice)
        return text

    def _batch(self) -> str:
        layout, trainer = self.layout, self.config.trainer
        check_batches(self.config, layout.data)
        steps = trainer.global_batch_size // (trainer.micro_batch_size * layout.data)
        return (
            f"{trainer.global_batch_size} = {trainer.micro_batch_size} x {layout.data} replicas x {steps} micro-batches"
        )

    def _tokenizer(self) -> Check | str:
        encoder = self._encoder()
        name = f"{self.stage.name}: tokenizer"
        if encoder is None:
            return Check(name, "WARN", "not on this machine: templates and lengths are not checked")
        template, config = encoder.template.name, self.own.config
        tokens = f"end {encoder.tokenizer.eos_token}, pad {encoder.tokenizer.pad_token}"
        padded = padded_vocab_size(config)
        vocabulary = f"{len(encoder.tokenizer)} entries in a vocabulary of {config.vocab_size} (padded {padded})"
        text = f"{vocabulary}; {tokens}; template {template}"
        if template == "plain" and self.own.checkpoint is not None:
            advice = "data.chat_template=llama3|mistral|FILE, data.end_token and data.pad_token give a base model one"
            return Check(name, "WARN", f"{text}: no chat template", advice)
        return text

    def _encoder(self) -> Any:
        """The stage's tokenizer and template; those of the first model where an earlier stage passes them on."""
        from nemo_tvkd.encoder import Encoder

        key = OWN_MODEL[self.stage.command]
        start = self.own.start
        if start is None:
            return None
        data = self.config.data.copy()
        if self.own.checkpoint is None:
            model = self._origin(key)
            for name in ("chat_template", "end_token", "pad_token"):
                if getattr(model, name) and data[name] in ("", "auto"):
                    data[name] = getattr(model, name)
        tokenizer = {"train": "student.tokenizer", "score": "score.tokenizer", "evaluate": "tokenizer"}[
            self.stage.command
        ]
        given = self._value(tokenizer) or (self._origin(key).tokenizer if self.own.checkpoint is None else "")
        return Encoder.build(start, given, data, tokenizer)

    def sample(self) -> Sample | None:
        """Some of the stage's rows, tokenised; None without a tokenizer."""
        encoder = self._encoder()
        if encoder is None:
            return None
        return read_sample(*self._files, encoder, self.config.data)

    def local_files(self) -> tuple[str, ...]:
        """The files of a computing stage's rows, as they were given."""
        return self._files[0] if self.stage.command in OWN_MODEL else ()

    @property
    def _files(self) -> tuple[tuple[str, ...], str, bool]:
        """The files of the stage's rows, their key, and whether rows are pairs."""
        key = "data.validation" if self.stage.command == "evaluate" else "data.train"
        pairs = self.stage.command != "train" or METHODS[self.config.algorithm.name].pairs
        return tuple(path_list(OmegaConf.select(self.config, key), key)), key, pairs

    def _data(self) -> Check | str:
        sample = self.sample()
        name = f"{self.stage.name}: data"
        if sample is None:
            return Check(
                name, "WARN", f"{count_rows(*self._files)} rows; their lengths are not known without a tokenizer"
            )
        text = (
            f"{sample.rows} rows, {sample.mean:.0f} tokens each on average, longest {sample.longest}, "
            f"{100 * sample.truncated:.0f} % cut to length (of {sample.read} rows read)"
        )
        if sample.bad:
            skipped = self.config.data.on_bad_row == "skip"
            found = f"{text}; {len(sample.bad)} bad rows, first {sample.bad[0]}"
            advice = "they are left out: data.on_bad_row=skip" if skipped else "data.on_bad_row=skip leaves them out"
            return Check(name, "WARN" if skipped else "FAIL", found, advice)
        return text


def _there(path: str, key: str) -> Checkpoint | None:
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
