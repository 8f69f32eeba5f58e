"""Checkpoints seen from outside: Hugging Face folders and run folders, without NeMo."""
