"""Preference distillation (TVKD, DRDO) as alignment algorithms on NVIDIA NeMo and Megatron-Core."""

import warnings

__version__ = "0.1.0"

# NeMo depends on the old name of a package, which torch then complains of in every process.
warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
