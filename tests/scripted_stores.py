"""Buckets and web servers that a scripted server plays, and what a test asks of their objects."""

from __future__ import annotations

from collections.abc import Callable

from tests.listed_bucket import OPTIONS as KEYS
from vmae_data.storage import (
    RemotePath,
    commit_bytes,
    file_size,
    is_folder,
    list_names,
    read_bytes,
    read_range,
    remote,
    remove,
    set_options,
    storage_path,
)

__all__ = ["CALLS", "remote_path", "scripted_store"]

SAS = ("account_name=a", "sas_key=sv=1&sig=hunter2")

CALLS: dict[str, Callable[[RemotePath], object]] = {
    "get": read_bytes,
    "range": lambda path: read_range(path, 0, 3),
    "head": file_size,
    "put": lambda path: commit_bytes(path, b"data"),
    "delete": remove,
    "list": lambda path: list_names(path.parent),
    "list all": lambda path: remote.list_tree(path.parent),
    "any": lambda path: is_folder(path.parent / "y"),
}


def remote_path(url: str) -> RemotePath:
    path = storage_path(url)
    assert isinstance(path, RemotePath)
    return path


def scripted_store(kind: str, server: str) -> RemotePath:
    """An object of a server that is opened as a bucket or as a web server, with secrets."""
    if kind == "http":
        set_options(["header.Authorization=hunter1", "header.X-Api-Key=hunter2"])
        return remote_path(f"{server}/x")
    set_options([*(KEYS if kind == "s3" else SAS), f"endpoint={server}"])
    return remote_path(f"{kind}://bucket/x")
