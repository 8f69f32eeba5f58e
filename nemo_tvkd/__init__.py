"""Preference distillation (TVKD, DRDO) as alignment algorithms on NVIDIA NeMo and Megatron-Core."""

__version__ = "0.1.0"
