"""Trackers: TensorBoard and Weights & Biases, both optional packages, get the lines of RUN/log.jsonl.

A resumed run continues in the same tracker run, and no step is there twice.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.storage import commit_bytes
from vmae_train.runs.log import LogSpec

__all__ = ["Tracker", "check_trackers", "open_trackers"]

TENSORBOARD, WANDB = "tensorboard", "wandb"
# The run's id at Weights & Biases. It is outside RUN/wandb, whose content belongs to the package.
WANDB_ID = "wandb-id"


class Tracker(Protocol):
    """Receives the lines of a log."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_trackers(spec: LogSpec) -> None:
    """Raises MisuseError if the package of a configured tracker is not installed."""
    configured = {TENSORBOARD: spec.tensorboard, WANDB: spec.wandb is not None}
    for package, is_configured in configured.items():
        if is_configured and find_spec(package) is None:
            raise MisuseError(
                f"log.{package} is set, but {package} is not installed. Run `python -m pip install 'vmae[{package}]'`, or remove the key"
            )


def open_trackers(
    spec: LogSpec, run: Path, *, kind: str, step: int, past: Iterable[dict[str, Any]], recipe: dict[str, Any]
) -> list[Tracker]:
    """The configured trackers of a run that continues after `step`. `past` are its log's lines up to that step.

    Raises MisuseError for a missing package, VmaeError if a tracker can't start.
    """
    check_trackers(spec)
    trackers: list[Tracker] = []
    if spec.tensorboard:
        trackers.append(_TensorBoard(run / TENSORBOARD, kind, step, past))
    if spec.wandb is not None:
        trackers.append(_WeightsAndBiases(spec, run, kind, past, recipe))
    return trackers


def numbers_of(line: dict[str, Any], kind: str) -> dict[str, float]:
    """The finite numbers of a line, by their chart names: train/masked_loss, validation/top1 … A start has none."""
    if line["kind"] == "start":
        return {}
    return {
        f"{line['kind']}/{_chart_name(name, kind)}": float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _chart_name(name: str, kind: str) -> str:
    return "masked_loss" if name == "loss" and kind == "pretrain" else name


class _TensorBoard:
    def __init__(self, folder: Path, kind: str, step: int, past: Iterable[dict[str, Any]]) -> None:
        # Not torch.utils.tensorboard: it needs more packages than scalars do.
        self._event = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._kind = kind
        self._writer = writer.EventFileWriter(str(folder))
        if resumed:  # the reader then drops later steps that an earlier process wrote
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._add(self._event.Event(session_log=start, step=step + 1))
        else:  # configured after the run had started, or on another machine
            for line in past:
                self.write(line)

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)

    def write(self, line: dict[str, Any]) -> None:
        values = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in numbers_of(line, self._kind).items()
        ]
        if values:
            self._add(self._event.Event(summary=self._summary.Summary(value=values), step=line["step"]))
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(
        self, spec: LogSpec, run: Path, kind: str, past: Iterable[dict[str, Any]], recipe: dict[str, Any]
    ) -> None:
        wandb = import_module(WANDB)
        self._kind = kind
        path = run / WANDB_ID
        resumed = path.exists()
        if not resumed:
            commit_bytes(path, secrets.token_hex(8).encode())
        try:
            self._run = wandb.init(
                project=spec.wandb_project,
                name=spec.wandb_name or run.resolve().name,
                id=path.read_text().strip(),
                resume="allow",
                mode=spec.wandb,
                dir=str(run),
                config=recipe,
                settings={"silent": True},
            )
        except wandb.Error as error:
            raise VmaeError(
                f"log.wandb = {spec.wandb}: Weights & Biases can't start ({str(error).splitlines()[0]}). "
                "Run `wandb login`, or set log.wandb=offline and run `wandb sync` later"
            ) from error
        # A run that resumes offline does not learn from the server how far it came: send no line again.
        if not resumed:
            for line in past:
                self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        values = numbers_of(line, self._kind)
        # Steps between the last checkpoint and a kill were sent before, with the same numbers.
        if values and not self._run.step > line["step"]:
            self._run.log(values, step=line["step"])

    def close(self) -> None:
        self._run.finish()
