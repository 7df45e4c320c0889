"""Objects of S3, GCS, Azure and web servers by obstore: read, read a range, list, put."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.errors import DataError, MisuseError, NoRangesError, NotFoundError, ReplacedError, StoreError
from vmae_data.storage.attempt import CHUNK_BYTES, Progress, Transient, thread_pool
from vmae_data.storage.paths import RemotePath
from vmae_data.storage.retry import retried, status_of

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
STREAM_BYTES = 64 << 20  # of a request of `stream`: a store that fails gets its time limit for each
CONCURRENT_PARTS = 4
DOWNLOADS = 5  # of an object that is replaced during each
LARGEST_BYTES = 1 << 50  # that an object may claim to have; no store takes a larger one
_HADOOP_FOLDER = "_$folder$"  # the end of the name of an empty object


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

    def call(store: Any, progress: Progress) -> bytes:
        with _get(store, path) as response:
            size = _size(response.meta, path)
            if most is not None and size > most:
                raise DataError(f"{path}: has {size} bytes, at most {most} were expected. Check the URL")
            return _body(response, size, progress)

    return retried(path, "read", call, give_up=give_up)


def read_part(path: RemotePath, offset: int, size: int, etag: str | None = None) -> Part:
    """`size` bytes from `offset`, fewer only at the object's end.

    Raises NotFoundError, ReplacedError if the object's version is not `etag`, StoreError.
    """

    from obstore import exceptions

    def call(store: Any, progress: Progress) -> Part:
        try:
            with _get(store, path, range=(offset, offset + size), if_match=etag) as response:
                first, last = response.range
                data = _body(response, size, progress)
        except exceptions.BaseError as error:
            if status_of(str(error)) == 416:  # the object ends before `offset`
                return Part(b"", None)
            raise
        if first != offset or len(data) != last - first:
            raise Transient("fewer bytes than announced")
        return Part(data, response.meta["e_tag"])

    return retried(path, "read", call)


def stat(path: RemotePath) -> ObjectInfo | None:
    """Size and version of an object; None if there is none."""
    import obstore

    from vmae_data.storage.web import WebStore

    def call(store: Any, _progress: Progress) -> ObjectInfo:
        meta = store.head(path.path) if isinstance(store, WebStore) else obstore.head(store, path.path)
        return ObjectInfo(_size(meta, path), meta["e_tag"])

    try:
        return retried(path, "read", call)
    except NotFoundError:
        return None


def download(path: RemotePath, to: Path) -> None:
    """Copy an object into a local file, several parts at a time. The caller verifies the checksum.

    From a web server without ranges it comes in one request. Begins anew if the object is replaced meanwhile, as the log of a run that another process trains.
    Raises NotFoundError, ReplacedError if that happens again and again, StoreError, and OSError for the local file.
    """
    for _ in range(DOWNLOADS - 1):
        with suppress(ReplacedError):
            return _download_version(path, to)
    return _download_version(path, to)


def _download_version(path: RemotePath, to: Path) -> None:
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

        try:
            with thread_pool(CONCURRENT_PARTS) as pool:
                for _ in pool.map(fetch, range(0, info.size, PART_BYTES)):
                    pass
        except NoRangesError:
            _download_whole(path, to, info)
        os.ftruncate(descriptor, info.size)
    finally:
        os.close(descriptor)


def _download_whole(path: RemotePath, to: Path, info: ObjectInfo) -> None:
    """Fill the file by one request; after an error by another."""

    def call(store: Any, progress: Progress) -> None:
        # A call that nobody waits for any more may still run, so each has its own descriptor.
        with _get(store, path) as response, to.open("r+b") as file:
            if response.meta["e_tag"] != info.etag:
                raise ReplacedError(f"{path}: was replaced while it was read. Open the data set again")
            for chunk in response.stream(min_chunk_size=CHUNK_BYTES):
                progress.add_chunk()
                if file.tell() + len(chunk) > info.size:
                    raise Transient("more bytes than announced")
                file.write(chunk)
            if file.tell() < info.size:
                raise Transient("fewer bytes than announced")

    retried(path, "read", call)


def stream(path: RemotePath, take: Callable[[bytes], object]) -> None:
    """Call `take` with an object's bytes, in their order. It runs in other threads, one call at a time.

    Each byte comes once: a broken request continues where it broke. Raises NotFoundError, ReplacedError, StoreError, and
    errors of `take` that are VmaeErrors.
    """
    info = _stat(path)
    for offset in range(0, info.size, STREAM_BYTES):
        _stream_part(path, offset, min(info.size, offset + STREAM_BYTES), info.etag, take)


def _stream_part(path: RemotePath, start: int, end: int, etag: str | None, take: Callable[[bytes], object]) -> None:
    lock = threading.Lock()  # a call that nobody waits for any more may still run
    taken = start

    def call(store: Any, progress: Progress) -> None:
        nonlocal taken
        with lock:
            first = taken
        with _get(store, path, range=(first, end), if_match=etag) as response:
            if response.range[0] != first:
                raise Transient("another range than requested")
            for chunk in response.stream(min_chunk_size=CHUNK_BYTES):
                with lock:
                    progress.add_chunk()
                    if taken + len(chunk) > end:
                        raise Transient("more bytes than announced")
                    take(chunk)
                    taken += len(chunk)
        if taken < end:
            raise Transient("fewer bytes than announced")

    try:
        retried(path, "read", call)
    finally:
        with lock:  # `take` is never called after this function has ended
            pass


def _stat(path: RemotePath) -> ObjectInfo:
    info = stat(path)
    if info is None:
        raise NotFoundError(f"{path}: does not exist. Check the path")
    return info


def put(path: RemotePath, data: bytes | Path) -> None:
    """Write an object completely or not at all, a large one in parts. Raises StoreError."""
    import obstore

    def call(store: Any, _progress: Progress) -> None:
        # Few parts share a slow link, because each request has limited time.
        obstore.put(store, path.path, data, chunk_size=PART_BYTES, max_concurrency=CONCURRENT_PARTS)

    retried(path, "written", call, writes=True)


def create(path: RemotePath, data: bytes) -> bool:
    """Write an object unless it exists. True if this call made it: exactly one of several concurrent calls does."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    def call(store: Any, _progress: Progress) -> bool:
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

    def call(store: Any, _progress: Progress) -> None:
        try:
            obstore.delete(store, path.path)
        except FileNotFoundError:
            return

    retried(path, "removed", call, writes=True)


