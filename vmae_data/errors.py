"""Every error that a user may see. One line each: what was found, what was wanted, what to do."""

from __future__ import annotations

__all__ = [
    "DataError",
    "MisuseError",
    "NewerFormatError",
    "NotThereError",
    "RecipeError",
    "ReplacedError",
    "ReportedElsewhere",
    "SampleError",
    "SourceError",
    "StopRequested",
    "StoreError",
    "VmaeError",
]


class VmaeError(Exception):
    """The root: its text is the one line that the command line prints."""

    exit_status = 1


class MisuseError(VmaeError):
    """The command was called with something that can't work: a wrong path, key or value."""

    exit_status = 2


class RecipeError(MisuseError):
    """A recipe, or a `--set`, that can't be read or doesn't hold together."""


class DataError(VmaeError):
    """Shards, an index or a checkpoint that are not what they should be."""


class NewerFormatError(DataError):
    """Written by a newer version of this program."""


class NotThereError(DataError, MisuseError):
    """A path that names nothing: data that is missing, and so a command that can't work."""

    exit_status = 2


class ReplacedError(DataError):
    """An object that is not the one any more which was opened."""


class StoreError(VmaeError):
    """A store that does not answer, or not rightly, for longer than is waited for: the work stops, and can go on later."""


class SourceError(VmaeError):
    """One source video that gives nothing; it is counted by `reason` and never stops a build.

    Args are positional so that the error survives pickling between processes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class SampleError(DataError):
    """One sample of a shard that can't be read; it keeps its place with weight 0."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"sample {self.key}: {self.detail}"


class ReportedElsewhere(VmaeError):
    """Another process of the same command has failed and says why; this one ends with the same status, and silently."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class StopRequested(BaseException):
    """A signal asked the command to stop; not an Exception, so that no boundary swallows it."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status
