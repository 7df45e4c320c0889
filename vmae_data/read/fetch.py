"""Row 9. Sample numbers → verified bytes: by range from the shards, or from the node's cache of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, NotThereError, SampleError
from vmae_data.read.cache import RemoteShard, ShardCache
from vmae_data.read.prefetch import Prefetcher, Wanted
from vmae_data.read.table import MemberPlace, Table
from vmae_data.storage import RemotePath

__all__ = ["Fetcher", "Member", "ReadTimings"]

OPEN_SHARDS = 64
TRIES = 3


class Member(NamedTuple):
    """A sample's mp4, by the sample's number."""

    number: int
    phase: int = 0


class ReadTimings(NamedTuple):
    """What it took to bring some samples. Bytes read for members that lie between are counted too."""

    waiting: float = 0.0  # seconds, for bytes
    decoding: float = 0.0  # seconds
    range_bytes: int = 0  # read from where the shards lie
    cache_bytes: int = 0  # fetched into the node's cache
    hits: int = 0  # samples that came out of the cache
    misses: int = 0  # and those that were not there yet

    def plus(self, other: ReadTimings) -> ReadTimings:
        return ReadTimings(
            self.waiting + other.waiting,
            self.decoding + other.decoding,
            self.range_bytes + other.range_bytes,
            self.cache_bytes + other.cache_bytes,
            self.hits + other.hits,
            self.misses + other.misses,
        )

    def minus(self, other: ReadTimings) -> ReadTimings:
        """What came since."""
        return ReadTimings(
            self.waiting - other.waiting,
            self.decoding - other.decoding,
            self.range_bytes - other.range_bytes,
            self.cache_bytes - other.cache_bytes,
            self.hits - other.hits,
            self.misses - other.misses,
        )


class _Far(NamedTuple):
    """A member of a remote shard."""

    wanted: Wanted
    shard: RemoteShard


class Fetcher:
    """Reads samples of one data set; keeps a bounded number of shards open.

    Remote ones come through `ahead` and `cache`, which the data sets of a process share; without them the fetcher
    reads ahead by itself, and there is no cache. Local ones are read as they are needed.
    """

    def __init__(self, shards: Table, *, ahead: Prefetcher | None = None, cache: ShardCache | None = None) -> None:
        self.shards = shards
        self._own = Prefetcher() if ahead is None and isinstance(shards.folder, RemotePath) else None
        self._ahead, self._cache = ahead or self._own, cache
        self._open: OrderedDict[int, int] = OrderedDict()
        self._took = ReadTimings()

    def ask(self, members: Sequence[Member]) -> None:
        """Say what will be fetched next, each once: what is far away begins to come."""
        if self._ahead is not None and isinstance(self.shards.folder, RemotePath):
            located = [self._locate(member) for member in members]
            self._ahead.ask([far.wanted for far in located if not self._is_cached(far)])

    def fetch(self, number: int, phase: int = 0) -> bytes:
        """The bytes of a sample's mp4.

        Raises SampleError where they are still wrong after reading again, DataError where the shard is gone or was
        replaced, StoreError where its store does not answer.
        """
        started_at = time.perf_counter()
        try:
            if isinstance(self.shards.folder, RemotePath):
                return self._fetch_remote(Member(number, phase))
            return self._fetch_local(number, phase)
        finally:
            self._add(ReadTimings(waiting=time.perf_counter() - started_at))

    def take_took(self) -> ReadTimings:
        """What was spent since this was asked last; all but decoding."""
        took, self._took = self._took, ReadTimings()
        return took

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        if self._own is not None:
            self._own.close()

    def _add(self, took: ReadTimings) -> None:
        self._took = self._took.plus(took)

    def _fetch_local(self, number: int, phase: int) -> bytes:
        place = self.shards.place(number, phase)
        for _ in range(TRIES):
            data = self._read(place)
            self._add(ReadTimings(range_bytes=len(data)))
            if len(data) == place.size and hashlib.sha256(data).digest() == place.sha256:
                return data
        raise SampleError(
            self.shards.key(number),
            f"{len(data)} of {place.size} bytes in {self.shards.shard_path(place.shard).name}, and the sum is wrong",
        )

    def _read(self, place: MemberPlace) -> bytes:
        try:
            descriptor = self._descriptor(place.shard)
            # What the table says may be anything; memory is taken for what is there.
            there = max(0, os.fstat(descriptor).st_size - place.offset)
            return os.pread(descriptor, min(place.size, there), place.offset) if there else b""
        except OSError as error:
            path = self.shards.shard_path(place.shard)
            raise DataError(
                f"{path}: can't be read ({error.strerror}); check the disk, or build the shard again"
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

    def _fetch_remote(self, member: Member) -> bytes:
        far = self._locate(member)
        assert self._ahead is not None
        if not self._ahead.is_asked(far.wanted) and (data := self._from_cache(far)) is not None:
            self._add(ReadTimings(hits=1))
            return data
        try:
            found = self._ahead.take(far.wanted)
        except NotThereError as error:
            raise DataError(
                f"{error.args[0].partition(';')[0]}, and the index lists it; put it back, then go on"
            ) from None
        self._add(ReadTimings(range_bytes=found.read, misses=self._cache is not None))
        return found.data

    def _locate(self, member: Member) -> _Far:
        place = self.shards.place(*member)
        listed = self.shards.index.shardlist[place.shard]
        shard = self.shards.shard_path(place.shard)
        assert isinstance(shard, RemotePath)
        wanted = Wanted(self.shards.key(member.number), shard, place.offset, place.size, place.sha256)
        return _Far(wanted, RemoteShard(shard, listed.filesize, listed.sha256))

    def _is_cached(self, far: _Far) -> bool:
        """Whether a member's shard is in the cache; where it isn't, it is on its way from now on."""
        if self._cache is None or self._cache.holds(far.shard):
            return self._cache is not None
        self._cache.want(far.shard)
        return False

    def _from_cache(self, far: _Far) -> bytes | None:
        if self._cache is None or not self._is_cached(far):
            return None
        data = self._cache.read(far.shard, far.wanted.offset, far.wanted.size)
        if data is not None and hashlib.sha256(data).digest() != far.wanted.sha256:
            self._cache.drop(far.shard)
            return None
        return data
