"""RUN/log.jsonl: a JSON line for every logging step, validation, warning and start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from vmae_data.format import NOT_JSON
from vmae_data.recipes import check_bounds
from vmae_data.storage import read_bytes
from vmae_train.runs.layout import LOG, MAX_STEPS

__all__ = ["LogSpec", "is_validated", "read_log"]


class LogSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often numbers are fetched from the device and logged, and to which trackers they also go.

    `tensorboard` writes to RUN/tensorboard. `wandb` writes to RUN/wandb and, with `online`, to its server.
    """

    every_steps: int = 50  # steps between log lines
    tensorboard: bool = False  # also write TensorBoard files
    wandb: Literal["online", "offline"] | None = None  # also log to Weights & Biases
    wandb_project: str = "vmae"  # project in Weights & Biases
    wandb_name: str | None = None  # name of the run there; none: the run's folder

    def __post_init__(self) -> None:
        check_bounds(self, every_steps=(1, MAX_STEPS))


def read_log(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, all or of one kind (train, validation, warning, start). Damaged lines are skipped."""
    path = run / LOG
    if not path.exists():
        return []
    lines = []
    for raw in read_bytes(path).split(b"\n"):
        try:
            line = msgspec.json.decode(raw, type=dict[str, Any])
        except NOT_JSON:
            continue
        if isinstance(line.get("step"), int) and isinstance(line.get("kind"), str) and kind in (None, line["kind"]):
            lines.append(line)
    return lines


def is_validated(run: Path, step: int) -> bool:
    """Whether the log has the validation score of a step."""
    return any(line["step"] == step for line in read_log(run, "validation"))
