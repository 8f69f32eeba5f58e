"""Everything that is not about learning: devices, launching, callbacks, checkpoints."""
