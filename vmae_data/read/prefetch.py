"""Members of remote shards → verified bytes: neighbours are read as one range, several ranges at once, ahead of their use."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from vmae_data.errors import ReplacedError, SampleError
from vmae_data.storage import RemotePath, remote

__all__ = ["READ_AHEAD", "Prefetcher", "Ranged", "Span", "Wanted", "merge_neighbours"]

READ_AHEAD = 64 << 20  # bytes
GAP_BYTES = 64 << 10  # read and thrown away rather than asked for by another request
SPAN_BYTES = 8 << 20  # of a merged range at most, so that its first member is soon there
RANGES_AT_A_TIME = 16
TRIES_AGAIN = 2


class Wanted(NamedTuple):
    """A member of a remote shard, and the key of its sample."""

    key: str
    shard: RemotePath
    offset: int
    size: int
    sha256: bytes


class Span(NamedTuple):
    """One range of a shard, and the members in it."""

    shard: RemotePath
    offset: int
    size: int
    wanted: tuple[Wanted, ...]


class Ranged(NamedTuple):
    """A member's verified bytes, and how many bytes were read for it (0 where another member's range held it)."""

    data: bytes
    read: int


def merge_neighbours(wanted: Sequence[Wanted]) -> list[Span]:
    """The ranges to read, in the order in which their first members are wanted."""
    rank = {member: place for place, member in reversed(list(enumerate(wanted)))}
    groups: list[list[Wanted]] = []
    end = 0
    for member in sorted(wanted, key=lambda one: (str(one.shard), one.offset)):
        last = groups[-1] if groups else []
        joins = last and last[0].shard == member.shard and member.offset - end <= GAP_BYTES
        if joins and member.offset + member.size - last[0].offset <= SPAN_BYTES:
            last.append(member)
            end = max(end, member.offset + member.size)
        else:
            groups.append([member])
            end = member.offset + member.size
    groups.sort(key=lambda group: min(rank[member] for member in group))
    return [_span(group) for group in groups]


def _span(group: list[Wanted]) -> Span:
    start = group[0].offset
    return Span(group[0].shard, start, max(one.offset + one.size for one in group) - start, tuple(group))


class _Coming:
    """A span on its way; what came of it is there once it is `done`."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.urgent = self.done = False
        self.left = len(span.wanted)  # members that nobody has taken yet
        self.read = 0
        self.found: dict[Wanted, bytes | SampleError] = {}
        self.error: Exception | None = None


class Prefetcher:
    """Reads ranges in threads of this process, each once, in the order in which they were asked for.

    At most `most` bytes are on their way or wait to be taken, and a range that somebody waits for. The threads end
    with `close`; they never keep a process from ending.
    """

    def __init__(self, most: int = READ_AHEAD) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[_Coming] = deque()
        self._asked: dict[Wanted, deque[_Coming]] = {}
        self._held = 0
        self._threads = 0
        self._closed = False
        self._etags: dict[RemotePath, str] = {}  # of shards that right bytes came from

    def ask(self, wanted: Sequence[Wanted]) -> None:
        """Begin to read; each is to be taken once."""
        with self._changed:
            for span in merge_neighbours(wanted):
                coming = _Coming(span)
                self._waiting.append(coming)
                for member in span.wanted:
                    self._asked.setdefault(member, deque()).append(coming)
                if self._threads < RANGES_AT_A_TIME:
                    self._threads += 1
                    threading.Thread(target=self._work, name="ranges", daemon=True).start()
            self._changed.notify_all()

    def is_asked(self, member: Wanted) -> bool:
        return member in self._asked

    def take(self, member: Wanted) -> Ranged:
        """The bytes of a member, waited for; asked for now where they were not.

        Raises SampleError where they are still wrong after reading again, ReplacedError where the shard is another by
        now, DataError and StoreError as the store does.
        """
        if not self.is_asked(member):
            self.ask([member])
        with self._changed:
            coming = self._asked[member].popleft()
            if not self._asked[member]:
                del self._asked[member]
            if not coming.done:
                coming.urgent = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: coming.done)
            coming.left -= 1
            if not coming.left:
                self._held -= coming.span.size
                self._changed.notify_all()
            read, coming.read = coming.read, 0
        if coming.error is not None:
            raise coming.error
        found = coming.found[member]
        if isinstance(found, SampleError):
            raise found
        return Ranged(found, read)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                coming = self._next()
                if self._closed or coming is None:
                    return
                self._waiting.remove(coming)
                self._held += coming.span.size
            try:
                self._read(coming)
            except Exception as error:
                coming.error = error
            with self._changed:
                coming.done = True
                self._changed.notify_all()

    def _next(self) -> _Coming | None:
        """What may be read now: what is waited for, else the first in the row if there is room for it."""
        urgent = next((coming for coming in self._waiting if coming.urgent), None)
        if urgent is not None or not self._waiting:
            return urgent
        first = self._waiting[0]
        return first if self._held == 0 or self._held + first.span.size <= self._most else None

    def _read(self, coming: _Coming) -> None:
        span = coming.span
        part = remote.read_part(span.shard, span.offset, span.size)
        coming.read += len(part.data)
        for member in span.wanted:
            start = member.offset - span.offset
            data = part.data[start : start + member.size]
            if _is_right(data, member):
                coming.found[member] = data
                if part.etag:
                    self._etags.setdefault(span.shard, part.etag)
            else:
                coming.found[member] = self._read_again(member, part.etag, coming)

    def _read_again(self, member: Wanted, etag: str | None, coming: _Coming) -> bytes | SampleError:
        etag = self._etags.get(member.shard, etag)
        strong = None if etag is None or etag.startswith("W/") else etag  # a weak one matches nothing
        data = b""
        for _ in range(TRIES_AGAIN):
            part = remote.read_part(member.shard, member.offset, member.size, strong)
            data = part.data
            coming.read += len(data)
            if part.etag and etag and part.etag != etag:  # a server that knows no If-Match
                raise ReplacedError(f"{member.shard}: was replaced while it was read; open the data set again")
            if _is_right(data, member):
                return data
        words = f"{len(data)} of {member.size} bytes in {member.shard.name}, and the sum is wrong"
        return SampleError(member.key, words)


def _is_right(data: bytes, member: Wanted) -> bool:
    return len(data) == member.size and hashlib.sha256(data).digest() == member.sha256
