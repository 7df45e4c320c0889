"""Objects of S3, GCS, Azure and web servers, by obstore: read, range, list, put; bounded retries; one line for what stays wrong.

A client is opened in the process that uses it (obstore does not survive a fork), once a store. Nothing here
lets an obstore error's own text through: it may hold a signed URL.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vmae_data.errors import DataError, MisuseError, NotThereError, ReplacedError, StoreError, VmaeError
from vmae_data.store.options import Access, access_of
from vmae_data.store.place import RemotePlace

__all__ = [
    "Found",
    "Listed",
    "create",
    "download",
    "holds_anything",
    "list_folder",
    "list_tree",
    "put",
    "read",
    "read_part",
    "remove",
    "stat",
    "stream",
    "waited",
]

Answer = TypeVar("Answer")
PART_BYTES = 8 << 20  # of a download or an upload
PARTS_AT_A_TIME = 4
UPLOAD_TRIES = 8  # of each part
FIRST_WAIT, LONGEST_WAIT = 0.2, 15.0  # seconds
REFUSED_TRIES = 3  # credentials that were renewed meanwhile are read again
_STATUS = re.compile(
    r"\b(?:status(?: code)?:?|HTTP status \w+ error \(|Server returned non-2xx status code:)\s*\(?([1-5]\d\d)\b", re.I
)
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_BUSY = (408, 425, 429)


class Found(NamedTuple):
    """What a store says of an object."""

    size: int
    etag: str | None


class Listed(NamedTuple):
    """An object below a folder, by its path relative to that."""

    path: str
    size: int


class _Opened(NamedTuple):
    """A store, opened twice: what is read is asked for again by us, who can say why; the parts of an upload
    are sent again by the client, which knows what has come through.
    """

    reader: Any
    writer: Any
    access: Access


class _Clients:
    """The open stores of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, str], _Opened] = {}

    def get(self, place: RemotePlace) -> _Opened:
        with self._lock:
            key = (os.getpid(), place.root)
            if key not in self._opened:
                self._opened[key] = _open(place)
            return self._opened[key]

    def forget(self, place: RemotePlace) -> None:
        """Open it again next time: its credentials may have been renewed."""
        with self._lock:
            self._opened.pop((os.getpid(), place.root), None)


_CLIENTS = _Clients()


def _open(place: RemotePlace) -> _Opened:
    from obstore import exceptions
    from obstore import store as stores

    access = access_of(place.scheme)
    config: Any = access.config or None

    def opened(make: Callable[..., Any], *where: Any, **given: Any) -> _Opened:
        limit = timedelta(seconds=access.give_up)
        patient = {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=LONGEST_WAIT)}
        retries: tuple[dict[str, Any], ...] = (
            {"max_retries": 0, "retry_timeout": limit},
            {"max_retries": UPLOAD_TRIES, "retry_timeout": limit, "backoff": patient},
        )
        reader, writer = (make(*where, **given, client_options=access.client, retry_config=one) for one in retries)
        return _Opened(reader, writer, access)

    try:
        if place.scheme == "s3":
            return opened(stores.S3Store, place.container, config=config)
        if place.scheme == "gs":
            return opened(stores.GCSStore, place.container, config=config)
        if place.scheme == "az":
            return opened(stores.AzureStore, place.container, config=config)
        if access.config:
            raise MisuseError(f"--storage-option {next(iter(access.config))}: not known for {place.scheme}://")
        return opened(stores.HTTPStore.from_url, place.root)
    except exceptions.BaseError as error:
        key = re.search(r"[Cc]onfiguration key[^'\"]*['\"]([a-z0-9_.]+)['\"]", str(error))
        what = f"--storage-option {key[1]}: not known for" if key else "options that can't be used for"
        raise MisuseError(f"{what} {place.root}; see docs/storage.md") from None


def read(place: RemotePlace) -> bytes:
    """The whole of an object. Raises NotThereError, StoreError."""
    return _again(place, "read", lambda store: bytes(_get(store, place).bytes()))


class Part(NamedTuple):
    """Bytes of an object, and which version of it they are of."""

    data: bytes
    etag: str | None


def read_part(place: RemotePlace, offset: int, size: int, etag: str | None = None) -> Part:
    """`size` bytes from `offset`; fewer only where the object ends.

    Raises NotThereError, ReplacedError where the object is not the one of `etag`, StoreError.
    """

    from obstore import exceptions

    def call(store: Any) -> Part:
        try:
            got = _get(store, place, range=(offset, offset + size), if_match=etag)
        except exceptions.BaseError as error:
            if _status(str(error)) == 416:  # it ends before
                return Part(b"", None)
            raise
        data = bytes(got.bytes())
        first, last = got.range
        if first != offset or len(data) != last - first:
            raise _Transient("fewer bytes than the answer said")
        return Part(data, got.meta["e_tag"])

    return _again(place, "read", call)


