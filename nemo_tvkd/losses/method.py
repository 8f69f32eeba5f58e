"""A method: its loss, its settings, and a declaration of what it reads. Imports no torch."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nemo_tvkd.losses.reads import POLICY, Column, Quantity, Reads

if TYPE_CHECKING:
    from torch import Tensor


def _none(config: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        summary: one line for --help.
        loss: "module.function" in nemo_tvkd/losses, or "package.module:function" elsewhere. Its arguments are the
            contract: each is one of `reads` or a field of `config`. It returns ([B] losses, metrics of [B]); the
            module's METRICS names the metrics in their order, which every rank knows.
        config: the dataclass of its settings.
        reads: settings -> what each argument reads; the arguments that these settings leave out are None by default.
        rows: "pairs" or "examples".
        per_token: whether the loss is divided by the number of trained tokens (else by the number of rows).
        spread: metrics whose standard deviation over rows is reported too.
        correlations: names of correlations over rows, each of two metrics (both in `spread`).
        reward_model: whether what it trains is a reward model, and exported as one.
        check: settings -> warnings about what they do that their names do not say.
        choice: settings -> the "module.function" that gives [K] summed losses, one of each of the K models of the read
            with `every`: the one with the least over the global batch enters the loss. "": all of them enter.

    Raises (of `check`):
        UserError: settings that contradict each other.
    """

    summary: str
    loss: str
    config: type
    reads: Callable[[Any], Reads]
    rows: str = "pairs"
    per_token: bool = False
    spread: tuple[str, ...] = ()
    correlations: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    reward_model: bool = False
    check: Callable[[Any], list[str]] = _none
    choice: Callable[[Any], str] = lambda config: ""

    @property
    def pairs(self) -> bool:
        """Whether it trains on preference pairs."""
        return self.rows == "pairs"

    @cached_property
    def function(self) -> "Callable[..., tuple[Tensor, dict[str, Tensor]]]":
        """The loss itself; imports torch."""
        return _function(self.loss)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names that the loss reports."""
        return import_module(self.function.__module__).METRICS

    def compute(self, terms: "Mapping[str, Tensor]", config: Any) -> "tuple[Tensor, dict[str, Tensor]]":
        """([B] losses, metrics) from the arguments that `reads` names."""
        return self.function(**terms, **self.settings(self.function, config))

    def errors(self, terms: "Mapping[str, Tensor]", config: Any) -> "Tensor":
        """[K] summed losses by `choice`."""
        function = _function(self.choice(config))
        return function(**terms, **self.settings(function, config))

    def settings(self, function: Callable[..., Any], config: Any) -> dict[str, Any]:
        """The fields of the configuration that a function takes."""
        known = {each.name for each in fields(self.config)}
        return {name: getattr(config, name) for name in inspect.signature(function).parameters if name in known}

    def heads(self, config: Any) -> set[str]:
        """The outputs ("lm", "reward") that the policy must have."""
        reads = self.reads(config).values()
        return {read.what.head for read in reads if POLICY in read.models and read.what.head}

    def frozen(self, config: Any) -> dict[str, list[Quantity]]:
        """What is asked of frozen models, by name."""
        asked: dict[str, list[Quantity]] = {}
        for read in self.reads(config).values():
            for name in read.frozen:
                quantities = asked.setdefault(name, [])
                if read.what not in quantities:
                    assert not any(read.what.name == other.name for other in quantities), "one name, one quantity"
                    quantities.append(read.what)
        return asked

    def several(self, config: Any) -> set[str]:
        """Names of frozen models of which there may be several."""
        return {name for read in self.reads(config).values() if read.every for name in read.frozen}

    def columns(self, config: Any) -> list[Column]:
        """The columns of the data that it reads."""
        return [read.what for read in self.reads(config).values() if isinstance(read.what, Column)]


def _function(name: str) -> Callable[..., Any]:
    elsewhere, colon, function = name.rpartition(":")
    module = elsewhere if colon else f"{__package__}.{name.rpartition('.')[0]}"
    return getattr(import_module(module), function.rpartition(".")[2])
