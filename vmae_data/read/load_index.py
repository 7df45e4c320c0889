"""Folder or URL → the bytes of index.json, and a local copy of a remote samples.arrow."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmae_data.errors import DataError, NotFoundError, StoreError
from vmae_data.format import INDEX, PLAN
from vmae_data.read.validation import MAX_INDEX_BYTES
from vmae_data.storage import (
    RemotePath,
    StoragePath,
    commit_bytes,
    copy_here,
    exists,
    file_size,
    is_folder,
    node_folder,
    path_digest,
    read_bytes,
    writer_name,
)

__all__ = ["COPY_SECONDS", "copy_table", "read_index"]

COPY_SECONDS = 5.0  # how long to wait for a store if this machine has a copy of the index


def read_index(folder: StoragePath, url: str, digest: str | None) -> tuple[bytes, str | None]:
    """The bytes of a folder's index, and a note if they come from a copy. `digest` and errors: as `Table.open`."""
    path = folder / INDEX
    try:
        if isinstance(path, RemotePath):
            return _remote_index(path, digest)
        return _local_index(path), None
    except NotFoundError:
        if not is_folder(folder):
            raise NotFoundError(f"{url}: does not exist. Check the path") from None
        if exists(folder / PLAN):
            raise DataError(f"{url}: has no {INDEX}, so its build is not finished. Run the build again") from None
        inner = next((name for name in ("train", "val") if exists(folder / name / INDEX)), None)
        if inner is not None:
            raise NotFoundError(f"{url}: has no {INDEX}, but {inner}/ in it has one. Name {folder / inner}") from None
        raise NotFoundError(f"{url}: has no {INDEX}, so it holds no shards. Check the path, or build them") from None


def _local_index(path: Path) -> bytes:
    size = file_size(path)
    if size is None:  # reading a pipe would wait for ever
        raise NotFoundError(f"{path}: is not a file. Check the path")
    if size > MAX_INDEX_BYTES:
        raise DataError(f"{path}: has {size} bytes; expected an index of at most {MAX_INDEX_BYTES}. Check the path")
    return read_bytes(path)


def _remote_index(path: RemotePath, digest: str | None) -> tuple[bytes, str | None]:
    """Keeps a copy on this machine, for processes that know the checksum and for times without a network."""
    copy = node_folder("indexes") / f"{path_digest(path)}.json"
    copied = copy.read_bytes() if copy.exists() else None
    if copied is not None and digest == hashlib.sha256(copied).hexdigest():
        return copied, None
    try:
        data = read_bytes(path, give_up=COPY_SECONDS if copied is not None else None, most=MAX_INDEX_BYTES)
    except StoreError:
        if copied is None:
            raise
        return copied, f"{path}: the store does not answer, so this machine's copy is used"
    if data != copied:
        commit_bytes(copy, data, writer_name())
    return data, None


def copy_table(url: RemotePath, digest: str) -> Path:
    """Copy a remote sample table once, for all processes of this machine."""
    path = node_folder("tables") / f"{digest}.arrow"
    if not path.exists():
        copy_here(url, path)
    return path
