"""A node's cache of remote shards, by checksum: filled in the background, shared by all processes of the node."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import msgspec

from vmae_data.errors import VmaeError
from vmae_data.read.cache_directory import COUNT_BYTES, TOUCH_SECONDS, CacheDirectory, is_disk_full
from vmae_data.read.prefetch import RemoteShard
from vmae_data.recipes import byte_count
from vmae_data.storage import remote, write_error

__all__ = ["CacheSpec", "ShardCache"]

CONCURRENT_DOWNLOADS = 4  # in each process; with 2, one process got 0.8 of this speed
OPEN_SHARDS = 64
RETRY_SECONDS = 60.0  # after a failed download, before the same shard is tried again
DISK_FULL_SECONDS = 600.0  # after a full disk, before any shard is tried again
WAIT_SECONDS = 1.0  # for a member of a shard that is being downloaded; one that is expected later is read by range
POLL_SECONDS = 0.002


class CacheSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node's folder for downloaded shards, and its limit in bytes. Without `dir` there is no cache."""

    dir: str | None = None  # a local folder
    bytes: int | float | str | None = None  # limit, such as "200GB"

    def __post_init__(self) -> None:
        if self.dir is None:
            if self.bytes is not None:
                raise ValueError(f"cache.bytes = {self.bytes}: has no folder. Set cache.dir too, such as /nvme/cache")
            return
        if "://" in self.dir:
            raise ValueError(f"cache.dir = {self.dir}: is a URL; expected a local folder, such as /nvme/cache")
        if self.bytes is None:
            raise ValueError(f'cache.dir = {self.dir}: has no limit. Set cache.bytes too, such as "200GB"')
        if self.limit < 1:
            raise ValueError(f"cache.bytes = {self.bytes}: expected 1 or more")

    @property
    def limit(self) -> int:
        return byte_count(self.bytes or 0, "cache.bytes")


class _OpenFile:
    """A shard's file, complete, or incomplete while some process of this node downloads it."""

    def __init__(self, descriptor: int, *, complete: bool) -> None:
        self.descriptor, self.complete = descriptor, complete
        self.touched_at = -math.inf
        self.removed = False
        self.arrived = 0  # bytes
        self._since: tuple[float, int] | None = None  # when the speed began to be measured, bytes that had arrived

    def look(self, size: int) -> None:
        """How much of a shard of `size` bytes has arrived? Has the download ended?"""
        facts = os.fstat(self.descriptor)
        self.removed, self.complete = facts.st_nlink == 0, facts.st_size == size
        if not self.complete:
            is_whole = facts.st_size == size + COUNT_BYTES  # an index may state another size
            self.arrived = (
                int.from_bytes(_pread(self.descriptor, size, COUNT_BYTES) or b"", "little") if is_whole else 0
            )
            self._since = self._since or (time.monotonic(), self.arrived)

    def expects(self, end: int) -> bool:
        """Whether the bytes before `end` have arrived, or will soon at the speed of the download."""
        if self.complete or self.arrived >= end:
            return True
        assert self._since is not None
        seconds, gained = time.monotonic() - self._since[0], self.arrived - self._since[1]
        return gained > 0 and (end - self.arrived) * seconds <= WAIT_SECONDS * gained

    def measure_again(self) -> None:
        self._since = (time.monotonic(), self.arrived)


