"""Progress of long work, to stderr: a bar in a terminal, plain lines without one, JSON lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Meter", "ProgressStyle", "meter"]

PLAIN_SECONDS = 5.0


class ProgressStyle(Enum):
    AUTO = "auto"
    QUIET = "quiet"
    JSON = "json"


class Meter:
    """One piece of work with a known total. `note` says what else a person wants to know."""

    def __init__(self, what: str, total: int, style: ProgressStyle, start: int = 0) -> None:
        self.what, self.total, self.done, self.start = what, total, start, start
        self.note = ""
        self._style = style
        self._started_at = time.monotonic()
        self._spoke_at = self._started_at
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if style is ProgressStyle.AUTO and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                refresh_per_second=5,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=start, note="", rate="–")

    def seconds(self) -> float:
        """Time since the start; never 0."""
        return max(1e-9, time.monotonic() - self._started_at)

    def rate(self) -> float:
        """Units a second since the start, not counting what was done before."""
        return (self.done - self.start) / self.seconds()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None:
            self.note = note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=self.note, rate=f"{self.rate():.1f}")
        elif time.monotonic() - self._spoke_at >= PLAIN_SECONDS:
            self._speak()

    def remark(self, text: str) -> None:
        """Say a line beside the progress."""
        if self._bar is not None:
            self._bar.console.print(f"remark: {text}", markup=False, highlight=False)
        elif self._style is ProgressStyle.JSON:
            print(msgspec.json.encode({"remark": text}).decode(), file=sys.stderr, flush=True)
        elif self._style is ProgressStyle.AUTO:
            print(f"remark: {text}", file=sys.stderr, flush=True)

    def close(self, finished: bool) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif finished and self.done > self.start:
            self._speak()

    def _speak(self) -> None:
        self._spoke_at = time.monotonic()
        rate = self.rate()
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        if self._style is ProgressStyle.JSON:
            line = {
                "progress": self.what,
                "done": self.done,
                "total": self.total,
                "rate": round(rate, 3),
                "left_seconds": round(left, 1) if rate > 0 else None,
                "note": self.note,
            }
            print(msgspec.json.encode(line).decode(), file=sys.stderr, flush=True)
        elif self._style is ProgressStyle.AUTO:
            words = [
                f"{self.what}: {self.done} of {self.total}",
                f"{rate:.1f}/s",
                f"{left:.0f} s left",
                self.note,
            ]
            print(", ".join(word for word in words if word), file=sys.stderr, flush=True)


@contextmanager
def meter(what: str, total: int, style: ProgressStyle = ProgressStyle.AUTO, start: int = 0) -> Iterator[Meter]:
    """Show progress while the block runs."""
    shown = Meter(what, total, style, start)
    finished = False
    try:
        yield shown
        finished = True
    finally:
        shown.close(finished)
