"""A node's cache of remote shards: looked up by the sum of the index, filled in the background, shared by all processes."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import VmaeError
from vmae_data.read.cache_directory import TOUCH_SECONDS, CacheDirectory, is_full
from vmae_data.recipes import byte_count
from vmae_data.storage import RemotePath, remote

__all__ = ["CacheSpec", "RemoteShard", "ShardCache"]

DOWNLOADS = 2  # at a time, in each process
OPEN_SHARDS = 64
PAUSE_SECONDS = 60.0  # after a download that came to nothing, before the same shard is tried again
FULL_SECONDS = 600.0  # after a full disk, before anything is


class CacheSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a node keeps shards that it has fetched, and how many bytes of them. Off where there is no `dir`."""

    dir: str | None = None
    bytes: int | float | str | None = None

    def __post_init__(self) -> None:
        if self.dir is None:
            if self.bytes is not None:
                raise ValueError(f"cache.bytes = {self.bytes}: has no folder; give cache.dir too, such as /nvme/cache")
            return
        if "://" in self.dir:
            raise ValueError(
                f"cache.dir = {self.dir}: is a URL; a folder of this machine is wanted, such as /nvme/cache"
            )
        if self.bytes is None:
            raise ValueError(f'cache.dir = {self.dir}: has no limit; give cache.bytes too, such as "200GB"')
        if self.limit < 1:
            raise ValueError(f"cache.bytes = {self.bytes}: must be 1 or more")

    @property
    def limit(self) -> int:
        return byte_count(self.bytes or 0, "cache.bytes")


class RemoteShard(NamedTuple):
    """A shard as its index lists it."""

    place: RemotePath
    size: int
    sha256: str


class _Open(NamedTuple):
    descriptor: int
    touched_at: float


class ShardCache:
    """The cache as one process sees it. Downloads run in threads of their own.

    Whatever goes wrong with it never stops a reader: what is not there is read by range.
    """

    def __init__(self, spec: CacheSpec) -> None:
        assert spec.dir is not None
        self.room = CacheDirectory(Path(spec.dir).expanduser() / "shards", spec.limit)
        self._files = threading.RLock()  # over these two: what is ahead is looked up while something else is read
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._looked_at = 0.0
        self._lock = threading.Lock()  # over all below, which the downloads change
        self._wanted: queue.SimpleQueue[RemoteShard | None] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._threads = 0
        self._closed = False
        self._fetched = 0
        self._remarks: list[str] = []
        self._full_until = 0.0

    def holds(self, shard: RemoteShard) -> bool:
        """Whether a shard is there."""
        with self._files:
            return self._descriptor(shard) is not None

    def read(self, shard: RemoteShard, offset: int, size: int) -> bytes | None:
        """Bytes of a shard; None where it is not there. The caller checks their sum."""
        with self._files:
            descriptor = self._descriptor(shard)
            if descriptor is None:
                return None
            try:
                # What an index says may be anything; memory is taken for what is there.
                there = max(0, os.fstat(descriptor).st_size - offset)
                return os.pread(descriptor, min(size, there), offset) if there else b""
            except OSError:
                return None

    def drop(self, shard: RemoteShard) -> None:
        """Remove a shard whose bytes are wrong."""
        with self._files:
            self._close_one(shard.sha256)
        with suppress(OSError):
            self.room.path(shard.sha256).unlink()

    def want(self, shard: RemoteShard) -> None:
        """Have a shard fetched in the background, unless that is under way or came to nothing a moment ago."""
        now = time.monotonic()
        with self._lock:
            if shard.sha256 in self._queued or now < max(self._full_until, self._not_before.get(shard.sha256, 0)):
                return
            self._queued.add(shard.sha256)
            self._wanted.put(shard)
            if self._threads < DOWNLOADS:
                self._threads += 1
                threading.Thread(target=self._work, name="cache", daemon=True).start()

    def take_fetched(self) -> int:
        """Bytes that came into the cache since this was asked last."""
        with self._lock:
            fetched, self._fetched = self._fetched, 0
        return fetched

    def take_remarks(self) -> tuple[str, ...]:
        """What a person should know, each once."""
        with self._lock:
            remarks, self._remarks = self._remarks, []
        return tuple(remarks)

    def close(self) -> None:
        self._closed = True
        for _ in range(DOWNLOADS):
            self._wanted.put(None)
        with self._files:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    def _descriptor(self, shard: RemoteShard) -> int | None:
        now = time.monotonic()
        if now - self._looked_at > TOUCH_SECONDS:
            self._looked_at = now
            self._let_go()
        known = self._open.get(shard.sha256)
        if known is None:
            try:
                descriptor = os.open(self.room.path(shard.sha256), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1].descriptor)
            known = self._open[shard.sha256] = _Open(descriptor, -TOUCH_SECONDS)
        self._open.move_to_end(shard.sha256)
        if now - known.touched_at > TOUCH_SECONDS:
            self._open[shard.sha256] = known._replace(touched_at=now)
            with suppress(OSError):  # a folder that may only be read
                os.utime(known.descriptor)
        return known.descriptor

    def _let_go(self) -> None:
        """Close what others have removed: while it is open its room on the disk is not free."""
        for sha256, known in list(self._open.items()):
            if os.fstat(known.descriptor).st_nlink == 0:
                self._close_one(sha256)

    def _close_one(self, sha256: str) -> None:
        known = self._open.pop(sha256, None)
        if known is not None:
            os.close(known.descriptor)

    def _work(self) -> None:
        try:
            self.room.clean()
        except (OSError, VmaeError) as error:
            self._give_up(error)
        while (shard := self._wanted.get()) is not None and not self._closed:
            done = False
            try:
                if time.monotonic() >= self._full_until:
                    done = self._fetch(shard)
            except OSError as error:
                self._give_up(error)
            except VmaeError as error:
                if isinstance(error.__cause__, OSError):
                    self._give_up(error.__cause__)
                # A store that does not answer is told of by who needs its bytes now.
            with self._lock:
                self._queued.discard(shard.sha256)
                if not done:
                    self._not_before[shard.sha256] = time.monotonic() + PAUSE_SECONDS

    def _fetch(self, shard: RemoteShard) -> bool:
        """True where the shard is there."""
        with self.room.filling(shard.sha256) as held:
            if not held:
                return False  # another process is at it
            if self.room.path(shard.sha256).exists():
                return True
            temporary = self.room.reserve(shard.sha256, shard.size)
            if temporary is None:
                return False
            try:
                if not self._copy(shard, temporary):
                    return False
                self.room.commit(temporary, shard.sha256)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def _copy(self, shard: RemoteShard, to: Path) -> bool:
        digest, size = hashlib.sha256(), 0
        with to.open("r+b") as file:
            for data in remote.stream(shard.place):
                size += len(data)
                if self._closed or size > shard.size:  # what is larger than its index says has no room reserved
                    return False
                digest.update(data)
                file.write(data)
                with self._lock:
                    self._fetched += len(data)
        return digest.hexdigest() == shard.sha256

    def _give_up(self, error: OSError | VmaeError) -> None:
        why = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and is_full(error):
            why = "no room left on the disk"
        with self._lock:
            if not self._full_until:
                self._remarks.append(f"{self.room.folder}: {why}; shards that are not there are read by range")
            self._full_until = time.monotonic() + FULL_SECONDS
