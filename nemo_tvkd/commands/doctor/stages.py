"""What `doctor` says of one stage of a recipe: its settings against the models, the data and the cluster."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from omegaconf import ListConfig, OmegaConf

from nemo_tvkd.checkpoints.hf import check_architecture, check_layout, padded_vocab_size
from nemo_tvkd.cluster.recipe import Stage, Submission
from nemo_tvkd.commands.doctor.check import Check
from nemo_tvkd.commands.doctor.models import Found, how_to_fetch, published, there
from nemo_tvkd.commands.doctor.parameters import Layout
from nemo_tvkd.commands.doctor.sample import Sample, count_rows, read_sample
from nemo_tvkd.config.cluster import ModelConfig
from nemo_tvkd.config.paths import given_paths, path_list
from nemo_tvkd.config.values import check_values
from nemo_tvkd.data.hub import HUB_ID
from nemo_tvkd.errors import UserError
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.prepare.frozen import frozen_sections
from nemo_tvkd.prepare.training import check_batches, check_output

MODEL_KEYS = ("student.path", "teacher.path", "reference.path", "oracle.path", "score.model", "checkpoint", "reference")
OWN_MODEL = {"train": "student.path", "score": "score.model", "evaluate": "checkpoint"}
"""The model that a computing command is about."""


class StageChecks:
    """The checks of one stage; `all` gives them in the order of a table."""

    def __init__(self, submission: Submission, stage: Stage, task: int = 0) -> None:
        """Of an array its first task, or another one."""
        self.submission, self.stage, self.task = submission, stage, task
        self._configs: dict[int, Any] = {}

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
            config = self._config_of(task)
            try:
                check_output(config)
            except UserError as error:
                raise UserError(f"{error}; --from {self.stage.name} sets it aside") from error
        return "none yet, or of this run"

    def check(self, name: str, check: Callable[[], Check | str]) -> Check:
        """What a check says; a UserError is a failure."""
        full = self.name(name)
        try:
            said = check()
        except UserError as error:
            return Check(full, "FAIL", str(error))
        return said if isinstance(said, Check) else Check(full, "OK", said)

    def name(self, check: str) -> str:
        """What the table calls a check."""
        return f"{self.stage.name}/{self.task}: {check}" if self.task else f"{self.stage.name}: {check}"

    def _computing(self) -> list[tuple[str, Callable[[], Check | str]]]:
        if self.stage.command not in OWN_MODEL:
            return []
        checks: list[tuple[str, Callable[[], Check | str]]] = [("layout", self._layout), ("batch", self._batch)]
        if self.stage.command != "train":
            del checks[1]
        checks += [("settings", self._settings), ("tokenizer", self._tokenizer), ("data", self._data)]
        if self.stage.command != "evaluate" and given_paths(self.config.data.validation, "data.validation"):
            checks.append(("data.validation", self._validation))
        return checks

    def _settings(self) -> str:
        """What the stage's keys say together, and the heads that they ask of models."""
        from nemo_tvkd.commands.doctor.together import check_heads_of, check_together

        check_together(self)
        check_heads_of(self)
        return "fit together"

    @cached_property
    def config(self) -> Any:
        return self._config_of(self.task)

    def _config_of(self, task: int) -> Any:
        if task not in self._configs:
            self._configs[task] = self.stage.config(task)
        return self._configs[task]

    def _configuration(self) -> str:
        for task in range(len(self.stage.outputs)):
            check_values(self._config_of(task))
        return f"nemo-tvkd {self.stage.command}" + (f", {len(self.stage.sweep)} tasks" if self.stage.sweep else "")

    def _paths(self) -> Iterator[Check]:
        """Models that are there already, or whose first form is."""
        for key in self.keys:
            name = self.name(key)
            try:
                yield self._path_check(name, key, self.found(key))
            except UserError as error:
                yield Check(name, "FAIL", str(error))

    def _path_check(self, name: str, key: str, found: Found) -> Check:
        if found.checkpoint is not None:
            return Check(name, "OK", str(found.checkpoint.path))
        if self._pending(key):
            return Check(name, "OK", f"{self._value(key)}, which an earlier stage writes")
        model, path = self._origin(key), self._value(key)
        text = f"{path} is not on this machine; sizes are those of {model.architecture or model.path}"
        fetched = not self.stage.cluster.offline and HUB_ID.fullmatch(path)  # by the job itself
        return Check(name, "WARN" if fetched else "FAIL", text, how_to_fetch(path))

    def _value(self, key: str) -> str:
        return str(OmegaConf.select(self.config, key) or "")

    @property
    def keys(self) -> list[str]:
        """Keys that name a model which this stage reads."""
        known = [key for key in dict.fromkeys([*self.stage.models, *MODEL_KEYS]) if self._is_read(key)]
        each = [name for key in known for name in self._each(key)]
        return [key for key in each if key in self.stage.models or self._path(key)]

    def _each(self, key: str) -> list[str]:
        """The key, or that of every entry where it holds a list (checkpoints that `evaluate` compares)."""
        value = OmegaConf.select(self.config, key)
        return [f"{key}[{i}]" for i in range(len(value))] if isinstance(value, ListConfig) else [key]

    @property
    def own_key(self) -> str:
        """What names the model whose tokenizer reads the stage's data."""
        return self._each(OWN_MODEL[self.stage.command])[0]

    def _is_read(self, key: str) -> bool:
        """A training method leaves alone what it does not need, whatever is set."""
        section = key.partition(".")[0]
        if self.stage.command != "train" or section not in frozen_sections(self.config):
            return True
        return section in METHODS[self.config.algorithm.name].frozen(self.config.algorithm)

    @property
    def running(self) -> list[str]:
        """Those of `keys` whose models run in the job; a model whose scores are stored does not."""
        sections = frozen_sections(self.config) if self.stage.command == "train" else ()
        cached = {f"{name}.path" for name in sections if self._mode(name) != "online"}
        return [key for key in self.keys if key.partition("[")[0] not in cached]

    def _mode(self, need: str) -> str:
        return str(OmegaConf.select(self.config, f"{need}.mode"))

    def _path(self, key: str) -> str | None:
        value = OmegaConf.select(self.config, key)
        return value if isinstance(value, str) and value else None

    def _origin(self, key: str) -> ModelConfig:
        """The recipe's model that a key names, or was before earlier stages trained it; else the path alone."""
        return self.stage.models.get(key.partition("[")[0]) or ModelConfig(path=self._value(key))

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
        checkpoint = None if self._pending(key) else there(value, key)
        start = checkpoint or there(model.path, key)
        if start is not None:
            return Found(start.config, checkpoint, start)
        if not model.architecture:
            raise UserError(f"{key}: {model.path} is not on this machine: {how_to_fetch(model.path)}")
        return Found(published(model), None, None)

    @property
    def own(self) -> Found:
        return self.found(self.own_key)

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
        for key in self.running:
            check_architecture(self.found(key).config, key)
            check_layout(self.found(key).config, key, layout.tensor, layout.pipeline)
        text = f"TP{layout.tensor} x PP{layout.pipeline} x DP{layout.data} on {self.stage.nodes} nodes"
        if layout.tensor > self.stage.ranks_per_node:
            advice = "tensor parallelism across nodes is slow: lower it and raise pipeline_model_parallel_size"
            return Check(self.name("layout"), "WARN", text, advice)
        return text

    def _batch(self) -> str:
        layout, trainer = self.layout, self.config.trainer
        check_batches(self.config, layout.data)
        steps = trainer.global_batch_size // (trainer.micro_batch_size * layout.data)
        return (
            f"{trainer.global_batch_size} = {trainer.micro_batch_size} x {layout.data} replicas x {steps} micro-batches"
        )

    def _tokenizer(self) -> Check | str:
        encoder = self.encoder
        name = self.name("tokenizer")
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

    @cached_property
    def encoder(self) -> Any:
        """The stage's tokenizer and template; those of the first model where an earlier stage passes them on."""
        from nemo_tvkd.prepare.encoder import Encoder

        key = self.own_key
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
        encoder = self.encoder
        if encoder is None:
            return None
        return read_sample(*self._files(), encoder, self.config.data)

    def _files(self, validation: bool = False) -> tuple[tuple[str, ...], str, bool]:
        """The files of the stage's rows (of those that it reads besides), their key, and whether rows are pairs."""
        key = "data.validation" if self.stage.command == "evaluate" or validation else "data.train"
        pairs = self.stage.command != "train" or METHODS[self.config.algorithm.name].pairs
        return tuple(path_list(OmegaConf.select(self.config, key), key)), key, pairs

    def _validation(self) -> Check | str:
        files, encoder = self._files(validation=True), self.encoder
        if encoder is None:
            return f"{count_rows(*files)} rows"
        return self._said(self.name("data.validation"), read_sample(*files, encoder, self.config.data))

    def _data(self) -> Check | str:
        name = self.name("data")
        sample = self.sample()
        if sample is None:
            return Check(
                name, "WARN", f"{count_rows(*self._files())} rows; their lengths are not known without a tokenizer"
            )
        return self._said(name, sample)

    def _said(self, name: str, sample: Sample) -> Check | str:
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
