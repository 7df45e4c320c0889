"""Where data sets and runs lie: read, range, list, commit. Local paths for now; a URL stays the only name.

What was committed is whole: written beside, synced, renamed, and the folder synced.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmae_data.errors import DataError, MisuseError, NotThereError, VmaeError

__all__ = [
    "TEMPORARY",
    "commit_bytes",
    "commit_file",
    "hash_file",
    "local_path",
    "lock",
    "read_bytes",
    "read_range",
    "sync_folder",
    "temporary_beside",
]

TEMPORARY = ".tmp-"


def local_path(url: str) -> Path:
    """The path that a URL names.

    Raises MisuseError for a scheme that this version does not read.
    """
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    scheme, found, _ = url.partition("://")
    if found and scheme.isalnum():
        raise MisuseError(f"{url}: this version reads local paths only; copy the data to a local folder")
    return Path(url)


def read_bytes(path: Path) -> bytes:
    """The whole of a file. Raises DataError naming it."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotThereError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check the path") from error


def read_range(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; fewer only where the file ends (the caller checks the sum)."""
    return os.pread(descriptor, size, offset)


def temporary_beside(path: Path) -> Path:
    """The temporary name of a file: in the same folder, so that the rename is atomic."""
    return path.with_name(f"{TEMPORARY}{path.name}")


def commit_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        commit_file(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _write_error(path, error) from error


def commit_file(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name: sync, rename, sync the folder."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> VmaeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return VmaeError(f"{path}: no room left on the disk; free some and run the same command again")
    return VmaeError(f"{path}: can't be written ({error.strerror}); check the folder and its rights")


def hash_file(path: Path) -> str:
    """sha256 of a file. Raises DataError naming it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check the path") from error


@contextmanager
def lock(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder (made where it isn't there) for one process; the kernel lets go when that dies, whatever kills it.

    Raises VmaeError when another process holds it, or the folder can't be made.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VmaeError(f"{folder}: can't be made a folder ({error.strerror}); name another one") from error
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise VmaeError(f"{folder}: another {what} is writing here; wait for it, or name another folder") from error
        # The holder before us removes the name when it ends: a lock on a removed file locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
