"""The journal of a command that writes a result for each video: from it the same command resumes.

Its first line says what the results depend on. Then it has a line for each finished video. It is written as videos
finish; the output file is made of it at the end.
"""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from vmae_data.amounts import plural
from vmae_data.errors import DataError, MisuseError, StopRequested
from vmae_data.format import NOT_JSON
from vmae_data.recipes import difference, shorten_digests
from vmae_data.storage import write_error
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import VideoLength

__all__ = ["Entry", "Journal", "JournalRow", "check_suffix"]


Row = TypeVar("Row")


class JournalRow(msgspec.Struct, frozen=True, array_like=True):
    """The output for a window. `data` are its numbers, in the journal's type and byte order."""

    video: str
    start: float | None
    end: float | None
    data: bytes

    @classmethod
    def of(cls, video: str, start: float | None, end: float | None, values: NDArray[Any]) -> JournalRow:
        return cls(video, start, end, np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())

    def values(self, dtype: npt.DTypeLike) -> NDArray[Any]:
        """The numbers, without axes."""
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<"))


class Entry(msgspec.Struct, frozen=True):
    """A finished video. `version` differs if the file was replaced since."""

    video: str
    version: str
    length: VideoLength | None = None
    rows: tuple[JournalRow, ...] = ()


class _Head(msgspec.Struct, frozen=True):
    """An entry without its rows, which are not decoded."""

    video: str
    version: str


class _Place(NamedTuple):
    """Where the line of a finished video begins in the journal."""

    version: str
    offset: int


class Journal(ABC, Generic[Row]):
    """The results of earlier runs of the command, and those of this one. Use as a context manager: it locks the file.

    `record`: plain values that the results depend on. Raises MisuseError for results of another record, for an output
    without its journal, and while another command writes it. Raises DataError for a damaged journal.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        absolute = path.absolute()  # `.` has no name
        if not absolute.name:
            raise MisuseError(f"--out {path}: has no name. Name another --out")
        self.path, self._journal = path, absolute.with_name(f"{absolute.name}.journal")
        self._places: dict[str, _Place] = {}
        is_empty = path.is_dir() and not any(path.iterdir())
        if not self._journal.exists() and path.exists() and not is_empty:
            raise MisuseError(
                f"{path}: exists, but {self._journal.name} does not, so it can't be continued. Name another --out"
            )
        try:
            self._file = self._journal.open("a+b")
        except OSError as error:
            raise write_error(self._journal, error) from error
        try:
            self._lock()
            self._read(record)
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def add_result(self, result: VideoResult[Row], version: str) -> None:
        """Record a finished video. After this no signal and no power failure loses it."""

    @abstractmethod
    def write(self) -> int:
        """Make the output of all recorded videos, and return the number of its rows."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StopRequested) and self._places:
            error.saved = f"{self._journal} keeps {plural(len(self._places), 'video')}"
        with nullcontext() if error is None else suppress(OSError):  # the first error counts
            self._file.close()

    def holds(self, video: str, version: str) -> bool:
        """Whether the video is finished, and is the same file still."""
        place = self._places.get(video)
        return place is not None and place.version == version

    def names(self, version: str) -> set[str]:
        """The finished videos of this version."""
        return {name for name in self._places if self.holds(name, version)}

    def add(self, video: str, version: str, length: VideoLength | None, rows: Iterable[JournalRow]) -> None:
        """Append a finished video."""
        offset = self._append(Entry(video, version, length, tuple(rows)))
        self._places[video] = _Place(version, offset)

    def entries(self) -> Iterator[Entry]:
        """All recorded videos, in the order in which they were finished first. Raises DataError for a damaged one."""
        for place in self._places.values():
            self._file.seek(place.offset)
            try:
                entry = msgspec.json.decode(self._file.readline(), type=Entry)
            except NOT_JSON as error:
                raise self._damaged(error) from error
            yield entry

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MisuseError(
                f"{self.path}: another command is writing it. Wait for it, or name another --out"
            ) from error
        except OSError as error:
            raise write_error(self._journal, error) from error

    def _read(self, record: dict[str, Any]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or a killed command left half of the first line
            self._file.truncate(0)
            self._append(record)
            return
        given = msgspec.json.decode(msgspec.json.encode(record))
        try:
            stored = msgspec.json.decode(first)
            if stored != given and not self._file.readline().endswith(b"\n"):  # without results
                self._file.truncate(0)
                self._append(record)
                return
            if stored != given:
                changed = [shorten_digests(line)[:100] for line in difference(stored, given)[:3]]
                raise MisuseError(
                    f"{self.path}: holds results of another checkpoint or with other settings "
                    f"({'; '.join(changed)}). Name another --out"
                )
            while line := self._file.readline():
                offset = self._file.tell() - len(line)
                if not line.endswith(b"\n"):
                    self._file.truncate(offset)
                    break
                head = msgspec.json.decode(line, type=_Head)
                self._places[head.video] = _Place(head.version, offset)
        except NOT_JSON as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self._journal}: is damaged ({error}). Name another --out")

    def _append(self, record: Any) -> int:
        """Append a line, and return where it begins."""
        try:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(msgspec.json.encode(record) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._journal, error) from error
        return offset


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises MisuseError for a name of another format."""
    if path.suffix not in suffixes:
        raise MisuseError(f"--out {path}: expected a name that ends in {', '.join(suffixes)}")
