"""What a bad network and a bad store do to HTTP requests: said as data, drawn from a seed, counted as it happens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec

__all__ = ["Exchange", "Fault", "Faults", "Kind", "Seen", "choose", "draw"]


class Kind(StrEnum):
    """What happens to a request."""

    STATUS = "status"  # answered with `status` and never passed on
    EXPIRED = "expired"  # answered 403 ExpiredToken, as S3 says it
    CUT = "cut"  # the connection is reset in the middle of the body; of an upload, in the middle of that
    TRUNCATE = "truncate"  # the head promises the whole body, then the connection is closed in order
    SHORTEN = "shorten"  # the body ends early and Content-Length agrees: no client can see it
    STALL = "stall"  # silence for `seconds`, then all goes on: before the head, or from `after_bytes` of the body on
    CORRUPT = "corrupt"  # one byte of the body is another one
    LOSE = "lose"  # the store does what it was asked for, and its answer never arrives


_OF_A_BODY = (Kind.CUT, Kind.TRUNCATE, Kind.SHORTEN, Kind.CORRUPT)
_OF_AN_UPLOAD = (Kind.STATUS, Kind.EXPIRED, Kind.CUT, Kind.STALL, Kind.LOSE)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault and whom it meets.

    `share`: of the requests that no fault before it in the list took. `first`: the number of the first request
    that it may meet, from 1. `most`: how many it meets at most. `after_bytes`: where in the body; left out, or
    where the body is not that long, half of it (corrupt: a drawn byte; stall: before the head).
    """

    kind: Kind
    share: float = 1.0
    first: int = 1
    most: int | None = None
    status: int = 503
    retry_after_seconds: int | None = None
    after_bytes: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, Kind):
            raise TypeError(f"kind = {self.kind!r} is no Kind")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share} of fault {self.kind}: a share lies between 0 and 1")
        if self.kind is Kind.STALL and self.seconds <= 0:
            raise ValueError("a stall needs seconds > 0")


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that stands between a client and its store. Without arguments: nothing, the proxy only counts.

    `methods` and `path_part` choose which requests `faults` may meet; delays and the outage are for all.
    `latency_seconds` is added to each request. `bytes_per_second` is shared by all connections, both ways.
    From `down_from_seconds` on, counted from when these faults were set, connections are refused, for
    `down_seconds`; open ones are reset.
    """

    faults: tuple[Fault, ...] = ()
    seed: int = 0
    methods: tuple[str, ...] = ("GET", "HEAD")
    path_part: str = ""
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    down_from_seconds: float = 0.0
    down_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_second is not None and self.bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second = {self.bytes_per_second}: leave it out for no limit")


class Exchange(msgspec.Struct, frozen=True):
    """One request and what its client was told by now: status 0 where it got no head."""

    method: str
    path: str
    range: str | None
    status: int
    fault: Kind | None


class Seen(msgspec.Struct, frozen=True):
    """What really happened so far, in the order in which requests came. Bytes are those of bodies."""

    exchanges: tuple[Exchange, ...]
    faults: dict[Kind, int]
    connections: int
    bytes_up: int
    bytes_down: int

    def count(self, method: str, status: int | None = None) -> int:
        """Exchanges of a method, and of a status where one is given."""
        return sum(one.method == method and status in (None, one.status) for one in self.exchanges)


def draw(*words: object) -> float:
    """A number in [0, 1), the same for the same words."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose(faults: Faults, number: int, method: str, path: str, met: Sequence[int]) -> int | None:
    """Which of the faults, if any, meets request `number` (from 1); `met`: how many each has met already."""
    if method not in faults.methods or faults.path_part not in path:
        return None
    for place, fault in enumerate(faults.faults):
        if method == "HEAD" and fault.kind in _OF_A_BODY:
            continue
        if method not in ("GET", "HEAD") and fault.kind not in _OF_AN_UPLOAD:
            continue
        if number < fault.first or (fault.most is not None and met[place] >= fault.most):
            continue
        if draw(faults.seed, number, place) < fault.share:
            return place
    return None
