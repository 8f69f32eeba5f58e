"""The training loop around NeMo: trainer, callbacks, checkpoints, records."""