class ShardCache:
    """One process's view of the cache. Its own threads download shards.

    A failure of the cache never stops a reader: what is not in the cache is read by range. The part of a shard that has
    arrived can be read during its download, by every process of the node.
    `downloaded_bytes` is a running total. `notes` are messages for the user.
    """

    def __init__(self, spec: CacheSpec) -> None:
        assert spec.dir is not None
        try:
            folder = Path(spec.dir).expanduser()
        except RuntimeError:
            raise VmaeError(f"cache.dir = {spec.dir}: this user has no home directory. Name a full path") from None
        self.directory = CacheDirectory(folder / "shards", spec.limit)
        self.downloaded_bytes = 0
        self.notes: tuple[str, ...] = ()
        # The prefetch thread checks the cache while another thread reads: this lock guards the next two.
        self._files_lock = threading.RLock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._checked_at = 0.0
        self._lock = threading.Lock()  # guards all below, and the two totals, which download threads change
        self._queue: queue.SimpleQueue[RemoteShard | None] = queue.SimpleQueue()
        self._pending: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._disk_full_until = 0.0
        self._threads = 0
        self._closed = False

    def contains(self, shard: RemoteShard) -> bool:
        with self._files_lock:
            file = self._file(shard)
            return file is not None and file.complete

    def expects(self, shard: RemoteShard, end: int) -> bool:
        """Whether the bytes of a shard before `end` are in the cache, or will be in about `WAIT_SECONDS`."""
        with self._files_lock:
            file = self._file(shard)
            return file is not None and file.expects(end)

    def read(self, shard: RemoteShard, offset: int, size: int) -> bytes | None:
        """Bytes of a shard; None if they are not in the cache. The caller verifies their checksum.

        Waits for bytes that are expected, at most `WAIT_SECONDS`.
        """
        until = time.monotonic() + WAIT_SECONDS
        while True:
            with self._files_lock:
                file = self._file(shard)
                if file is None or not file.expects(offset + size):
                    return None
                if file.complete or file.arrived >= offset + size:
                    return _pread(file.descriptor, offset, size)
                if time.monotonic() > until:
                    file.measure_again()  # do not wait for it again until it is as fast as expected
                    return None
            time.sleep(POLL_SECONDS)

    def evict(self, shard: RemoteShard) -> None:
        with self._files_lock:
            self._close_file(shard.sha256)
        with suppress(OSError):
            self.directory.path(shard.sha256).unlink()

    def submit(self, shard: RemoteShard) -> None:
        """Download a shard in the background, unless it is pending or has just failed."""
        now = time.monotonic()
        with self._lock:
            if shard.sha256 in self._pending or now < max(self._disk_full_until, self._not_before.get(shard.sha256, 0)):
                return
            self._pending.add(shard.sha256)
            self._queue.put(shard)
            if self._threads < CONCURRENT_DOWNLOADS:
                self._threads += 1
                threading.Thread(target=self._run, name="cache", daemon=True).start()

    def is_pending(self, shard: RemoteShard) -> bool:
        with self._lock:
            return shard.sha256 in self._pending

    def close(self) -> None:
        self._closed = True
        for _ in range(CONCURRENT_DOWNLOADS):
            self._queue.put(None)
        with self._files_lock:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    def _file(self, shard: RemoteShard) -> _OpenFile | None:
        now = time.monotonic()
        if now - self._checked_at > TOUCH_SECONDS:
            self._checked_at = now
            self._close_removed()
        file = self._open.get(shard.sha256)
        if file is not None and not file.complete:
            file.look(shard.size)
            if file.removed:  # the download has failed
                self._close_file(shard.sha256)
                file = None
        if file is None:
            file = self._open_file(shard)
            if file is None:
                return None
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1].descriptor)
            self._open[shard.sha256] = file
        self._open.move_to_end(shard.sha256)
        if file.complete and now - file.touched_at > TOUCH_SECONDS:
            file.touched_at = now
            with suppress(OSError):  # the folder may be read-only
                os.utime(file.descriptor)
        return file

    def _open_file(self, shard: RemoteShard) -> _OpenFile | None:
        for path, complete in (
            (self.directory.path(shard.sha256), True),
            (self.directory.incomplete_path(shard.sha256), False),
        ):
            with suppress(OSError):
                file = _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), complete=complete)
                if not complete:
                    file.look(shard.size)
                return file
        return None

    def _close_removed(self) -> None:
        """Close shards that another process has evicted: an open file keeps its disk space."""
        for sha256, file in list(self._open.items()):
            if os.fstat(file.descriptor).st_nlink == 0:
                self._close_file(sha256)

    def _close_file(self, sha256: str) -> None:
        if sha256 in self._open:
            os.close(self._open.pop(sha256).descriptor)

    def _run(self) -> None:
        try:
            self.directory.clean()
        except (OSError, VmaeError) as error:
            self._pause(error)
        while (shard := self._queue.get()) is not None and not self._closed:
            done = False
            try:
                if time.monotonic() >= self._disk_full_until:
                    done = self._download(shard)
            except OSError as error:
                self._pause(error)
            except VmaeError as error:
                if isinstance(error.__cause__, OSError):
                    self._pause(error.__cause__)
                # The reader that needs the bytes now reports a store that does not answer.
            with self._lock:
                self._pending.discard(shard.sha256)
                if not done:
                    self._not_before[shard.sha256] = time.monotonic() + RETRY_SECONDS

    def _download(self, shard: RemoteShard) -> bool:
        """Whether the shard is now in the cache."""
        with self.directory.lock_shard(shard.sha256) as locked:
            if not locked:
                return False  # another process downloads it
            if self.directory.path(shard.sha256).exists():
                return True
            temporary = self.directory.reserve(shard.sha256, shard.size)
            if temporary is None:
                return False
            try:
                if not self._copy(shard, temporary):
                    return False
                self.directory.commit(temporary, shard.sha256)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def _copy(self, shard: RemoteShard, to: Path) -> bool:
        digest, size = hashlib.sha256(), 0
        with to.open("r+b") as file:

            def take(data: bytes) -> None:
                nonlocal size
                size += len(data)
                if self._closed or size > shard.size:  # only the size in the index was reserved
                    raise VmaeError(f"{shard.path}: more than {shard.size} bytes, or not needed any more")
                digest.update(data)
                try:
                    file.write(data)
                    file.flush()
                    os.pwrite(file.fileno(), size.to_bytes(COUNT_BYTES, "little"), shard.size)
                except OSError as error:
                    raise write_error(to, error) from error
                with self._lock:
                    self.downloaded_bytes += len(data)

            remote.stream(shard.path, take)
        return digest.hexdigest() == shard.sha256

    def _pause(self, error: OSError | VmaeError) -> None:
        """Stop downloads for a while, and add one note for the user."""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and is_disk_full(error):
            reason = "no space left on the disk"
        with self._lock:
            if not self._disk_full_until:
                note = f"{self.directory.folder}: {reason}; shards that are not in the cache are read by range"
                self.notes = (*self.notes, note)
            self._disk_full_until = time.monotonic() + DISK_FULL_SECONDS


def _pread(descriptor: int, offset: int, size: int) -> bytes | None:
    try:
        # An index may state any size; allocate only what the file has.
        available = max(0, os.fstat(descriptor).st_size - offset)
        return os.pread(descriptor, min(size, available), offset) if available else b""
    except OSError:
        return None
