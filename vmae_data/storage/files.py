"""Operations on a file that work for each kind of path: on this machine, in a bucket, on a web server."""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from vmae_data.errors import DataError, MisuseError, StoreError
from vmae_data.storage import local_files, remote
from vmae_data.storage.attempt import thread_pool
from vmae_data.storage.local_files import temporary_path, write_error
from vmae_data.storage.paths import RemotePath, StoragePath

__all__ = [
    "Span",
    "commit_bytes",
    "commit_file",
    "copied",
    "copy_here",
    "create_bytes",
    "exists",
    "file_size",
    "hash_file",
    "in_threads",
    "is_folder",
    "list_names",
    "listable",
    "read_bytes",
    "read_each",
    "read_range",
    "read_spans",
    "remove",
    "writable",
]

CONCURRENT_CALLS = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


class Span(NamedTuple):
    """A range of bytes in a file."""

    offset: int
    size: int


def read_bytes(path: StoragePath, *, give_up: float | None = None, most: int | None = None) -> bytes:
    """All bytes of a file. Raises DataError naming it, StoreError if its store does not answer.

    For a remote file: `give_up` limits the seconds of retries, `most` the file's size in bytes.
    """
    return local_files.read_bytes(path) if isinstance(path, Path) else remote.read(path, give_up, most)


def read_range(path: StoragePath, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the file's end.

    Raises as `read_bytes` does, and DataError for negative numbers.
    """
    if offset < 0 or size < 0:
        raise DataError(f"{path}: can't read {size} bytes at offset {offset}. The record with these numbers is damaged")
    if isinstance(path, Path):
        return local_files.read_part(path, offset, size)
    return remote.read_part(path, offset, size).data


def read_spans(path: StoragePath, spans: Sequence[Span]) -> Iterator[bytes]:
    """Many ranges of one file, in order. Raises as `read_bytes` does, DataError if the file ends before a range does."""
    if isinstance(path, Path):
        parts: Iterator[bytes] = (local_files.read_part(path, span.offset, span.size) for span in spans)
    else:
        parts = in_threads(lambda span: remote.read_part(path, span.offset, span.size).data, spans)
    for span, data in zip(spans, parts, strict=True):
        if len(data) != span.size:
            raise DataError(
                f"{path}: ends after {span.offset + len(data)} bytes, {span.offset + span.size} were expected"
            )
        yield data


def read_each(paths: Sequence[StoragePath]) -> Iterator[bytes]:
    """All bytes of each file, in order; remote files concurrently. Raises as `read_bytes` does."""
    is_local = all(isinstance(path, Path) for path in paths)
    return map(read_bytes, paths) if is_local else in_threads(read_bytes, paths)


def in_threads(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` with concurrent calls, results in order: a store is slow to answer one call, but answers many at once.

    At most `CONCURRENT_CALLS` results are held.
    """
    futures: deque[Future[Result]] = deque()
    with thread_pool(CONCURRENT_CALLS) as pool:
        try:
            for item in items:
                futures.append(pool.submit(call, item))
                if len(futures) >= CONCURRENT_CALLS:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


def file_size(path: StoragePath) -> int | None:
    """Bytes of a file; None if there is none."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    info = remote.stat(path)
    return info.size if info else None


def exists(path: StoragePath) -> bool:
    """Whether there is such a file."""
    return file_size(path) is not None


def is_folder(path: StoragePath) -> bool:
    """Whether there are files below this path. A web server can't tell: True."""
    if isinstance(path, Path):
        return path.is_dir()
    return not listable(path) or remote.holds_anything(path)


def listable(path: StoragePath) -> bool:
    """Whether its folder can be listed; a web server's can't."""
    return isinstance(path, Path) or not path.is_web


def list_names(folder: StoragePath) -> dict[str, int]:
    """The files directly in a folder: name → bytes. Empty if there is no such folder.

    Raises MisuseError for a web server, which has no listing.
    """
    if isinstance(folder, RemotePath):
        return remote.list_folder(folder)
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def writable(path: StoragePath) -> StoragePath:
    """Returns the path. Raises MisuseError for a web server, which takes no writes."""
    if not listable(path):
        raise MisuseError(f"{path}: a web server can't be written to. Name a folder or a bucket")
    return path


def commit_bytes(path: StoragePath, data: bytes, writer: str = "") -> None:
    """Write a file completely or not at all. `writer`: see `temporary_path`."""
    if isinstance(path, Path):
        local_files.commit_bytes(path, data, writer)
    else:
        remote.put(path, data)


def commit_file(temporary: Path, path: StoragePath) -> None:
    """Move a complete temporary file to its final path: rename it, or upload it and remove it here."""
    if isinstance(path, Path):
        local_files.commit_file(temporary, path)
        return
    size = temporary.stat().st_size
    remote.put(path, temporary)
    if (stored := file_size(path)) != size:
        raise StoreError(f"{path}: has {stored} bytes after an upload of {size}. Run the same command again")
    temporary.unlink(missing_ok=True)


def create_bytes(path: StoragePath, data: bytes) -> bool:
    """Write a file unless it exists. True if this call made it: exactly one of several concurrent calls does."""
    return local_files.create_bytes(path, data) if isinstance(path, Path) else remote.create(path, data)


def remove(path: StoragePath) -> None:
    """Remove a file, if there is one."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        remote.remove(path)


def hash_file(path: StoragePath) -> str:
    """sha256 of a file. Raises DataError naming it."""
    if isinstance(path, Path):
        return local_files.hash_file(path)
    digest = hashlib.sha256()
    remote.stream(path, digest.update)
    return digest.hexdigest()


def copy_here(path: StoragePath, to: Path) -> None:
    """Copy a file to a path of this machine, completely or not at all. Raises NotFoundError, StoreError, VmaeError."""
    temporary = temporary_path(to, local_files.writer_name())
    try:
        if isinstance(path, Path):
            local_files.copy_file(path, temporary)
        else:
            remote.download(path, temporary)
        local_files.commit_file(temporary, to)
    except OSError as error:
        raise write_error(to, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def copied(path: StoragePath, folder: Path) -> Iterator[Path]:
    """A file as a path of this machine: the file itself, or a copy in `folder` that is removed at the end.

    Raises NotFoundError, DataError, StoreError, VmaeError.
    """
    if isinstance(path, Path):
        yield path
        return
    # A unique name: other processes may copy the same file. The suffix stays: ffmpeg guesses containers by it.
    copy = temporary_path(folder / f"copy-{local_files.writer_name()}-{secrets.token_hex(4)}{path.suffix[:16]}")
    try:
        try:
            remote.download(path, copy)
        except OSError as error:
            raise write_error(copy, error) from error
        yield copy
    finally:
        copy.unlink(missing_ok=True)
