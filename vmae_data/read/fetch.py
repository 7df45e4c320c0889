"""Sample numbers → verified bytes: from local shards, from remote shards by range, or from the node's cache of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, NotFoundError, SampleError
from vmae_data.read.cache import ShardCache
from vmae_data.read.prefetch import Prefetcher, RemoteMember, RemoteShard
from vmae_data.read.table import MemberRange, Table
from vmae_data.storage import RemotePath

__all__ = ["Fetcher", "ReadTimings"]

OPEN_SHARDS = 64
TRIES = 3


class ReadTimings(NamedTuple):
    """What loading has cost: seconds, bytes and samples, each a running total.

    Workers count the fields from `fetch_seconds` on, the process that trains counts the first two. Bytes include gaps
    that were read and discarded.
    """

    batch_wait_seconds: float = 0.0  # the training waited for a batch
    transfer_seconds: float = 0.0  # of these: a complete batch was copied to the device
    fetch_seconds: float = 0.0  # a worker waited for bytes
    decode_seconds: float = 0.0
    range_bytes: float = 0.0  # read from shards
    cache_bytes: float = 0.0  # downloaded into the node's cache
    cache_hits: float = 0.0  # samples
    cache_misses: float = 0.0

    def plus(self, other: ReadTimings) -> ReadTimings:
        return ReadTimings(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, earlier: ReadTimings) -> ReadTimings:
        """What was added since `earlier`."""
        return ReadTimings(*(now - before for now, before in zip(self, earlier, strict=True)))


class Fetcher:
    """Reads samples of one data set, and keeps a bounded number of shards open. `timings` totals all but decoding.

    Remote samples come through `prefetcher` and `cache`, which the data sets of a process share. Without a prefetcher the
    fetcher makes its own; without a cache there is none. Local samples are read when they are needed.
    """

    def __init__(self, shards: Table, *, prefetcher: Prefetcher | None = None, cache: ShardCache | None = None) -> None:
        self.shards, self.timings = shards, ReadTimings()
        self._own = Prefetcher() if prefetcher is None and isinstance(shards.folder, RemotePath) else None
        self._prefetcher, self._cache = prefetcher or self._own, cache
        self._open: OrderedDict[int, int] = OrderedDict()

    def prefetch(self, members: Sequence[tuple[int, int]]) -> None:
        """Start to read remote members: (sample number, phase). Each needs one call of `fetch` later."""
        if self._prefetcher is not None and isinstance(self.shards.folder, RemotePath):
            located = [self._locate(number, phase) for number, phase in members]
            self._prefetcher.submit([member for member in located if not self._is_cached(member)])

    def fetch(self, number: int, phase: int = 0) -> bytes:
        """The bytes of a sample's mp4.

        Raises SampleError if they are still wrong after the retries, DataError if the shard is missing or was replaced,
        StoreError if its store does not answer.
        """
        started_at = time.perf_counter()
        try:
            if isinstance(self.shards.folder, RemotePath):
                return self._fetch_remote(number, phase)
            return self._fetch_local(number, phase)
        finally:
            self._count(ReadTimings(fetch_seconds=time.perf_counter() - started_at))

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        if self._own is not None:
            self._own.close()

    def _count(self, timings: ReadTimings) -> None:
        self.timings = self.timings.plus(timings)

    def _fetch_local(self, number: int, phase: int) -> bytes:
        member = self.shards.member_range(number, phase)
        for _ in range(TRIES):
            data = self._read(member)
            self._count(ReadTimings(range_bytes=len(data)))
            if len(data) == member.size and hashlib.sha256(data).digest() == member.sha256:
                return data
        name = self.shards.shard_path(member.shard).name
        raise SampleError(
            self.shards.key(number), f"checksum differs: {len(data)} of {member.size} bytes read from {name}"
        )

    def _read(self, member: MemberRange) -> bytes:
        try:
            descriptor = self._descriptor(member.shard)
            # The table may state any size; allocate only what the file has.
            available = max(0, os.fstat(descriptor).st_size - member.offset)
            return os.pread(descriptor, min(member.size, available), member.offset) if available else b""
        except OSError as error:
            path = self.shards.shard_path(member.shard)
            raise DataError(
                f"{path}: can't be read ({error.strerror}). Check the disk, or build the shard again"
            ) from error

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        path = self.shards.shard_path(shard)
        assert isinstance(path, Path)
        self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return self._open[shard]

    def _fetch_remote(self, number: int, phase: int) -> bytes:
        member = self._locate(number, phase)
        assert self._prefetcher is not None
        if not self._prefetcher.is_pending(member) and (data := self._read_cache(member)) is not None:
            self._count(ReadTimings(cache_hits=1))
            return data
        try:
            data, bytes_read = self._prefetcher.result(member)
        except NotFoundError as error:
            raise DataError(
                f"{member.shard.path}: is missing, but the index lists it. Restore it, then run the same command again"
            ) from error
        self._count(ReadTimings(range_bytes=bytes_read, cache_misses=self._cache is not None))
        return data

    def _locate(self, number: int, phase: int) -> RemoteMember:
        member = self.shards.member_range(number, phase)
        listing, path = self.shards.index.shardlist[member.shard], self.shards.shard_path(member.shard)
        assert isinstance(path, RemotePath)
        shard = RemoteShard(path, listing.filesize, listing.sha256)
        return RemoteMember(self.shards.key(number), shard, member.offset, member.size, member.sha256)

    def _is_cached(self, member: RemoteMember) -> bool:
        """Whether the cache has the member, or has it soon. If it does not have the shard, the download starts."""
        if self._cache is None:
            return False
        if not self._cache.contains(member.shard):
            self._cache.submit(member.shard)
        return self._cache.expects(member.shard, member.offset + member.size)

    def _read_cache(self, member: RemoteMember) -> bytes | None:
        """A member's bytes from the cache; None on a miss. A shard with wrong bytes is evicted."""
        if self._cache is None or not self._is_cached(member):
            return None
        data = self._cache.read(member.shard, member.offset, member.size)
        if data is not None and hashlib.sha256(data).digest() != member.sha256:
            self._cache.evict(member.shard)
            return None
        return data
