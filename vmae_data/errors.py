"""Every error that a user may see. Its text is one line: what, found, expected, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = [
    "NO_THREAD",
    "DataError",
    "MisuseError",
    "NewerFormatError",
    "NoRangesError",
    "NotFoundError",
    "RecipeError",
    "ReplacedError",
    "ReportedElsewhere",
    "SampleError",
    "SourceError",
    "StopRequested",
    "StoreError",
    "UnusablePathError",
    "VmaeError",
    "resumable",
]

# Python's error when the system starts no more threads: a fault of this machine, not of what it works on.
NO_THREAD = "can't start new thread"


class VmaeError(Exception):
    """The base class. The command line prints its text and exits with its status."""

    exit_status = 1


class MisuseError(VmaeError):
    """A path, key or value of the command can't work."""

    exit_status = 2


class RecipeError(MisuseError):
    """A recipe or a `--set` can't be read, or its values contradict each other."""


class DataError(VmaeError):
    """Shards, an index or a checkpoint are damaged, or are not what was expected."""


class NewerFormatError(DataError):
    """A newer version of this program wrote the data."""


class NotFoundError(DataError, MisuseError):
    """A path names nothing: the data is missing, so the command can't work."""

    exit_status = 2


class UnusablePathError(DataError, MisuseError):
    """A path that exists, but is no file that can be opened: a folder, a pipe, a device, or not permitted."""

    exit_status = 2


class ReplacedError(DataError):
    """An object was replaced by another since it was opened."""


class NoRangesError(DataError):
    """A web server gives complete files only, no ranges of bytes."""


class StoreError(VmaeError):
    """A store did not answer, or answered wrongly, until the time limit. The work stops; it can resume later."""


class SourceError(VmaeError):
    """One source video gives no sample. It is counted by `reason` and never stops a build.

    Arguments are positional, so that the error survives pickling between processes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class SampleError(DataError):
    """One sample of a shard can't be read. It keeps its position in the batch, with weight 0."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"sample {self.key}: {self.detail}"


class ReportedElsewhere(VmaeError):
    """Another process of this command failed and printed why. This one exits silently with the same status."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class StopRequested(BaseException):
    """A signal asked the command to stop. Not an Exception, so that no `except Exception` catches it."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status
        self.saved = ""  # what the same command continues from; empty if it starts afresh


@contextmanager
def resumable(saved: Callable[[], str]) -> Iterator[None]:
    """Around work that the same command continues after a signal.

    `saved` says after the signal what is kept, in a sentence without a full stop. Of nested ones the innermost counts.
    """
    try:
        yield
    except StopRequested as stopped:
        if not stopped.saved:
            with suppress(VmaeError, OSError):
                stopped.saved = saved()
        raise
