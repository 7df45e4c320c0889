"""The run recorder: writes a run's log and sends its lines to the trackers."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from vmae_data.storage import commit_bytes
from vmae_train.runs.layout import LOG
from vmae_train.runs.log import LogSpec, read_log
from vmae_train.runs.trackers import open_trackers

__all__ = ["RunRecorder"]


class RunRecorder:
    """Records a run that starts or resumes at `step`. Lines after that step are removed, so that no step is there twice.

    Use as a context manager. Raises MisuseError and VmaeError as `open_trackers` does.
    """

    def __init__(self, run: Path, spec: LogSpec, *, kind: str, step: int, recipe: dict[str, Any]) -> None:
        path = run / LOG
        self.lines = [line for line in read_log(run) if line["step"] <= step] if step else []
        if path.exists():
            commit_bytes(path, b"".join(msgspec.json.encode(line) + b"\n" for line in self.lines))
        self._file = path.open("ab")
        self._trackers = open_trackers(spec, run, kind=kind, step=step, past=self.lines, recipe=recipe)

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()
        self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(line)

    def warn(self, step: int, name: str, text: str) -> None:
        self.write({"kind": "warning", "step": step, "name": name, "text": text})

    def has_warning(self, **fields: str) -> bool:
        """Whether the log has a warning with these fields, from this start or an earlier one."""
        warnings = (line for line in self.lines if line["kind"] == "warning")
        return any(all(line.get(key) == value for key, value in fields.items()) for line in warnings)

    def sync(self) -> None:
        """Put the log on the disk. Before a checkpoint: the log must not be older than the checkpoint."""
        os.fsync(self._file.fileno())
