"""Row 1, first part. The videos below a folder, here or in a bucket: one walk, then found by path or by stem.

Paths are bytes, relative to the folder; those of a bucket are its keys in UTF-8, as a file system would have them.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path

from vmae_data.errors import MisuseError
from vmae_data.format import path_to_text
from vmae_data.storage import RemotePath, exists, file_size, in_threads, list_tree

__all__ = [
    "Folder",
    "VideoFiles",
    "folder_text",
    "is_video",
    "path_below",
    "place_within",
    "sizes_of",
    "suffixes_text",
    "walk_videos",
]

Folder = bytes | RemotePath
"""Where the paths of a listing start from: a folder of this machine, of a bucket, or of a web server."""

VIDEO_SUFFIXES = frozenset(
    b".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .wmv .asf .flv .f4v .3gp .3g2 .ts .m2ts .mts .ogv .mxf".split()
)


def is_video(name: bytes) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def suffixes_text() -> str:
    return " ".join(sorted(suffix.decode() for suffix in VIDEO_SUFFIXES))


def folder_text(folder: Folder) -> str:
    return str(folder) if isinstance(folder, RemotePath) else path_to_text(folder)


def place_within(folder: RemotePath, path: bytes) -> RemotePath:
    """The object at a path. Raises MisuseError for one that no store can have: its names are UTF-8."""
    try:
        return folder / path.decode("utf-8")
    except UnicodeDecodeError:
        raise MisuseError(f"{folder}: {path_to_text(path)} is not UTF-8, which names in a store are") from None


def sizes_of(folder: Folder, paths: Sequence[bytes]) -> list[int | None]:
    """Bytes of each file, None where there is none. A bucket is listed once, a web server is asked for each."""
    if isinstance(folder, bytes):
        return [_size_here(os.path.join(folder, path)) for path in paths]
    if folder.is_web:
        return list(in_threads(file_size, (place_within(folder, path) for path in paths)))
    listed = list_tree(folder)
    return [listed.get(path.decode("utf-8")) for path in paths]


def _size_here(path: bytes) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - bytes paths may not be UTF-8
    except OSError:
        return None


def walk_videos(folder: Folder) -> list[bytes]:
    """Paths of every video below a folder, relative to it. Names that begin with a dot are passed over.

    Linked folders are followed, each real folder once: a loop of links ends.
    """
    if isinstance(folder, RemotePath):
        keys = map(str.encode, list_tree(folder))
        return [name for name in keys if is_video(name) and not any(p.startswith(b".") for p in name.split(b"/"))]
    paths: list[bytes] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        status = Path(os.fsdecode(parent)).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        paths += [
            os.path.relpath(os.path.join(parent, name), folder)
            for name in sorted(names)
            if is_video(name) and not name.startswith(b".")
        ]
    return paths


def _refuse_folder(error: OSError) -> None:
    """A folder that can't be read would change which classes there are: never passed over."""
    raise MisuseError(f"{os.fsdecode(error.filename)}: can't be read ({error.strerror}); give the right to, or move it")


def path_below(path: bytes, folder: Folder) -> bytes:
    """A path that is absolute or starts from the folder, as it starts from there: one spelling a file.

    `..` and `.` are taken away as written, without a look at links. Raises MisuseError where it leads out of a store's folder.
    """
    if isinstance(folder, RemotePath):
        return _key_below(path, folder)
    relative = os.path.relpath(os.path.join(folder, path), folder)
    if os.path.isabs(path) and relative.startswith(b".."):
        # The folder's name is resolved, the given one may go by a link.
        real = os.path.relpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), folder)
        return relative if real.startswith(b"..") else real
    return relative


def _key_below(path: bytes, folder: RemotePath) -> bytes:
    whole = f"{folder}/".encode()
    inner = os.path.normpath(path.removeprefix(whole))
    if b"://" in path.removeprefix(whole) or os.path.isabs(inner) or inner.split(b"/")[0] == b"..":
        raise MisuseError(f"{folder}: {path_to_text(path)} is not below it; list paths relative to the listing")
    place_within(folder, inner)
    return inner


class VideoFiles:
    """A folder of videos. It is walked when it is first asked, and only once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def holds(self, path: bytes) -> bool:
        """Whether there is such a file; only it is looked for."""
        if isinstance(self.folder, RemotePath):
            return exists(place_within(self.folder, path))
        return Path(os.fsdecode(os.path.join(self.folder, path))).exists()

    @cached_property
    def paths(self) -> frozenset[bytes]:
        return frozenset(walk_videos(self.folder))

    @cached_property
    def _by_stem(self) -> dict[bytes, list[bytes]]:
        stems: dict[bytes, list[bytes]] = {}
        for path in sorted(self.paths):
            stems.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
        return stems

    def find(self, wanted: bytes, *, not_in: Container[bytes] = ()) -> bytes | None:
        """The video at this path, else the one with its stem, wherever it lies and whatever its suffix.

        Folders named in `not_in` are passed over. Of several, those in a folder of the wanted path's folder's
        name go first. Raises MisuseError where more than one is left.
        """
        if wanted in self.paths:
            return wanted
        home, name = os.path.split(wanted)
        stem = os.path.splitext(name)[0] if is_video(name) else name
        found = [path for path in self._by_stem.get(stem, ()) if _folder_name(path) not in not_in]
        if len(found) > 1 and home:
            found = [path for path in found if _folder_name(path) == os.path.basename(home)] or found
        if len(found) > 1:
            raise MisuseError(
                f"{folder_text(self.folder)}: {path_to_text(found[0])} and {path_to_text(found[1])} may both be meant by "
                f"{path_to_text(stem)}; move one of them away"
            )
        return found[0] if found else None


def _folder_name(path: bytes) -> bytes:
    return os.path.basename(os.path.dirname(path))
