"""What a URL names: a path of this machine, or a place in a bucket or on a web server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmae_data.errors import MisuseError

__all__ = ["RemotePath", "StoragePath", "local_path", "storage_path", "writable_path", "writable_paths"]

# How a store may be called → how it is called here.
_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "http": "http",
    "https": "https",
}
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An object, or a folder of objects: `root` (`s3://bucket`, `http://host:port`) and the path below it.

    Joins and names as `pathlib` has them; its text is its URL. It holds no credentials and no open connection.
    """

    root: str
    path: str

    @property
    def scheme(self) -> str:
        return self.root.partition("://")[0]

    @property
    def is_web(self) -> bool:
        """Of a web server: it has no listing, and nothing can be written to it."""
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


def storage_path(url: str | Path) -> StoragePath:
    """The place that a URL or a path names.

    Raises MisuseError for a scheme that is not known, and for a URL with a password or a query in it: these would
    be written into logs and indexes.
    """
    if "\0" in str(url):
        raise MisuseError(f"{url}: has a NUL in it, no path or URL has; check where it comes from")
    found = _URL.fullmatch(str(url))
    if found is None:
        return Path(url)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return Path(rest)
    if scheme not in _SCHEMES:
        raise MisuseError(f"{scheme}://: not a kind of store that is known; use a path, {_known()}")
    container, _, path = rest.partition("/")
    if "@" in container or "?" in rest:
        shown = f"{scheme}://{container.rpartition('@')[2].partition('?')[0]}/…"
        raise MisuseError(f"{shown}: a URL with a password or a query in it; give these by --storage-option")
    if not container:
        raise MisuseError(
            f"{url}: names no {'host' if scheme.startswith('http') else 'bucket'}; write {scheme}://NAME/…"
        )
    if ".." in path.split("/"):
        raise MisuseError(f"{url}: has .. in it, which a store does not know; write the path without")
    host = _HOST.fullmatch(container)
    if scheme.startswith("http") and (host is None or int(host[1] or 80) > 65535):
        raise MisuseError(f"{url}: {container} is no host, or host:port; check the URL")
    return RemotePath(f"{_SCHEMES[scheme]}://{container}", "/".join(part for part in path.split("/") if part))


def writable_path(url: str | Path, option: str) -> StoragePath:
    """The place of a file that is going to be written, looked at before the work and not after it.

    The file gets its name by a rename: a link is followed first, so that what it leads to is replaced and not the link.
    Raises MisuseError, naming the option, for one of a web server, for what is there and no file (a folder, a device,
    a pipe), where there is no folder to write into, and in a folder of shards of this machine, where it would be a foreign file.
    """
    place = storage_path(url)
    if isinstance(place, RemotePath):
        if place.is_web or not place.path:
            wanted = "a web server takes no files" if place.path else "names no file"
            raise MisuseError(f"{option} {place}: {wanted}; name a file here or in a bucket")
        return place
    if place.is_dir():
        raise MisuseError(f"{option} {place}: is a folder; name a file in it")
    if place.exists() and not place.is_file():
        raise MisuseError(f"{option} {place}: is a device or a pipe, which a file would replace; name a file")
    if place.is_symlink():
        place = Path(os.path.realpath(place))
        if place.is_symlink():
            raise MisuseError(f"{option} {place}: is a link that leads in a circle; name a file")
    if not place.parent.is_dir():
        raise MisuseError(f"{option} {place}: there is no folder {place.parent}; make it, or name another place")
    if not os.access(place.parent, os.W_OK):
        raise MisuseError(f"{option} {place}: nothing may be written into {place.parent}; name another place")
    from vmae_data.format import INDEX, PLAN  # here: `doctor` runs without what the format needs

    if any((place.parent / name).is_file() for name in (INDEX, PLAN)):
        raise MisuseError(f"{option} {place}: {place.parent} is a data set; name a place outside it")
    return place


def writable_paths(urls: Mapping[str, str | Path | None]) -> dict[str, StoragePath]:
    """The places of several files, by option, without those that are not given.

    Raises MisuseError as `writable_place` does, and where two are the same: the later one would replace the other.
    """
    places: dict[str, StoragePath] = {}
    for option, url in urls.items():
        if url is None:
            continue
        place = writable_path(url, option)
        same = next((other for other, before in places.items() if before.resolve() == place.resolve()), None)
        if same is not None:
            raise MisuseError(f"{option} {place}: is the file of {same} too; name another")
        places[option] = place
    return places


def local_path(url: str | Path) -> Path:
    """The path that a URL names. Raises MisuseError where it is not of this machine."""
    place = storage_path(url)
    if isinstance(place, RemotePath):
        raise MisuseError(f"{place}: has to be a path of this machine; copy it to a local folder")
    return place


def _known() -> str:
    return ", ".join(f"{scheme}://" for scheme in dict.fromkeys(_SCHEMES.values()))
