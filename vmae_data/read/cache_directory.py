"""The folder of a node's cache: whole shards by their sums, room for the next one, what a killed process left behind.

All processes of the node share it. A shard is filled by who holds its lock; who looks for room holds the folder's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import VmaeError
from vmae_data.storage import TEMPORARY, commit_file, try_lock, write_error

__all__ = ["FRESH_SECONDS", "TOUCH_SECONDS", "CacheDirectory", "is_full"]

TOUCH_SECONDS = 30.0  # how exactly the time of last use is kept
FRESH_SECONDS = 120.0  # a shard that was used since is never removed: a cache that is too small must not churn
_LOCK = ".lock-"
_ROOM_LOCK = ".room"


class _File(NamedTuple):
    used_at: float
    size: int
    path: Path


class CacheDirectory:
    """A folder that holds at most `limit` bytes of shards. Made where it isn't there.

    Raises VmaeError where it can't be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def filling(self, sha256: str) -> AbstractContextManager[bool]:
        """Hold a shard's lock if nobody on this node does; gives whether it is held."""
        return try_lock(self.folder / f"{_LOCK}{sha256}")

    def reserve(self, sha256: str, size: int) -> Path | None:
        """A temporary file of that many bytes, for the holder of the shard's lock; None where there is no room now.

        What was not used for the longest time goes first. Raises OSError where the disk is full and stays so.
        """
        temporary = self.folder / f"{TEMPORARY}{sha256}"
        with self._locked():
            files = self._files()
            excess = sum(file.size for file in files) + size - self.limit
            old = [file for file in files if file.used_at < time.time() - FRESH_SECONDS and file.path.suffix == ".tar"]
            if excess > sum(file.size for file in old):
                return None
            while excess > 0:
                excess -= self._remove(old)
            while True:
                try:
                    _allocate(temporary, size)
                    return temporary
                except OSError as error:
                    temporary.unlink(missing_ok=True)
                    if not is_full(error) or not old:
                        raise
                    self._remove(old)

    def commit(self, temporary: Path, sha256: str) -> None:
        commit_file(temporary, self.path(sha256))

    def clean(self) -> None:
        """Remove what killed processes left half written: it has a lock that nobody holds."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            with self.filling(path.name.removeprefix(TEMPORARY)) as held:
                if held:
                    path.unlink(missing_ok=True)
        for path in self.folder.glob(f"{_LOCK}*"):
            with try_lock(path):
                pass  # its name goes with it

    def _files(self) -> list[_File]:
        """Shards, and those that are being filled, the longest unused first."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".tar") or entry.name.startswith(TEMPORARY):
                with suppress(FileNotFoundError):
                    facts = entry.stat()
                    found.append(_File(facts.st_mtime, facts.st_size, Path(entry.path)))
        return sorted(found)

    def _remove(self, old: list[_File]) -> int:
        file = old.pop(0)
        file.path.unlink(missing_ok=True)
        return file.size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / _ROOM_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise VmaeError(f"{self.folder}: can't be locked ({error.strerror}); name a local disk") from error
            yield
        finally:
            os.close(descriptor)


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(1, size))
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether there is no room on the disk, or none for this user or process."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
