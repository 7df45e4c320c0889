"""What can be done with a file, wherever it lies: on this machine, in a bucket, on a web server."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmae_data.errors import DataError
from vmae_data.store import local, remote
from vmae_data.store.local import temporary_beside, write_error
from vmae_data.store.place import Place, RemotePlace

__all__ = [
    "commit_bytes",
    "commit_file",
    "copy_here",
    "create_bytes",
    "exists",
    "file_size",
    "hash_file",
    "is_folder",
    "list_names",
    "read_bytes",
    "read_range",
    "remove",
]


def read_bytes(place: Place) -> bytes:
    """The whole of a file. Raises DataError naming it, StoreError where its store does not answer."""
    return local.read_bytes(place) if isinstance(place, Path) else remote.read(place)


def read_range(place: Place, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; fewer only where the file ends. Raises as `read_bytes` does, DataError for numbers below 0."""
    if offset < 0 or size < 0:
        raise DataError(f"{place}: {size} bytes from {offset} on can't be read; what named them is damaged")
    if isinstance(place, Path):
        return local.read_part(place, offset, size)
    return remote.read_part(place, offset, size).data


def file_size(place: Place) -> int | None:
    """Bytes of a file; None where there is none."""
    if isinstance(place, Path):
        return place.stat().st_size if place.is_file() else None
    found = remote.stat(place)
    return found.size if found else None


def exists(place: Place) -> bool:
    """Whether there is such a file."""
    return file_size(place) is not None


def is_folder(place: Place) -> bool:
    """Whether anything lies below it; on a web server nobody knows, and it is believed."""
    if isinstance(place, Path):
        return place.is_dir()
    return place.scheme.startswith("http") or remote.holds_anything(place)


def list_names(folder: Place) -> dict[str, int]:
    """The files right in a folder: name → bytes. Empty where there is no such folder.

    Raises MisuseError for a web server, which has no listing.
    """
    if isinstance(folder, RemotePlace):
        return remote.list_folder(folder)
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def commit_bytes(place: Place, data: bytes, writer: str = "") -> None:
    """Write a file so that it is there whole or not at all; `writer` as in `temporary_beside`."""
    if isinstance(place, Path):
        local.commit_bytes(place, data, writer)
    else:
        remote.put(place, data)


def commit_file(temporary: Path, place: Place) -> None:
    """Give a finished temporary file its name; one that belongs elsewhere is sent there and taken away here."""
    if isinstance(place, Path):
        local.commit_file(temporary, place)
        return
    remote.put(place, temporary)
    temporary.unlink(missing_ok=True)


def create_bytes(place: Place, data: bytes) -> bool:
    """Write a file unless it is there; True where this call made it. Of several at the same time one does."""
    return local.create_bytes(place, data) if isinstance(place, Path) else remote.create(place, data)


def remove(place: Place) -> None:
    """Take a file away; nothing where there is none."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        remote.remove(place)


def hash_file(place: Place) -> str:
    """sha256 of a file. Raises DataError naming it."""
    if isinstance(place, Path):
        return local.hash_file(place)
    digest = hashlib.sha256()
    for data in remote.stream(place):
        digest.update(data)
    return digest.hexdigest()


def copy_here(place: Place, to: Path) -> None:
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
