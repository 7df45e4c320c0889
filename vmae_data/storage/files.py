"""What can be done with a file, wherever it lies: on this machine, in a bucket, on a web server."""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from vmae_data.errors import DataError, MisuseError, StopRequested, StoreError
from vmae_data.storage import local, remote
from vmae_data.storage.local import temporary_beside, write_error
from vmae_data.storage.paths import RemotePath, StoragePath
from vmae_data.storage.retry import STOPPING

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
    "list_tree",
    "listable",
    "read_bytes",
    "read_each",
    "read_range",
    "read_spans",
    "remove",
    "writable",
]

CALLS_AT_A_TIME = 16
Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


class Span(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


def read_bytes(place: StoragePath, *, give_up: float | None = None, most: int | None = None) -> bytes:
    """The whole of a file. Raises DataError naming it, StoreError where its store does not answer.

    Of a store: `give_up` are the seconds that are waited for one which need not answer, `most` the bytes that a file may have.
    """
    return local.read_bytes(place) if isinstance(place, Path) else remote.read(place, give_up, most)


def read_range(place: StoragePath, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; fewer only where the file ends. Raises as `read_bytes` does, DataError for numbers below 0."""
    if offset < 0 or size < 0:
        raise DataError(f"{place}: {size} bytes from {offset} on can't be read; what named them is damaged")
    if isinstance(place, Path):
        return local.read_part(place, offset, size)
    return remote.read_part(place, offset, size).data


def read_spans(place: StoragePath, spans: Sequence[Span]) -> Iterator[bytes]:
    """Many spans of one file, in their order. Raises as `read_bytes` does, DataError where the file ends before one."""
    if isinstance(place, Path):
        found: Iterator[bytes] = (local.read_part(place, span.offset, span.size) for span in spans)
    else:
        found = in_threads(lambda span: remote.read_part(place, span.offset, span.size).data, spans)
    for span, data in zip(spans, found, strict=True):
        if len(data) != span.size:
            raise DataError(f"{place}: ends after {span.offset + len(data)} bytes, before what it should hold")
        yield data


def read_each(places: Sequence[StoragePath]) -> Iterator[bytes]:
    """Each of many files, whole, in their order; of a store some at a time. Raises as `read_bytes` does."""
    here = all(isinstance(place, Path) for place in places)
    return map(read_bytes, places) if here else in_threads(read_bytes, places)


def in_threads(call: Callable[[Thing], Answer], things: Iterable[Thing]) -> Iterator[Answer]:
    """What a call gives for each thing, in their order. A store answers late, but many calls at a time.

    No more answers than calls at a time are held.
    """
    coming: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(CALLS_AT_A_TIME) as pool:
        try:
            for thing in things:
                coming.append(pool.submit(call, thing))
                if len(coming) >= CALLS_AT_A_TIME:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        except (StopRequested, KeyboardInterrupt):
            STOPPING.set()
            raise
        finally:
            for call_left in coming:
                call_left.cancel()


def file_size(place: StoragePath) -> int | None:
    """Bytes of a file; None where there is none."""
    if isinstance(place, Path):
        return place.stat().st_size if place.is_file() else None
    found = remote.stat(place)
    return found.size if found else None


def exists(place: StoragePath) -> bool:
    """Whether there is such a file."""
    return file_size(place) is not None


def is_folder(place: StoragePath) -> bool:
    """Whether anything lies below it; on a web server nobody knows, and it is believed."""
    if isinstance(place, Path):
        return place.is_dir()
    return not listable(place) or remote.holds_anything(place)


def listable(place: StoragePath) -> bool:
    """Whether its folder can be listed; a web server's can't."""
    return isinstance(place, Path) or not place.is_web


def list_names(folder: StoragePath) -> dict[str, int]:
    """The files right in a folder: name → bytes. Empty where there is no such folder.

    Raises MisuseError for a web server, which has no listing.
    """
    if isinstance(folder, RemotePath):
        return remote.list_folder(folder)
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def list_tree(folder: RemotePath) -> dict[str, int]:
    """Every object below a folder of a bucket: path relative to it → bytes, in the order of the paths' bytes."""
    return {listed.path: listed.size for listed in remote.list_tree(folder)}


def writable(place: StoragePath) -> StoragePath:
    """The place itself. Raises MisuseError for a web server, to which nothing can be written."""
    if not listable(place):
        raise MisuseError(f"{place}: a web server can't be written to; name a folder or a bucket")
    return place


def commit_bytes(place: StoragePath, data: bytes, writer: str = "") -> None:
    """Write a file so that it is there whole or not at all; `writer` as in `temporary_beside`."""
    if isinstance(place, Path):
        local.commit_bytes(place, data, writer)
    else:
        remote.put(place, data)


def commit_file(temporary: Path, place: StoragePath) -> None:
    """Give a finished temporary file its name; one that belongs elsewhere is sent there and taken away here."""
    if isinstance(place, Path):
        local.commit_file(temporary, place)
        return
    size = temporary.stat().st_size
    remote.put(place, temporary)
    if (sent := file_size(place)) != size:
        raise StoreError(f"{place}: {sent} of {size} bytes are there after it was written; run the same command again")
    temporary.unlink(missing_ok=True)


def create_bytes(place: StoragePath, data: bytes) -> bool:
    """Write a file unless it is there; True where this call made it. Of several at the same time one does."""
    return local.create_bytes(place, data) if isinstance(place, Path) else remote.create(place, data)


def remove(place: StoragePath) -> None:
    """Take a file away; nothing where there is none."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        remote.remove(place)


def hash_file(place: StoragePath) -> str:
    """sha256 of a file. Raises DataError naming it."""
    if isinstance(place, Path):
        return local.hash_file(place)
    digest = hashlib.sha256()
    for data in remote.stream(place):
        digest.update(data)
    return digest.hexdigest()


def copy_here(place: StoragePath, to: Path) -> None:
    """Copy a file to a path of this machine, whole or not at all. Raises NotThereError, StoreError, VmaeError."""
    temporary = temporary_beside(to, local.writer_name())
    try:
        if isinstance(place, Path):
            local.copy_file(place, temporary)
        else:
            remote.download(place, temporary)
        local.commit_file(temporary, to)
    except OSError as error:
        raise write_error(to, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def copied(place: StoragePath, folder: Path) -> Iterator[Path]:
    """A file as a path of this machine: itself, or a copy in `folder` that is taken away at the end.

    Raises NotThereError, DataError, StoreError, VmaeError.
    """
    if isinstance(place, Path):
        yield place
        return
    # A name of its own, for others may copy the same file; with the ending, by which containers are guessed too.
    path = temporary_beside(folder / f"copy-{local.writer_name()}-{secrets.token_hex(4)}{place.suffix[:16]}")
    try:
        try:
            remote.download(place, path)
        except OSError as error:
            raise write_error(path, error) from error
        yield path
    finally:
        path.unlink(missing_ok=True)
