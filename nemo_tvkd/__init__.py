"""Preference distillation (TVKD, DRDO) as alignment algorithms on NVIDIA NeMo and Megatron-Core."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_tvkd.interface import evaluate, score, train
    from nemo_tvkd.losses.methods import METHODS

__version__ = "0.1.0"
__all__ = ["METHODS", "__version__", "evaluate", "score", "train"]

PUBLIC = {"METHODS": "losses.methods", "evaluate": "interface", "score": "interface", "train": "interface"}
"""Names of the Python interface and the modules that are imported when one is first used."""

# NeMo depends on the old name of a package, which torch then complains of in every process.
warnings.filterwarnings("ignore", message="The pynvml package is deprecated")


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
