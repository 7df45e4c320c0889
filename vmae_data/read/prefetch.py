"""Members of remote shards → verified bytes, read ahead of their use. Neighbouring members share one range request."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from vmae_data.errors import ReplacedError, SampleError
from vmae_data.storage import RemotePath, remote

__all__ = ["READ_AHEAD", "Prefetcher", "RangeRead", "RemoteMember", "RemoteShard", "merge_neighbours"]

READ_AHEAD = 64 << 20  # bytes
GAP_BYTES = 64 << 10  # a gap up to this size is read and discarded, which is faster than another request
RANGE_BYTES = 8 << 20  # limit of a merged range, so that its first member arrives soon
CONCURRENT_RANGES = 16
RETRIES = 2


class RemoteShard(NamedTuple):
    """A shard as its index lists it."""

    path: RemotePath
    size: int
    sha256: str


class RemoteMember(NamedTuple):
    """A member of a remote shard, and the key of its sample."""

    key: str
    shard: RemoteShard
    offset: int
    size: int
    sha256: bytes


class RangeRead:
    """One range of a shard, the members in it, and the state of its read."""

    def __init__(self, members: Sequence[RemoteMember]) -> None:
        """`members` are of one shard, in ascending order of their offsets."""
        self.members, self.shard, self.offset = tuple(members), members[0].shard, members[0].offset
        self.size = max(member.offset + member.size for member in members) - self.offset
        self.urgent = self.done = False
        self.uncollected = len(members)
        self.bytes_read = 0
        self.results: dict[RemoteMember, bytes | SampleError] = {}
        self.error: Exception | None = None


def merge_neighbours(members: Sequence[RemoteMember]) -> list[RangeRead]:
    """The ranges to read, in the order of their first members in `members`."""
    position = {member: number for number, member in reversed(list(enumerate(members)))}
    groups: list[list[RemoteMember]] = []
    end = 0
    for member in sorted(members, key=lambda one: (str(one.shard.path), one.offset)):
        last = groups[-1] if groups else []
        is_near = last and last[0].shard == member.shard and member.offset - end <= GAP_BYTES
        if is_near and member.offset + member.size - last[0].offset <= RANGE_BYTES:
            last.append(member)
            end = max(end, member.offset + member.size)
        else:
            groups.append([member])
            end = member.offset + member.size
    groups.sort(key=lambda group: min(position[member] for member in group))
    return [RangeRead(group) for group in groups]


class Prefetcher:
    """Reads each submitted range once, in threads of this process, in the order of submission.

    At most `max_bytes` are being read or wait to be collected. A range that a caller waits for is read regardless. The
    threads end with `close` and never keep the process alive.
    """

    def __init__(self, max_bytes: int = READ_AHEAD) -> None:
        self._max_bytes = max_bytes
        self._condition = threading.Condition()
        self._queue: deque[RangeRead] = deque()
        self._pending: dict[RemoteMember, deque[RangeRead]] = {}  # submitted, and result not collected
        self._held_bytes = 0
        self._threads = 0
        self._closed = False
        self._etags: dict[RemoteShard, str] = {}  # of shards that gave correct bytes

    def submit(self, members: Sequence[RemoteMember]) -> None:
        """Start to read. Each submitted member needs one call of `result`."""
        with self._condition:
            for read in merge_neighbours(members):
                self._queue.append(read)
                for member in read.members:
                    self._pending.setdefault(member, deque()).append(read)
                if self._threads < CONCURRENT_RANGES:
                    self._threads += 1
                    threading.Thread(target=self._run, name="ranges", daemon=True).start()
            self._condition.notify_all()

    def is_pending(self, member: RemoteMember) -> bool:
        """Whether the member was submitted and its result was not collected."""
        return member in self._pending

    def result(self, member: RemoteMember) -> tuple[bytes, int]:
        """Wait for a member's bytes. Submits the member if it is not pending.

        Returns the bytes, and how many bytes were read for them: 0 if the range was counted for another member. Raises
        SampleError if the bytes are still wrong after the retries, ReplacedError if the shard was replaced, DataError and
        StoreError as the store does.
        """
        if not self.is_pending(member):
            self.submit([member])
        with self._condition:
            read = self._pending[member].popleft()
            if not self._pending[member]:
                del self._pending[member]
            if not read.done:
                read.urgent = True
                self._condition.notify_all()
                self._condition.wait_for(lambda: read.done)
            read.uncollected -= 1
            if not read.uncollected:
                self._held_bytes -= read.size
                self._condition.notify_all()
            bytes_read, read.bytes_read = read.bytes_read, 0
        if read.error is not None:
            raise read.error
        data = read.results[member]
        if isinstance(data, SampleError):
            raise data
        return data, bytes_read

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._next() is not None)
                read = self._next()
                if self._closed or read is None:
                    return
                self._queue.remove(read)
                self._held_bytes += read.size
            try:
                self._read(read)
            except Exception as error:
                read.error = error
            with self._condition:
                read.done = True
                self._condition.notify_all()

    def _next(self) -> RangeRead | None:
        """The next range that may be read: an urgent one, else the first in the queue if it is within the limit."""
        urgent = next((read for read in self._queue if read.urgent), None)
        if urgent is not None or not self._queue:
            return urgent
        first = self._queue[0]
        return first if self._held_bytes == 0 or self._held_bytes + first.size <= self._max_bytes else None

    def _read(self, read: RangeRead) -> None:
        part = remote.read_part(read.shard.path, read.offset, read.size)
        read.bytes_read += len(part.data)
        for member in read.members:
            start = member.offset - read.offset
            data = part.data[start : start + member.size]
            if _is_correct(data, member):
                read.results[member] = data
                if part.etag:
                    self._etags.setdefault(read.shard, part.etag)
            else:
                read.results[member] = self._retry(member, part.etag, read)

    def _retry(self, member: RemoteMember, etag: str | None, read: RangeRead) -> bytes | SampleError:
        path = member.shard.path
        etag = self._etags.get(member.shard, etag)
        strong = None if etag is None or etag.startswith("W/") else etag  # a weak one never matches
        data = b""
        for _ in range(RETRIES):
            part = remote.read_part(path, member.offset, member.size, strong)
            data = part.data
            read.bytes_read += len(data)
            if part.etag and etag and part.etag != etag:  # the server ignores If-Match
                raise ReplacedError(f"{path}: was replaced while it was read. Open the data set again")
            if _is_correct(data, member):
                return data
        detail = f"checksum differs: {len(data)} of {member.size} bytes read from {path.name}"
        return SampleError(member.key, detail)


def _is_correct(data: bytes, member: RemoteMember) -> bool:
    return len(data) == member.size and hashlib.sha256(data).digest() == member.sha256
