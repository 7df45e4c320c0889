"""Files of this machine: read, read a range, commit, lock.

A committed file is complete: it is written to a temporary file, synced and renamed, then its folder is synced.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from vmae_data.errors import DataError, NotFoundError, UnusablePathError, VmaeError

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
    "open_file",
    "part_name",
    "read_bytes",
    "read_part",
    "refuse_special",
    "sync_folder",
    "temporary_path",
    "try_lock",
    "write_error",
    "writer_name",
]

TEMPORARY = ".tmp-"
LOCK = ".lock"
SHARED_TRIES = 20
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
# What a file system without hard links answers.
_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def refuse_special(path: Path, *, folder: bool = False) -> None:
    """Raise UnusablePathError if the path is no regular file: opening a pipe may wait for ever. `folder`: may be one."""
    with suppress(OSError):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in _SPECIAL and not (folder and kind == stat.S_IFDIR):
            raise UnusablePathError(f"{path}: is {_SPECIAL[kind]}. Name a regular file")


def open_file(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes. Never waits. Raises UnusablePathError, NotFoundError or DataError."""
    refuse_special(path)
    try:
        # Not blocking: the path may have become a pipe since.
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _read_error(path, error) from error


def read_bytes(path: Path) -> bytes:
    """All bytes of a file. Raises DataError naming it."""
    try:
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        raise _read_error(path, error) from error


def read_part(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the file's end. Raises DataError naming the file."""
    try:
        with open_file(path) as file:
            # `size` may come from damaged data: allocate no more than the file has.
            left = max(0, os.fstat(file.fileno()).st_size - offset)
            return os.pread(file.fileno(), min(size, left), offset) if left else b""
    except OSError as error:
        raise _read_error(path, error) from error


def hash_file(path: Path) -> str:
    """sha256 of a file. Raises DataError naming it."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _read_error(path, error) from error


def copy_file(path: Path, to: Path) -> None:
    """Copy the bytes of a file. Raises DataError if it can't be read, OSError if `to` can't be written."""
    with open_file(path) as file, to.open("wb") as target:
        shutil.copyfileobj(file, target, 1 << 20)


def _read_error(path: Path, error: OSError) -> DataError:
    kind = DataError
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        kind = NotFoundError
    elif isinstance(error, PermissionError):
        kind = UnusablePathError
    return kind(f"{path}: can't be read ({error.strerror}). Check the path")


def node_folder(name: str) -> Path:
    """A cache folder that all processes of this machine share; its files can be fetched again."""
    home = os.environ.get("VMAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vmae"
    try:
        folder = Path(home).expanduser() / name
    except RuntimeError:  # this user has no home directory
        folder = _own_temporary_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VmaeError(
            f"{folder}: this folder can't be made ({error.strerror}). Set VMAE_CACHE to another one"
        ) from error
    return folder


def _own_temporary_folder() -> Path:
    """A folder that all processes of this user share. Raises VmaeError if it belongs to somebody else."""
    folder = Path(tempfile.gettempdir()) / f"vmae-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise write_error(folder, error) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise VmaeError(f"{folder}: belongs to another user. Set VMAE_CACHE to a folder of yours")
    return folder


def temporary_path(path: Path, writer: str = "") -> Path:
    """The temporary file of a file: in the same folder, so that the rename is atomic.

    Processes that may write the same file at the same time each pass their `writer_name`. A process that holds a lock
    passes none: it overwrites what a killed run left half written.
    """
    return path.with_name(f"{TEMPORARY}{path.name}.{writer}" if writer else f"{TEMPORARY}{path.name}")


def writer_name() -> str:
    """The name of this process, unique among all machines that see the same folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless it exists. True if this call made it: exactly one of several concurrent calls does."""
    temporary = temporary_path(path, writer_name())
    try:
        temporary.write_bytes(data)
        _sync(temporary)
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
    """Write a file completely or not at all. `writer`: see `temporary_path`."""
    temporary = temporary_path(path, writer)
    try:
        temporary.write_bytes(data)
        commit_file(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise write_error(path, error) from error


def commit_file(temporary: Path, path: Path) -> None:
    """Move a complete temporary file to its final path: sync, rename, sync the folder."""
    try:
        _sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> VmaeError:
    """The error to raise for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return VmaeError(f"{path}: no space left on the disk. Free some, then run the same command again")
    return VmaeError(f"{path}: can't be written ({error.strerror}). Check the folder and its permissions")


def part_name(stem: str, number: int, count: int) -> str:
    """The name of a part's own file: `.lock-part-0-of-3`."""
    return f"{stem}-part-{number}-of-{count}"


@contextmanager
def lock(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder for one process; make the folder if needed. The kernel unlocks it if the process dies.

    Raises VmaeError if another process has locked the folder or a part of it, or if the folder can't be made.
    """
    with _locked(folder / LOCK, f"another {what} is writing here"):
        yield


@contextmanager
def lock_part(folder: Path, what: str, number: int, count: int) -> Iterator[None]:
    """Lock part `number` of `count` of a folder. Other parts may be locked, the folder and this part may not.

    Raises VmaeError if the folder or this part is locked, or a part of another count, which would overlap.
    """
    own = folder / part_name(LOCK, number, count)
    whole = _locked(folder / LOCK, f"another {what} is writing here, not in parts", shared=True)
    with whole, _locked(own, f"another {what} of part {number}/{count} is writing here"):
        # Our lock comes first: of two processes that start together, at least one sees the other's.
        for path in folder.glob(f"{LOCK}-part-*"):
            if not path.name.endswith(f"-of-{count}"):
                with _locked(path, f"another {what} with other parts than {number}/{count} is writing here"):
                    pass
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Lock a file while the block runs, if no other process has. Gives whether it is locked; removes the file after.

    Raises VmaeError if the file system has no locks.
    """
    descriptor = _open_locked(path, fcntl.LOCK_EX, None)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


@contextmanager
def _locked(path: Path, refusal: str, *, shared: bool = False) -> Iterator[None]:
    descriptor = _open_locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, refusal)
    assert descriptor is not None
    try:
        yield
    finally:
        with suppress(OSError):
            if shared:  # only the last holder removes the file
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, kind: int, refusal: str | None) -> int | None:
    """A descriptor that holds the lock. If another process holds it: VmaeError with `refusal`, or None without one."""
    folder = path.parent
    # A shared lock's holder takes it exclusively for a moment at its end, to remove the file: no reason to refuse.
    tries = SHARED_TRIES if kind == fcntl.LOCK_SH else 1
    lost = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            error_class = UnusablePathError if error.errno in _UNUSABLE else VmaeError
            raise error_class(f"{folder}: this folder can't be made ({error.strerror}). Name another one") from error
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError as error:  # the holder before us removed the empty folder
            lost += 1
            if lost == SHARED_TRIES:
                raise write_error(path, error) from error
            continue
        except PermissionError as error:
            raise UnusablePathError(f"{folder}: can't be written ({error.strerror}). Name another one") from error
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise VmaeError(
                    f"{path}: can't be locked ({error.strerror}). Mount this file system with locks (Lustre: -o flock)"
                ) from error
            tries -= 1
            if not tries and refusal is None:
                return None
            if not tries:
                raise VmaeError(f"{folder}: {refusal}. Wait for it, or name another folder") from error
            time.sleep(0.05)
            continue
        # The holder before us removes the file at its end: a lock on a removed file locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
