"""What is read of a data set before its samples: index.json and, from afar, samples.arrow; copies of both stay on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, NotThereError, StoreError
from vmae_data.format import INDEX, Index, decode_record
from vmae_data.read.validation import MAX_INDEX_BYTES, check_index
from vmae_data.storage import (
    RemotePath,
    StoragePath,
    commit_bytes,
    copy_here,
    exists,
    file_size,
    is_folder,
    node_folder,
    read_bytes,
    writer_name,
)

__all__ = ["COPY_SECONDS", "IndexRead", "read_index", "table_here"]

COPY_SECONDS = 5.0  # how long a store is asked for an index that this machine has a copy of


class IndexRead(NamedTuple):
    """An index, its sum, and a remark where a copy had to do."""

    facts: Index
    digest: str
    remark: str | None = None


def read_index(folder: StoragePath, url: str, digest: str | None) -> IndexRead:
    """The index of a folder; `digest` and errors as in `Table.open`."""
    path = folder / INDEX
    remark = None
    try:
        if isinstance(path, RemotePath):
            data, remark = _remote_index(path, digest)
        else:
            data = _local_index(path)
    except NotThereError:
        if not is_folder(folder):
            raise NotThereError(f"{url}: no such folder of shards; check the path") from None
        if exists(folder / "plan.json"):
            raise DataError(f"{url}: has no {INDEX}; its build was not finished; run it again") from None
        raise NotThereError(f"{url}: has no {INDEX}; it holds no shards; check the path, or build them first") from None
    index = decode_record(data, Index, str(path))
    check_index(index, str(path))
    return IndexRead(index, hashlib.sha256(data).hexdigest(), remark)


def _local_index(path: Path) -> bytes:
    size = file_size(path)
    if size is None:  # a pipe has none, and would be waited for
        raise NotThereError(f"{path}: is no file; check the path")
    if size > MAX_INDEX_BYTES:
        raise DataError(f"{path}: has {size} bytes, an index has less than {MAX_INDEX_BYTES}; check the URL")
    return read_bytes(path)


class _RemoteIndex(NamedTuple):
    data: bytes
    remark: str | None


def _remote_index(path: RemotePath, digest: str | None) -> _RemoteIndex:
    """The index as its store has it; a copy stays here, for processes that know its sum and for days without network."""
    copy = node_folder("indexes") / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    kept = copy.read_bytes() if copy.exists() else None
    if kept is not None and digest == hashlib.sha256(kept).hexdigest():
        return _RemoteIndex(kept, None)
    try:
        data = read_bytes(path, give_up=COPY_SECONDS if kept is not None else None, most=MAX_INDEX_BYTES)
    except StoreError:
        if kept is None:
            raise
        return _RemoteIndex(kept, f"{path}: its store does not answer; the copy that this machine has is used")
    if data != kept:
        commit_bytes(copy, data, writer_name())
    return _RemoteIndex(data, None)


def table_here(place: RemotePath, digest: str) -> Path:
    """A table from elsewhere, copied once for all processes of this machine."""
    path = node_folder("tables") / f"{digest}.arrow"
    if not path.exists():
        copy_here(place, path)
    return path
