"""Faults of a network and of an object store: stated as data, sampled from a seed, counted when they occur."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec

__all__ = ["Exchange", "Fault", "Faults", "Kind", "Seen", "choose", "uniform"]


class Kind(StrEnum):
    """What happens to a request."""

    STATUS = "status"  # answered with `status`, never forwarded
    EXPIRED = "expired"  # answered with S3's 403 ExpiredToken
    CUT = "cut"  # the connection is reset in the middle of the body, or of the uploaded body
    TRUNCATE = "truncate"  # the head promises the complete body, then the connection closes normally
    SHORTEN = "shorten"  # the body ends early and Content-Length agrees, so no client can notice
    STALL = "stall"  # silence for `seconds`, before the head or after `after_bytes` of the body
    CORRUPT = "corrupt"  # one byte of the body is changed
    LOSE = "lose"  # the store carries out the request, and its answer is lost


_OF_A_BODY = (Kind.CUT, Kind.TRUNCATE, Kind.SHORTEN, Kind.CORRUPT)
_OF_AN_UPLOAD = (Kind.STATUS, Kind.EXPIRED, Kind.CUT, Kind.STALL, Kind.LOSE)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault and the requests that it affects.

    `share`: share of the requests that no earlier fault of the list affects. `first`: number of the first request,
    from 1. `most`: affected requests at most. `after_bytes`: position in the body. [default: half of the body, also for
    shorter bodies; corrupt: a random byte; stall: before the head]
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
            raise TypeError(f"kind = {self.kind!r} is not a Kind")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share} of fault {self.kind}: expected a share between 0 and 1")
        if self.kind is Kind.STALL and self.seconds <= 0:
            raise ValueError("a stall needs seconds > 0")


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All faults between a client and its store. The default is none: the proxy only counts.

    `methods` and `path_part` select the requests that `faults` may affect; delays and the outage affect all.
    `latency_seconds` is added to each request. All connections share `bytes_per_second`, in both directions.
    `down_from_seconds` after these faults were set, the proxy resets open connections and refuses new ones for
    `down_seconds`.
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
            raise ValueError(
                f"bytes_per_second = {self.bytes_per_second}: expected a number above 0, or None for no limit"
            )


class Exchange(msgspec.Struct, frozen=True):
    """One request and its answer so far; status 0 if the client received no head."""

    method: str
    path: str
    range: str | None
    status: int
    fault: Kind | None


class Seen(msgspec.Struct, frozen=True):
    """What happened so far, in the order of the requests. Bytes count bodies only."""

    exchanges: tuple[Exchange, ...]
    faults: dict[Kind, int]
    connections: int
    bytes_up: int
    bytes_down: int

    def count(self, method: str, status: int | None = None) -> int:
        """Exchanges of a method, and of a status if one is given."""
        return sum(one.method == method and status in (None, one.status) for one in self.exchanges)


def uniform(*words: object) -> float:
    """A number in [0, 1) that depends only on the words."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose(faults: Faults, number: int, method: str, path: str, met: Sequence[int]) -> int | None:
    """Index of the fault that affects request `number` (from 1), or None; `met`: requests that each affected so far."""
    if method not in faults.methods or faults.path_part not in path:
        return None
    for index, fault in enumerate(faults.faults):
        if method == "HEAD" and fault.kind in _OF_A_BODY:
            continue
        if method not in ("GET", "HEAD") and fault.kind not in _OF_AN_UPLOAD:
            continue
        if number < fault.first or (fault.most is not None and met[index] >= fault.most):
            continue
        if uniform(faults.seed, number, index) < fault.share:
            return index
    return None
