"""Files of this machine: read, range, commit, lock.

What was committed is whole: written beside, synced, renamed, and the folder synced.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmae_data.errors import DataError, NotThereError, VmaeError

__all__ = [
    "LOCK",
    "TEMPORARY",
    "commit_bytes",
    "commit_file",
    "copy_file",
    "create_bytes",
    "hash_file",
    "lock",
    "lock_part",
    "node_folder",
    "part_name",
    "read_bytes",
    "read_part",
    "sync_folder",
    "temporary_beside",
    "try_lock",
    "write_error",
    "writer_name",
]

TEMPORARY = ".tmp-"
LOCK = ".lock"
SHARED_TRIES = 20
# What a file system answers that can't make a second name of a file.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def read_bytes(path: Path) -> bytes:
    """The whole of a file. Raises DataError naming it."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotThereError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check the path") from error


def read_part(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; fewer only where the file ends. Raises DataError naming it."""
    try:
        with path.open("rb") as file:
            # What is asked for may be anything; memory is taken for what is there.
            there = max(0, os.fstat(file.fileno()).st_size - offset)
            return os.pread(file.fileno(), min(size, there), offset) if there else b""
    except FileNotFoundError as error:
        raise NotThereError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check the path") from error


def node_folder(name: str) -> Path:
    """A folder that all processes of this machine share, for copies that can be fetched again."""
    home = os.environ.get("VMAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vmae"
    folder = Path(home).expanduser() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VmaeError(f"{folder}: can't be made a folder ({error.strerror}); name another by VMAE_CACHE") from error
    return folder


def copy_file(path: Path, to: Path) -> None:
    """The bytes of a file into another. Raises NotThereError, and OSError for what is written."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotThereError(f"{path}: can't be read ({error.strerror}); check the path") from error
    with file, to.open("wb") as target:
        shutil.copyfileobj(file, target, 1 << 20)


def temporary_beside(path: Path, writer: str = "") -> Path:
    """The temporary name of a file: in the same folder, so that the rename is atomic.

    Processes that may write the same file at the same time each give their `writer_name`. One that holds
    a lock gives none: what a killed run left half written is then written over.
    """
    return path.with_name(f"{TEMPORARY}{path.name}.{writer}" if writer else f"{TEMPORARY}{path.name}")


def writer_name() -> str:
    """What tells this process from all others that see the same folder, on whatever machine."""
    return f"{socket.gethostname()}-{os.getpid()}"


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless it is there; True where this call made it. Of several at the same time one does."""
    temporary = temporary_beside(path, writer_name())
    try:
        temporary.write_bytes(data)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        path.hardlink_to(temporary)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS and not path.exists():
            commit_file(temporary, path)
            return True
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def commit_bytes(path: Path, data: bytes, writer: str = "") -> None:
    """Write a file so that it is there whole or not at all; `writer` as in `temporary_beside`."""
    temporary = temporary_beside(path, writer)
    try:
        temporary.write_bytes(data)
        commit_file(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise write_error(path, error) from error


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
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> VmaeError:
    """What to tell of a file that could not be written."""
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

    Raises VmaeError when another process holds it or a part of it, or the folder can't be made.
    """
    with _held(folder / LOCK, f"another {what} is writing here"):
        yield


@contextmanager
def lock_part(folder: Path, what: str, number: int, count: int) -> Iterator[None]:
    """Hold part `number` of `count` of a folder: other parts may be held, the whole and the same part may not.

    Raises VmaeError when the whole or this part is held, or parts by another count, which would overlap.
    """
    own = folder / part_name(LOCK, number, count)
    whole = _held(folder / LOCK, f"another {what} is writing here, not in parts", shared=True)
    with whole, _held(own, f"another {what} of part {number}/{count} is writing here"):
        # Ours is held before we look at others: of two that begin together at least one sees the other.
        for path in folder.glob(f"{LOCK}-part-*"):
            if not path.name.endswith(f"-of-{count}"):
                with _held(path, f"another {what} with other parts than {number}/{count} is writing here"):
                    pass
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs, if nobody else does; gives whether it is held. Its name goes with it.

    Raises VmaeError where the file system has no locks.
    """
    descriptor = _open_locked(path, fcntl.LOCK_EX, None)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def part_name(stem: str, number: int, count: int) -> str:
    """What a part calls a file of its own: `.lock-part-0-of-3`."""
    return f"{stem}-part-{number}-of-{count}"


@contextmanager
def _held(path: Path, refusal: str, *, shared: bool = False) -> Iterator[None]:
    descriptor = _open_locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, refusal)
    assert descriptor is not None
    try:
        yield
    finally:
        with suppress(OSError):
            if shared:  # the last one out takes the name away
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, kind: int, refusal: str | None) -> int | None:
    """None where another holds it and there is no refusal."""
    folder = path.parent
    # Whoever shares a lock holds it alone for a moment when it ends, to take the name away: no reason to refuse.
    tries = SHARED_TRIES if kind == fcntl.LOCK_SH else 1
    lost = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VmaeError(f"{folder}: can't be made a folder ({error.strerror}); name another one") from error
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError as error:  # the holder before us took the empty folder away
            lost += 1
            if lost == SHARED_TRIES:
                raise write_error(path, error) from error
            continue
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise VmaeError(
                    f"{path}: can't be locked ({error.strerror}); mount this file system with locks (Lustre: -o flock)"
                ) from error
            tries -= 1
            if not tries and refusal is None:
                return None
            if not tries:
                raise VmaeError(f"{folder}: {refusal}; wait for it, or name another folder") from error
            time.sleep(0.05)
            continue
        # The holder before us removes the name when it ends: a lock on a removed file locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
