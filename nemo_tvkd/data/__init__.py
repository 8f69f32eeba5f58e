"""Pairs in, batches out: reading rows, chat templates, packing."""
