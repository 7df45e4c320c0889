"""Objects of S3, GCS, Azure and web servers, by obstore: read, range, list, put."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.errors import DataError, MisuseError, NotThereError, StoreError
from vmae_data.storage.paths import RemotePath
from vmae_data.storage.retry import Transient, again, status_of

__all__ = [
    "Found",
    "Listed",
    "Part",
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
]

PART_BYTES = 8 << 20  # of a download or an upload
PARTS_AT_A_TIME = 4


class Found(NamedTuple):
    """What a store says of an object."""

    size: int
    etag: str | None


class Listed(NamedTuple):
    """An object below a folder, by its path relative to that."""

    path: str
    size: int


def read(place: RemotePath, give_up: float | None = None, most: int | None = None) -> bytes:
    """The whole of an object, read only where it has at most `most` bytes.

    Raises NotThereError, DataError for a larger one, StoreError; that soon where `give_up` seconds are few.
    """

    def call(store: Any) -> bytes:
        got = _get(store, place)
        if most is not None and got.meta["size"] > most:
            raise DataError(f"{place}: has {got.meta['size']} bytes, at most {most} were expected; check the URL")
        return bytes(got.bytes())

    return again(place, "read", call, give_up=give_up)


class Part(NamedTuple):
    """Bytes of an object, and which version of it they are of."""

    data: bytes
    etag: str | None


def read_part(place: RemotePath, offset: int, size: int, etag: str | None = None) -> Part:
    """`size` bytes from `offset`; fewer only where the object ends.

    Raises NotThereError, ReplacedError where the object is not the one of `etag`, StoreError.
    """

    from obstore import exceptions

    def call(store: Any) -> Part:
        try:
            got = _get(store, place, range=(offset, offset + size), if_match=etag)
        except exceptions.BaseError as error:
            if status_of(str(error)) == 416:  # it ends before
                return Part(b"", None)
            raise
        data = bytes(got.bytes())
        first, last = got.range
        if first != offset or len(data) != last - first:
            raise Transient("fewer bytes than the answer said")
        return Part(data, got.meta["e_tag"])

    return again(place, "read", call)


def stat(place: RemotePath) -> Found | None:
    """Size and etag of an object; None where there is none."""
    import obstore

    def call(store: Any) -> Found:
        meta = obstore.head(store, place.path)
        return Found(meta["size"], meta["e_tag"])

    try:
        return again(place, "read", call)
    except NotThereError:
        return None


def download(place: RemotePath, to: Path) -> Found:
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


def stream(place: RemotePath) -> Iterator[bytes]:
    """An object's bytes, part after part. Raises NotThereError, ReplacedError, StoreError."""
    found = stat(place)
    if found is None:
        raise NotThereError(f"{place}: is not there; check the path")
    for offset in range(0, found.size, PART_BYTES):
        yield read_part(place, offset, min(PART_BYTES, found.size - offset), found.etag).data


def put(place: RemotePath, data: bytes | Path) -> None:
    """Write an object, whole or not at all; a large one in parts. Raises StoreError."""
    import obstore

    again(place, "written", lambda store: obstore.put(store, place.path, data, chunk_size=PART_BYTES), writes=True)


def create(place: RemotePath, data: bytes) -> bool:
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
    return again(place, "written", call, writes=True) or read(place) == data


def remove(place: RemotePath) -> None:
    """Take an object away; nothing where there is none."""
    import obstore

    def call(store: Any) -> None:
        try:
            obstore.delete(store, place.path)
        except FileNotFoundError:
            return

    again(place, "removed", call, writes=True)


def list_folder(place: RemotePath) -> dict[str, int]:
    """The objects right in a folder: name → size."""
    import obstore

    def call(store: Any) -> dict[str, int]:
        found = obstore.list_with_delimiter(store, f"{place.path}/" if place.path else None)
        return {meta["path"].rpartition("/")[2]: meta["size"] for meta in found["objects"]}

    return again(_listable(place), "listed", call)


def holds_anything(place: RemotePath) -> bool:
    """Whether any object lies below a folder of a bucket."""
    import obstore

    def call(store: Any) -> bool:
        chunks = obstore.list(store, f"{place.path}/" if place.path else None, chunk_size=1)
        return any(len(chunk) for chunk in chunks)

    return again(_listable(place), "listed", call)


def list_tree(place: RemotePath) -> Iterator[Listed]:
    """Every object below a folder, in the order of their paths' bytes."""
    import obstore

    def call(store: Any) -> list[Listed]:
        start = len(place.path) + 1 if place.path else 0
        chunks = obstore.list(store, f"{place.path}/" if place.path else None)
        return [Listed(meta["path"][start:], meta["size"]) for chunk in chunks for meta in chunk]

    yield from sorted(again(_listable(place), "listed", call), key=lambda listed: listed.path.encode())


def _listable(place: RemotePath) -> RemotePath:
    if place.is_web:
        raise MisuseError(f"{place}: a web server has no listing; name a bucket or a folder")
    return place


def _get(store: Any, place: RemotePath, **options: Any) -> Any:
    import obstore

    given: Any = {key: value for key, value in options.items() if value is not None}
    return obstore.get(store, place.path, options=given)
