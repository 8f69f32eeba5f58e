"""Recipes as chains of Slurm jobs: `nemo-tvkd submit` and `nemo-tvkd status`."""
