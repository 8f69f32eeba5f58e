"""Reductions over sharded tensors. Process groups are arguments; torch is the only import."""