def stat(place: RemotePlace) -> Found | None:
    """Size and etag of an object; None where there is none."""
    import obstore

    def call(store: Any) -> Found:
        meta = obstore.head(store, place.path)
        return Found(meta["size"], meta["e_tag"])

    try:
        return _again(place, "read", call)
    except NotThereError:
        return None


def download(place: RemotePlace, to: Path) -> Found:
    """Copy an object into a file of this machine, in parts, several at a time. The caller checks its sum.

    Raises NotThereError, ReplacedError, StoreError, and OSError for the file.
    """
    found = stat(place)
    if found is None:
        raise NotThereError(f"{place}: is not there; check the path")
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(1, found.size))  # a full disk is met before the bytes are fetched

        def fetch(offset: int) -> None:
            size = min(PART_BYTES, found.size - offset)
            part = read_part(place, offset, size, found.etag)
            if len(part.data) != size:
                raise StoreError(f"{place}: ended after {offset + len(part.data)} of {found.size} bytes; run it again")
            os.pwrite(descriptor, part.data, offset)

        with ThreadPoolExecutor(PARTS_AT_A_TIME) as pool:
            for _ in pool.map(fetch, range(0, found.size, PART_BYTES)):
                pass
        os.ftruncate(descriptor, found.size)
    finally:
        os.close(descriptor)
    return found


def stream(place: RemotePlace) -> Iterator[bytes]:
    """An object's bytes, part after part. Raises NotThereError, ReplacedError, StoreError."""
    found = stat(place)
    if found is None:
        raise NotThereError(f"{place}: is not there; check the path")
    for offset in range(0, found.size, PART_BYTES):
        yield read_part(place, offset, min(PART_BYTES, found.size - offset), found.etag).data


def put(place: RemotePlace, data: bytes | Path) -> None:
    """Write an object, whole or not at all; a large one in parts. Raises StoreError."""
    import obstore

    _again(place, "written", lambda store: obstore.put(store, place.path, data, chunk_size=PART_BYTES), writes=True)


def create(place: RemotePlace, data: bytes) -> bool:
    """Write an object unless it is there; True where this call made it. Of several at the same time one does."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    def call(store: Any) -> bool:
        try:
            obstore.put(store, place.path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    # A first try whose answer was lost may have made it: then what is there is what we wrote.
    return _again(place, "written", call, writes=True) or read(place) == data


def remove(place: RemotePlace) -> None:
    """Take an object away; nothing where there is none."""
    import obstore

    def call(store: Any) -> None:
        try:
            obstore.delete(store, place.path)
        except FileNotFoundError:
            return

    _again(place, "removed", call, writes=True)


def list_folder(place: RemotePlace) -> dict[str, int]:
    """The objects right in a folder: name → size."""
    import obstore

    def call(store: Any) -> dict[str, int]:
        found = obstore.list_with_delimiter(store, f"{place.path}/" if place.path else None)
        return {meta["path"].rpartition("/")[2]: meta["size"] for meta in found["objects"]}

    return _again(_listable(place), "listed", call)


def holds_anything(place: RemotePlace) -> bool:
    """Whether any object lies below a folder of a bucket."""
    import obstore

    def call(store: Any) -> bool:
        chunks = obstore.list(store, f"{place.path}/" if place.path else None, chunk_size=1)
        return any(len(chunk) for chunk in chunks)

    return _again(_listable(place), "listed", call)


def list_tree(place: RemotePlace) -> Iterator[Listed]:
    """Every object below a folder, in the order of their paths' bytes."""
    import obstore

    def call(store: Any) -> list[Listed]:
        start = len(place.path) + 1 if place.path else 0
        chunks = obstore.list(store, f"{place.path}/" if place.path else None)
        return [Listed(meta["path"][start:], meta["size"]) for chunk in chunks for meta in chunk]

    yield from sorted(_again(_listable(place), "listed", call), key=lambda listed: listed.path.encode())


def _listable(place: RemotePlace) -> RemotePlace:
    if place.scheme.startswith("http"):
        raise MisuseError(f"{place}: a web server has no listing; name a bucket or a folder")
    return place


def _get(store: Any, place: RemotePlace, **options: Any) -> Any:
    import obstore

    given: Any = {key: value for key, value in options.items() if value is not None}
    return obstore.get(store, place.path, options=given)


class _Transient(Exception):
    """An answer that is not what it should be, and may be the next time."""


class _Trouble(NamedTuple):
    """What went wrong in a call, in words of ours."""

    words: str
    passing: bool  # the next try may do
    refused: bool = False  # by the credentials
    busy: bool = False  # the store asks for patience


