"""The folder of a node's cache: complete shards named by checksum, space for the next one, removal of leftovers.

All processes of the node share it. The process that fills a shard holds the shard's lock. The folder's lock is held for
a moment: to lock a shard, to reserve space, to remove leftovers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vmae_data.errors import VmaeError
from vmae_data.storage import TEMPORARY, try_lock, write_error

__all__ = ["COUNT_BYTES", "FRESH_SECONDS", "TOUCH_SECONDS", "CacheDirectory", "is_disk_full"]

TOUCH_SECONDS = 30.0  # resolution of a shard's time of last use
FRESH_SECONDS = 120.0  # a shard used within this time is never evicted: a cache that is too small must not churn
COUNT_BYTES = 8  # after the bytes of an incomplete shard: how many of them have arrived
_SHARD_LOCK = ".lock-"
_FOLDER_LOCK = ".room"


class CacheDirectory:
    """A folder with at most `limit` bytes of shards, created if it is missing.

    Raises VmaeError if it cannot be created.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def incomplete_path(self, sha256: str) -> Path:
        return self.folder / f"{TEMPORARY}{sha256}"

    @contextmanager
    def lock_shard(self, sha256: str) -> Iterator[bool]:
        """Try to lock a shard; yields whether this process holds the lock."""
        with ExitStack() as stack:
            with self._locked():  # `clean` holds locks too: one that it holds must not look like a download
                is_locked = stack.enter_context(try_lock(self._lock_path(sha256)))
            yield is_locked

    def reserve(self, sha256: str, size: int) -> Path | None:
        """A file for a shard of `size` bytes and their count, for the holder of its lock; None if there is no space now.

        The least recently used shards are evicted first. Raises OSError if the disk is full and stays full.
        """
        temporary = self.incomplete_path(sha256)
        with self._locked():
            files = self._files()
            counts = COUNT_BYTES * sum(path.suffix != ".tar" for path, _ in files)
            excess = sum(facts.st_size for _, facts in files) - counts + size - self.limit
            fresh = time.time() - FRESH_SECONDS
            old = [(path, facts) for path, facts in files if facts.st_mtime < fresh and path.suffix == ".tar"]
            if excess > sum(facts.st_size for _, facts in old):
                return None
            while excess > 0:
                excess -= _remove_first(old)
            while True:
                try:
                    allocate(temporary, size + COUNT_BYTES)
                    return temporary
                except OSError as error:
                    temporary.unlink(missing_ok=True)
                    if not is_disk_full(error) or not old:
                        raise
                    _remove_first(old)

    def commit(self, temporary: Path, sha256: str) -> None:
        """Make a complete shard visible. It is not synced: what a power failure damages, the readers' checks find."""
        os.truncate(temporary, temporary.stat().st_size - COUNT_BYTES)
        temporary.replace(self.path(sha256))

    def clean(self) -> None:
        """Remove incomplete files of killed processes: nobody holds their locks."""
        with self._locked():
            for path in self.folder.glob(f"{TEMPORARY}*"):
                with try_lock(self._lock_path(path.name.removeprefix(TEMPORARY))) as is_locked:
                    if is_locked:
                        path.unlink(missing_ok=True)
            for path in self.folder.glob(f"{_SHARD_LOCK}*"):
                with try_lock(path):
                    pass  # the release removes the file

    def _lock_path(self, sha256: str) -> Path:
        return self.folder / f"{_SHARD_LOCK}{sha256}"

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Shards, complete or not, the least recently used first."""
        files = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".tar") or entry.name.startswith(TEMPORARY):
                with suppress(FileNotFoundError):
                    files.append((Path(entry.path), entry.stat()))
        return sorted(files, key=lambda file: (file[1].st_mtime, file[1].st_size, file[0]))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
        descriptor = os.open(self.folder / _FOLDER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise VmaeError(f"{self.folder}: can't be locked ({error.strerror}). Use a local disk") from error
            yield
        finally:
            os.close(descriptor)


def _remove_first(files: list[tuple[Path, os.stat_result]]) -> int:
    """Remove the first file from the disk and from the list; returns its size."""
    path, facts = files.pop(0)
    path.unlink(missing_ok=True)
    return facts.st_size


def allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(1, size))
    finally:
        os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether the disk has no space, or none for this user or process."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
