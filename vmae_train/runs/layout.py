"""The files of a run's directory and of a checkpoint's, by name.

A checkpoint is complete when its MARKER is there: it is written last and removed first.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "DESCRIPTION",
    "EMA_FILE",
    "EVALUATION",
    "LOG",
    "MARKER",
    "MAX_STEPS",
    "OPTIMIZER",
    "RUN",
    "WEIGHTS",
    "checkpoint_name",
    "complete_checkpoints",
    "newest_checkpoint",
    "step_of",
]

RUN, LOG, EVALUATION, BEST, CHECKPOINTS = "run.json", "log.jsonl", "evaluation.json", "best.json", "checkpoints"
WEIGHTS, DESCRIPTION, MARKER = "model.safetensors", "model.json", "state.json"
OPTIMIZER, EMA_FILE = "optimizer.safetensors", "ema.safetensors"

MAX_STEPS = 999_999_999  # a checkpoint's name has nine digits: names sort as steps do


def checkpoint_name(step: int) -> str:
    """The name of the directory of a step's checkpoint."""
    return f"step-{step:09d}"


def step_of(name: str) -> int:
    """The step of a checkpoint's directory."""
    return int(name.removeprefix("step-"))


def complete_checkpoints(run: Path) -> list[Path]:
    """The directories of a run's complete checkpoints, oldest first."""
    complete = [folder for folder in (run / CHECKPOINTS).glob("step-*") if (folder / MARKER).is_file()]
    return sorted(complete, key=lambda folder: folder.name)


def newest_checkpoint(run: Path) -> Path | None:
    """The directory of a run's newest complete checkpoint, or None."""
    return next(reversed(complete_checkpoints(run)), None)