_local = threading.local()


def waited() -> float:
    """Seconds that this thread has waited between tries, in all."""
    return getattr(_local, "waited", 0.0)


def _again(place: RemotePlace, done: str, call: Callable[[Any], Answer], *, writes: bool = False) -> Answer:
    """Call until it gives an answer, or the time for a store that does not answer is over."""
    started_at = time.monotonic()
    tries = refused = 0
    while True:
        opened = _CLIENTS.get(place)
        try:
            return call(opened.writer if writes else opened.reader)
        except Exception as error:
            if isinstance(error, VmaeError):
                raise
            trouble = _trouble_of(error, place)
            tries += 1
            refused += trouble.refused
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries, 10))  # noqa: S311 - jitter
            spent = time.monotonic() - started_at
            if trouble.refused and refused < REFUSED_TRIES:
                _CLIENTS.forget(place)
            elif not trouble.passing:
                raise DataError(f"{place}: can't be {done} ({trouble.words}); {_advice(trouble)}") from None
            if trouble.busy:
                wait = _wish(opened.reader, place, opened.access) or wait
            if spent + wait > opened.access.give_up:
                raise StoreError(
                    f"{place}: can't be {done} ({trouble.words}, {tries} tries in {spent:.0f} s); "
                    "check the store and the network, then run the same command again"
                ) from None
            _local.waited = waited() + wait
            time.sleep(wait)


def _advice(trouble: _Trouble) -> str:
    if trouble.refused:
        return "check the credentials (environment, AWS_PROFILE, --storage-option), then run the same command again"
    return "check the URL and the storage options"


def _trouble_of(error: Exception, place: RemotePlace) -> _Trouble:
    """Sort an error of obstore by its class and status. Raises what has a class of its own here."""
    from obstore import exceptions

    text = str(error)
    status = _status(text)
    code = next(iter(_CODE.findall(text)), "")
    named = ", ".join(filter(None, [f"status {status}" if status else "", code]))
    if isinstance(error, _Transient):
        return _Trouble(str(error), passing=True)
    if isinstance(error, FileNotFoundError):
        raise NotThereError(f"{place}: is not there{f' ({code})' if code else ''}; check the path") from None
    if isinstance(error, exceptions.NotSupportedError):
        raise DataError(f"{place}: its server gives no part of a file; use one that answers range requests") from None
    if isinstance(error, exceptions.PreconditionError) or "precondition failure" in text.lower():
        raise ReplacedError(f"{place}: was replaced while it was read; open the data set again") from None
    if "169.254." in text or ("metadata" in text.lower() and not status):
        return _Trouble("no credentials found", passing=False, refused=True)
    if status in _BUSY or code in ("SlowDown", "RequestLimitExceeded") or status == 503:
        return _Trouble(named or "busy", passing=True, busy=True)
    if (
        isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        or status in (401, 403)
        or "ExpiredToken" in code
    ):
        return _Trouble(f"refused: {named or type(error).__name__}", passing=False, refused=True)
    if (status >= 500 and status != 501) or (not status and isinstance(error, exceptions.GenericError)):
        return _Trouble(named or _network_words(text), passing=True)
    return _Trouble(named or type(error).__name__, passing=False)


def _status(text: str) -> int:
    return next((int(found) for found in _STATUS.findall(text)), 0)


def _network_words(text: str) -> str:
    """What the network did, in one of a few phrases."""
    lower = text.lower()
    for sign, words in (
        ("connection refused", "connection refused"),
        ("connection reset", "connection reset"),
        ("timed out", "no answer in time"),
        ("timedout", "no answer in time"),
        ("dns", "no such host"),
        ("lookup address", "no such host"),
        ("certificate", "its certificate is not valid"),
        ("incompletemessage", "connection cut"),
        ("body", "connection cut"),
        ("connect", "no connection"),
    ):
        if sign in lower:
            return words
    return "no answer that can be read"


def _wish(store: Any, place: RemotePlace, access: Access) -> float | None:
    """The seconds that a busy store asks to wait (Retry-After), asked by a request of one byte; None where it doesn't say.

    obstore does not show the headers of a failed answer, so the store is asked once more, by a signed URL.
    """
    import http.client
    import urllib.error
    import urllib.request

    import obstore

    try:
        url = (
            f"{place.root}/{place.path}"
            if place.scheme.startswith("http")
            else obstore.sign(store, "GET", place.path, timedelta(minutes=1))
        )
        headers = {**access.client.get("default_headers", {}), "Range": "bytes=0-0"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):
            return None
    except urllib.error.HTTPError as error:
        given = error.headers.get("Retry-After", "")
        return float(given) if given.isdigit() else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    except Exception:  # a store that signs no URLs
        return None
