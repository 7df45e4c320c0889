"""URL or path → a path of this machine, or a `RemotePath` in a bucket or on a web server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from vmae_data.errors import MisuseError

__all__ = ["RemotePath", "StoragePath", "local_path", "storage_path", "writable_path", "writable_paths"]

_SCHEMES = ("s3", "gs", "az", "http", "https")
_ALIASES = {"s3a": "s3", "gcs": "gs", "azure": "az"}
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
MAX_PATH, MAX_NAME = 4095, 255  # bytes, of Linux
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An object or a folder of objects: `root` (`s3://bucket`, `http://host:port`) and the path below it.

    Joins and names work as in `pathlib`; `str` gives the URL. It holds no credentials and no open connection.
    """

    root: str
    path: str

    @property
    def scheme(self) -> str:
        return self.root.partition("://")[0]

    @property
    def is_web(self) -> bool:
        """A web server has no listing and takes no writes."""
        return self.scheme in ("http", "https")

    @property
    def container(self) -> str:
        """The bucket, container or host."""
        return self.root.partition("://")[2]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        return self.name[len(self.stem) :]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.root, self.path.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(f"{self.stem}{suffix}")

    def resolve(self) -> RemotePath:
        return self

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.root, f"{self.path}/{name}" if self.path else name)

    def __str__(self) -> str:
        return f"{self.root}/{self.path}" if self.path else self.root


StoragePath = Path | RemotePath


def _local_path(text: str) -> Path:
    """Raises MisuseError for a path that no file system of Linux takes: each use of it would end in another error."""
    path = Path(text)
    if len(os.fsencode(text)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise MisuseError(f"{text[:60]}…: is too long for a path ({len(text)} characters). Check where it comes from")
    return path


def storage_path(url: str | Path) -> StoragePath:
    """Parse a URL or a path.

    Raises MisuseError for another type and an unknown scheme, and for a URL with a password or a query, which would
    end up in logs and indexes.
    """
    if not isinstance(url, str | PurePath | RemotePath):
        raise MisuseError(f"path = {url!r:.60}: expected a path or a URL")
    if "\0" in str(url):
        raise MisuseError(f"{url}: contains a NUL character. Check where this path comes from")
    match = _URL.fullmatch(str(url))
    if match is None:
        return _local_path(str(url))
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return _local_path(rest)
    root_scheme = _ALIASES.get(scheme, scheme)
    if root_scheme not in _SCHEMES:
        known = ", ".join(f"{known}://" for known in _SCHEMES)
        raise MisuseError(f"{scheme}://: unknown scheme. Use a path, {known}")
    container, _, path = rest.partition("/")
    if "@" in container or "?" in rest:
        shown = f"{scheme}://{container.rpartition('@')[2].partition('?')[0]}/…"
        raise MisuseError(f"{shown}: a URL must not contain a password or a query. Pass them by --storage-option")
    if not container:
        kind = "host" if scheme.startswith("http") else "bucket"
        raise MisuseError(f"{url}: names no {kind}. Write {scheme}://NAME/…")
    if ".." in path.split("/"):
        raise MisuseError(f"{url}: has .. in it, which object storage does not support. Write the path without ..")
    host = _HOST.fullmatch(container)
    if scheme.startswith("http") and (host is None or int(host[1] or 80) > 65535):
        raise MisuseError(f"{url}: {container} is not a valid HOST or HOST:PORT. Check the URL")
    return RemotePath(f"{root_scheme}://{container}", "/".join(part for part in path.split("/") if part))


def writable_path(url: str | Path, option: str) -> StoragePath:
    """The path of an output file, checked before the work starts.

    The file is renamed into its final path. So a link is resolved first: the target is replaced, not the link.
    Raises MisuseError naming the option: for a web server, a folder, a device, a pipe, a missing or read-only parent
    folder, and a path inside a folder of shards, where the file would be foreign.
    """
    path = storage_path(url)
    if isinstance(path, RemotePath):
        if path.is_web or not path.path:
            problem = "a web server can't be written to" if path.is_web else "names no file"
            raise MisuseError(f"{option} {path}: {problem}. Name a local file, or a file in a bucket")
        return path
    if path.is_dir():
        raise MisuseError(f"{option} {path}: is a folder. Name a file in it")
    if path.exists() and not path.is_file():
        raise MisuseError(f"{option} {path}: is a device or a pipe, and would be replaced by a file. Name a file")
    if path.is_symlink():
        path = Path(os.path.realpath(path))
        if path.is_symlink():
            raise MisuseError(f"{option} {path}: is a circular link. Name a file")
    if not path.parent.is_dir():
        raise MisuseError(f"{option} {path}: there is no folder {path.parent}. Make it, or name another path")
    if not os.access(path.parent, os.W_OK):
        raise MisuseError(f"{option} {path}: no permission to write into {path.parent}. Name another path")
    from vmae_data.format import INDEX, PLAN  # here: `doctor` has to run without msgspec

    if any((path.parent / name).is_file() for name in (INDEX, PLAN)):
        raise MisuseError(f"{option} {path}: {path.parent} is a data set. Name a path outside it")
    return path


def writable_paths(urls: Mapping[str, str | Path | None]) -> dict[str, StoragePath]:
    """Option → the path of its output file, for the options that are set.

    Raises MisuseError as `writable_path` does, and if two options name the same file: one would replace the other.
    """
    paths: dict[str, StoragePath] = {}
    for option, url in urls.items():
        if url is None:
            continue
        path = writable_path(url, option)
        same = next((other for other, before in paths.items() if before.resolve() == path.resolve()), None)
        if same is not None:
            raise MisuseError(f"{option} {path}: is the file of {same} too. Name another file")
        paths[option] = path
    return paths


def local_path(url: str | Path) -> Path:
    """Parse a path of this machine. Raises MisuseError for a remote URL."""
    path = storage_path(url)
    if isinstance(path, RemotePath):
        raise MisuseError(f"{path}: is not a path of this machine. Name a local path, and copy from or to the store")
    return path
