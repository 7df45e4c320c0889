"""Progress of long work on stderr: a bar in a terminal, plain lines without one, JSON lines, or nothing."""

from __future__ import annotations

import sys
import time
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ProgressBar", "ProgressStyle", "announce"]

PLAIN_SECONDS = 5.0  # between two lines


class ProgressStyle(Enum):
    AUTO = "auto"
    QUIET = "quiet"
    JSON = "json"


def announce(work: str, style: ProgressStyle) -> None:
    """Print what takes the next seconds, before work that shows no progress of its own, or none at once."""
    if style is ProgressStyle.AUTO:
        print(f"{work} …", file=sys.stderr, flush=True)


class ProgressBar:
    """Progress of `total` units of work, `start` of them done earlier. Use as a context manager."""

    def __init__(self, what: str, total: int, style: ProgressStyle = ProgressStyle.AUTO, start: int = 0) -> None:
        self.what, self.total, self.done, self.start = what, total, start, start
        self.status = ""  # shown after the numbers
        self._style = style
        self._started_at = self._printed_at = time.monotonic()
        self._rich: Progress | None = None
        if style is ProgressStyle.AUTO and sys.stderr.isatty():
            self._rich = _new_bar()
            self._rich.start()
            self._rich.add_task(what, total=total, completed=start, status="", rate="–")
        elif style is ProgressStyle.AUTO and start < total:  # the first unit may take minutes
            print(f"{what}: {start} of {total} …", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif error is None and self.done > self.start:
            self._print()

    def seconds(self) -> float:
        """Time since the start; never 0."""
        return max(1e-9, time.monotonic() - self._started_at)

    def rate(self) -> float:
        """Units per second in this run."""
        return (self.done - self.start) / self.seconds()

    def advance(self, count: int = 1, status: str | None = None) -> None:
        """Add finished units, and replace the status if one is passed."""
        self.done += count
        if status is not None:
            self.status = status
        if self._rich is not None:
            task = self._rich.task_ids[0]
            self._rich.update(task, completed=self.done, status=self.status, rate=f"{self.rate():.1f}")
        elif time.monotonic() - self._printed_at >= PLAIN_SECONDS:
            self._print()

    def print_note(self, text: str, *, label: str = "note") -> None:
        """Print a line without disturbing the bar. `label` is "note" or "warning"."""
        if self._rich is not None:
            self._rich.console.print(f"{label}: {text}", markup=False, highlight=False)
        elif self._style is ProgressStyle.JSON:
            _print_json({"remark": text if label == "note" else f"{label}: {text}"})
        elif self._style is ProgressStyle.AUTO:
            print(f"{label}: {text}", file=sys.stderr, flush=True)

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        rate = self.rate()
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        if self._style is ProgressStyle.JSON:
            _print_json(
                {
                    "progress": self.what,
                    "done": self.done,
                    "total": self.total,
                    "rate": round(rate, 3),
                    "left_seconds": round(left, 1) if rate > 0 else None,
                    "note": self.status,
                }
            )
        elif self._style is ProgressStyle.AUTO:
            parts = [f"{self.what}: {self.done} of {self.total}", f"{rate:.1f}/s", f"{left:.0f} s left", self.status]
            print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
        refresh_per_second=5,
    )


def _print_json(line: dict[str, object]) -> None:
    import msgspec  # here: the doctor reports that it is missing

    print(msgspec.json.encode(line).decode(), file=sys.stderr, flush=True)