def list_folder(path: RemotePath) -> dict[str, int]:
    """The objects directly in a folder, without markers of folders: name → bytes."""
    import obstore

    prefix = _prefix(path)
    start = len(prefix or "")

    def call(store: Any, _progress: Progress) -> dict[str, int]:
        listing = obstore.list_with_delimiter(store, prefix)
        sizes = {meta["path"][start:]: _size(meta, path) for meta in listing["objects"]}
        return _without_markers(sizes, {folder[start:] for folder in listing["common_prefixes"]})

    return retried(path, "listed", call, measured=False)


def holds_anything(path: RemotePath) -> bool:
    """Whether there is an object below a folder of a bucket."""
    import obstore

    prefix = _prefix(path)

    def call(store: Any, _progress: Progress) -> bool:
        return any(len(chunk) for chunk in obstore.list(store, prefix, chunk_size=1))

    return retried(path, "listed", call)


def list_tree(path: RemotePath) -> dict[str, int]:
    """Every object below a folder of a bucket, without markers of folders: relative path → bytes, in their byte order."""
    import obstore

    prefix = _prefix(path)
    start = len(prefix or "")

    def call(store: Any, progress: Progress) -> dict[str, int]:
        sizes = {}
        for chunk in obstore.list(store, prefix):
            progress.add_chunk()
            sizes.update({meta["path"][start:]: _size(meta, path) for meta in chunk})
        return sizes

    sizes = retried(path, "listed", call)
    folders = {name[: match.start()] for name in sizes for match in re.finditer("/", name)}
    sizes = _without_markers(sizes, folders)
    # obstore shows the marker of an empty folder as an empty file. A listing of the folder above tells them apart.
    above = {name.rpartition("/")[0] for name, size in sizes.items() if not size}
    files = {parent: list_folder(path / parent if parent else path) for parent in above}
    names = (name for name, size in sizes.items() if size or name.rpartition("/")[2] in files[name.rpartition("/")[0]])
    return {name: sizes[name] for name in sorted(names, key=str.encode)}


def _without_markers(sizes: dict[str, int], folders: set[str]) -> dict[str, int]:
    """Consoles make a folder as an empty object `folder/`; obstore lists it as `folder`. Hadoop: `folder_$folder$`."""
    return {
        name: size
        for name, size in sizes.items()
        if name and (size or not (name in folders or name.endswith(_HADOOP_FOLDER)))
    }


def _prefix(path: RemotePath) -> str | None:
    if path.is_web:
        raise MisuseError(f"{path}: a web server has no listing. Name a bucket or a folder")
    return f"{path.path}/" if path.path else None


@contextmanager
def _get(store: Any, path: RemotePath, **options: Any) -> Iterator[Any]:
    import obstore

    from vmae_data.storage.web import WebStore

    used: Any = {key: value for key, value in options.items() if value is not None}
    if isinstance(store, WebStore):
        with store.get(path.path, used) as response:
            yield response
    else:
        yield obstore.get(store, path.path, options=used)


def _body(response: Any, most: int, progress: Progress) -> bytes:
    """The bytes of an answer. Raises Transient if there are more than `most`."""
    chunks, size = [], 0
    for chunk in response.stream(min_chunk_size=CHUNK_BYTES):
        progress.add_chunk()
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            raise Transient("more bytes than announced")
    return b"".join(chunks)


def _size(meta: Any, path: RemotePath) -> int:
    size = int(meta["size"])
    if size > LARGEST_BYTES:
        raise DataError(f"{path}: its store states a size of {size} bytes, which can't be. Check the store")
    return size
