"""Names that differ only in case, accents or Unicode form: what a person takes for the same name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from vmae_data.names import first_names, path_to_text
from vmae_data.sources.find_files import VideoFiles
from vmae_data.sources.video_files import suffix

__all__ = ["missing_notes", "near_names", "near_pairs"]

MAX_FOLDERS = 1000  # Each is one request to a network disk.
MAX_SHOWN = 3


def near_names(names: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Each name that is not known but differs only in case, accents or Unicode form from a known one, and that one."""
    by_plain = {_plain(name): name for name in known}
    pairs = [(name, by_plain.get(_plain(name), name)) for name in names]
    return [(name, other) for name, other in pairs if name != other]


def near_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, accents or Unicode form."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(_plain(name), name), name) for name in names]
    return [(a, b) for a, b in pairs if a != b]


def missing_notes(paths: Sequence[bytes], videos: VideoFiles, source: str, *, walked: bool) -> list[str]:
    """A note on listed paths without a file, if a file differs from them only in case, accents or Unicode form.

    `walked`: whether the videos below the folder are known, so that a file with a near stem counts in every folder.
    """
    missing = list(_missing(paths, videos, walked=walked))
    walked_paths = sorted(videos.paths) if walked and missing else []
    stems = {_plain(os.fsdecode(_stem(path))): path for path in walked_paths}
    near: list[tuple[bytes, bytes]] = []
    for path, other in missing:
        if other is None and stems:
            stem = _stem(path)
            found = stems.get(_plain(os.fsdecode(stem)))
            other = found if found is not None and _stem(found) != stem else None
        if other is not None:
            near.append((path, other))
    if not near:
        return []
    shown = first_names((f"{path_to_text(path)} (file: {path_to_text(other)})" for path, other in near), MAX_SHOWN)
    return [
        f"{source}: files that differ only in case or accents from missing paths: {len(near)}, {shown}. "
        "Correct the listing or the names"
    ]


def _missing(paths: Sequence[bytes], videos: VideoFiles, *, walked: bool) -> Iterator[tuple[bytes, bytes | None]]:
    """Each path without a file, and the near file at the same place, if any. In a bucket only if it was walked."""
    if not isinstance(videos.folder, bytes):
        yield from ((path, None) for path in paths if walked and path not in videos.paths)
        return
    folders = Folders(videos.folder)
    for path in paths:
        if not folders.holds(path):
            yield path, folders.near(path)


class Folders:
    """The names in the folders of the listed paths. Lists each folder once, and at most 1000 of them."""

    def __init__(self, top: bytes) -> None:
        self._top = top
        self._names: dict[bytes, frozenset[bytes]] = {}
        self._by_plain: dict[bytes, dict[str, bytes]] = {}
        self._near_folders: dict[bytes, bytes | None] = {b"": b""}

    def _names_in(self, folder: bytes) -> frozenset[bytes] | None:
        """None for a folder above the limit."""
        if folder not in self._names and len(self._names) < MAX_FOLDERS:
            try:
                self._names[folder] = frozenset(os.listdir(os.path.join(self._top, folder)))  # noqa: PTH208 - bytes
            except OSError:
                self._names[folder] = frozenset()
        return self._names.get(folder)

    def holds(self, path: bytes) -> bool:
        """Whether a file is at the path, or in a folder above the limit."""
        parent, name = os.path.split(path)
        names = self._names_in(parent)
        return names is None or name in names

    def near(self, path: bytes) -> bytes | None:
        """The path whose every part is equal or near; None if there is none."""
        parent, _, name = path.rpartition(b"/")
        if parent not in self._near_folders:
            self._near_folders[parent] = self._near_folder(parent)
        folder = self._near_folders[parent]
        return None if folder is None else self._near_in(folder, name)

    def _near_folder(self, path: bytes) -> bytes | None:
        found: bytes | None = b""
        for part in path.split(b"/"):
            if found is not None:
                found = self._near_in(found, part)
        return found

    def _near_in(self, folder: bytes, name: bytes) -> bytes | None:
        names = self._names_in(folder) or frozenset()
        if name in names or name in (b"..", b""):
            return os.path.join(folder, name)
        if folder not in self._by_plain:
            self._by_plain[folder] = {_plain(os.fsdecode(name)): name for name in sorted(names)}
        near = self._by_plain[folder].get(_plain(os.fsdecode(name)))
        return None if near is None else os.path.join(folder, near)


def _stem(path: bytes) -> bytes:
    name = path[path.rfind(b"/") + 1 :]
    return name[: len(name) - len(suffix(name))]


def _plain(name: str) -> str:
    """The name without case and accents, equal for every Unicode form."""
    if name.isascii():
        return name.lower()
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
