"""Optimizer, step, checkpoints and logs: row 18 of the data's way."""
