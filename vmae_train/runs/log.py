"""What a run says of itself: a JSON line at every logging step, and the table of its start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes
from vmae_train.runs.layout import LOG

__all__ = ["LogSpec", "RunLog", "print_start", "read_log"]


class LogSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often numbers are fetched from the device and written, and where beside RUN/log.jsonl.

    `tensorboard` writes to RUN/tensorboard, `wandb` to RUN/wandb and, `online`, to its server.
    """

    every_steps: int = 50
    tensorboard: bool = False
    wandb: Literal["online", "offline"] | None = None
    wandb_project: str = "vmae"
    wandb_name: str | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps = {self.every_steps}: must be 1 or more")


class RunLog:
    """RUN/log.jsonl. Going on from a step takes back the lines after it, so that no step stands twice."""

    def __init__(self, run: Path, *, step: int) -> None:
        path = run / LOG
        self.lines = [line for line in read_log(run) if line["step"] <= step]
        if path.exists():
            commit_bytes(path, b"".join(msgspec.json.encode(line) + b"\n" for line in self.lines))
        self._file = path.open("ab")

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Before a checkpoint: what it continues from must be on the disk too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_log(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Every whole line of a run's log, or those of a kind (train, validation, warning); one that a kill cut short, or that is not ours, is left out."""
    path = run / LOG
    if not path.exists():
        return []
    lines = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = msgspec.json.decode(raw, type=dict[str, Any])
        except NOT_JSON:
            continue
        if isinstance(line.get("step"), int) and isinstance(line.get("kind"), str) and kind in (None, line["kind"]):
            lines.append(line)
    return lines


def is_validated(run: Path, step: int) -> bool:
    """Whether the log holds the score of a step."""
    return any(line["step"] == step and line["kind"] == "validation" for line in read_log(run))


def print_start(title: str, rows: dict[str, str], *, quiet: bool) -> None:
    """The resolved values of a run, as a table on stderr."""
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(file=sys.stderr, highlight=False).print(table)
