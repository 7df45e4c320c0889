"""Objects of S3, GCS, Azure and web servers by obstore: read, read a range, list, put."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.errors import DataError, MisuseError, NotFoundError, StoreError
from vmae_data.storage.paths import RemotePath
from vmae_data.storage.retry import Transient, retried, status_of

__all__ = [
    "ObjectInfo",
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
CONCURRENT_PARTS = 4


class ObjectInfo(NamedTuple):
    """Size in bytes and version of an object."""

    size: int
    etag: str | None


class Part(NamedTuple):
    """Bytes of an object, and the version that they come from."""

    data: bytes
    etag: str | None


def read(path: RemotePath, give_up: float | None = None, most: int | None = None) -> bytes:
    """All bytes of an object.

    Raises NotFoundError, DataError if it has more than `most` bytes, StoreError (after `give_up` seconds, if that is
    less than the configured limit).
    """

    def call(store: Any) -> bytes:
        response = _get(store, path)
        size = response.meta["size"]
        if most is not None and size > most:
            raise DataError(f"{path}: has {size} bytes, at most {most} were expected. Check the URL")
        return bytes(response.bytes())

    return retried(path, "read", call, give_up=give_up)


def read_part(path: RemotePath, offset: int, size: int, etag: str | None = None) -> Part:
    """`size` bytes from `offset`, fewer only at the object's end.

    Raises NotFoundError, ReplacedError if the object's version is not `etag`, StoreError.
    """

    from obstore import exceptions

    def call(store: Any) -> Part:
        try:
            response = _get(store, path, range=(offset, offset + size), if_match=etag)
        except exceptions.BaseError as error:
            if status_of(str(error)) == 416:  # the object ends before `offset`
                return Part(b"", None)
            raise
        data = bytes(response.bytes())
        first, last = response.range
        if first != offset or len(data) != last - first:
            raise Transient("fewer bytes than announced")
        return Part(data, response.meta["e_tag"])

    return retried(path, "read", call)


def stat(path: RemotePath) -> ObjectInfo | None:
    """Size and version of an object; None if there is none."""
    import obstore

    def call(store: Any) -> ObjectInfo:
        meta = obstore.head(store, path.path)
        return ObjectInfo(meta["size"], meta["e_tag"])

    try:
        return retried(path, "read", call)
    except NotFoundError:
        return None


def download(path: RemotePath, to: Path) -> None:
    """Copy an object into a local file, several parts at a time. The caller verifies the checksum.

    Raises NotFoundError, ReplacedError, StoreError, and OSError for the local file.
    """
    info = _stat(path)
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(1, info.size))  # a full disk fails before anything is downloaded

        def fetch(offset: int) -> None:
            size = min(PART_BYTES, info.size - offset)
            part = read_part(path, offset, size, info.etag)
            if len(part.data) != size:
                raise StoreError(
                    f"{path}: ended after {offset + len(part.data)} of {info.size} bytes. Run the same command again"
                )
            os.pwrite(descriptor, part.data, offset)

        with ThreadPoolExecutor(CONCURRENT_PARTS) as pool:
            for _ in pool.map(fetch, range(0, info.size, PART_BYTES)):
                pass
        os.ftruncate(descriptor, info.size)
    finally:
        os.close(descriptor)


def stream(path: RemotePath) -> Iterator[bytes]:
    """An object's bytes, part after part. Raises NotFoundError, ReplacedError, StoreError."""
    info = _stat(path)
    for offset in range(0, info.size, PART_BYTES):
        yield read_part(path, offset, min(PART_BYTES, info.size - offset), info.etag).data


def _stat(path: RemotePath) -> ObjectInfo:
    info = stat(path)
    if info is None:
        raise NotFoundError(f"{path}: does not exist. Check the path")
    return info


def put(path: RemotePath, data: bytes | Path) -> None:
    """Write an object completely or not at all, a large one in parts. Raises StoreError."""
    import obstore

    retried(path, "written", lambda store: obstore.put(store, path.path, data, chunk_size=PART_BYTES), writes=True)


def create(path: RemotePath, data: bytes) -> bool:
    """Write an object unless it exists. True if this call made it: exactly one of several concurrent calls does."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    def call(store: Any) -> bool:
        try:
            obstore.put(store, path.path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    # A first try whose answer was lost may have made it: then the object has our bytes.
    return retried(path, "written", call, writes=True) or read(path) == data


def remove(path: RemotePath) -> None:
    """Remove an object, if there is one."""
    import obstore

    def call(store: Any) -> None:
        try:
            obstore.delete(store, path.path)
        except FileNotFoundError:
            return

    retried(path, "removed", call, writes=True)


def list_folder(path: RemotePath) -> dict[str, int]:
    """The objects directly in a folder: name → bytes."""
    import obstore

    prefix = _prefix(path)

    def call(store: Any) -> dict[str, int]:
        listing = obstore.list_with_delimiter(store, prefix)
        return {meta["path"].rpartition("/")[2]: meta["size"] for meta in listing["objects"]}

    return retried(path, "listed", call)


def holds_anything(path: RemotePath) -> bool:
    """Whether there is an object below a folder of a bucket."""
    import obstore

    prefix = _prefix(path)

    def call(store: Any) -> bool:
        return any(len(chunk) for chunk in obstore.list(store, prefix, chunk_size=1))

    return retried(path, "listed", call)


def list_tree(path: RemotePath) -> dict[str, int]:
    """Every object below a folder of a bucket: relative path → bytes, in byte order of the paths."""
    import obstore

    prefix = _prefix(path)
    start = len(prefix or "")

    def call(store: Any) -> dict[str, int]:
        return {meta["path"][start:]: meta["size"] for chunk in obstore.list(store, prefix) for meta in chunk}

    return dict(sorted(retried(path, "listed", call).items(), key=lambda item: item[0].encode()))


def _prefix(path: RemotePath) -> str | None:
    if path.is_web:
        raise MisuseError(f"{path}: a web server has no listing. Name a bucket or a folder")
    return f"{path.path}/" if path.path else None


def _get(store: Any, path: RemotePath, **options: Any) -> Any:
    import obstore

    used: Any = {key: value for key, value in options.items() if value is not None}
    return obstore.get(store, path.path, options=used)
