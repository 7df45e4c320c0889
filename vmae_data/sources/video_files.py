"""A folder, on disk or in a bucket → the paths of its videos, found by path or by file name.

Paths are bytes relative to the folder. Those of a bucket are its keys in UTF-8.
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
    "VIDEO_SUFFIXES",
    "Folder",
    "VideoFiles",
    "file_sizes",
    "is_video",
    "relative_path",
    "remote_path",
    "walk_videos",
]

Folder = bytes | RemotePath
"""The folder that the paths of a listing are relative to: on this machine, in a bucket, or on a web server."""

VIDEO_SUFFIXES = frozenset(
    b".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .wmv .asf .flv .f4v .3gp .3g2 .ts .m2ts .mts .ogv .mxf".split()
)


def is_video(name: bytes) -> bool:
    """Whether the file name has the suffix of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def remote_path(folder: RemotePath, path: bytes) -> RemotePath:
    """The object at a path. Raises MisuseError for a path that is not UTF-8: no store has such a key."""
    try:
        return folder / path.decode("utf-8")
    except UnicodeDecodeError:
        raise MisuseError(f"{folder}: {path_to_text(path)} is not UTF-8. Keys in a store must be UTF-8") from None


def file_sizes(folder: Folder, paths: Sequence[bytes]) -> list[int | None]:
    """The size of each file in bytes, None for a missing file. Lists a bucket once; asks a web server for each file."""
    if isinstance(folder, bytes):
        return [_local_size(os.path.join(folder, path)) for path in paths]
    if folder.is_web:
        return list(in_threads(file_size, (remote_path(folder, path) for path in paths)))
    sizes = list_tree(folder)
    return [sizes.get(path.decode("utf-8")) for path in paths]


def _local_size(path: bytes) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - bytes paths may not be UTF-8
    except OSError:
        return None


def walk_videos(folder: Folder) -> list[bytes]:
    """The path of every video below a folder. Skips names that begin with a dot.

    Follows links to folders, but visits each real folder once: a loop of links ends.
    """
    if isinstance(folder, RemotePath):
        keys = map(str.encode, list_tree(folder))
        return [key for key in keys if is_video(key) and not any(part.startswith(b".") for part in key.split(b"/"))]
    paths: list[bytes] = []
    visited: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        status = Path(os.fsdecode(parent)).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        paths += [
            os.path.relpath(os.path.join(parent, name), folder)
            for name in sorted(names)
            if is_video(name) and not name.startswith(b".")
        ]
    return paths


def _refuse_folder(error: OSError) -> None:
    """A skipped folder would change the list of classes, so an unreadable folder is an error."""
    raise MisuseError(
        f"{os.fsdecode(error.filename)}: can't be read ({error.strerror}). Allow reading, or move the folder away"
    )


def relative_path(path: bytes, folder: Folder) -> bytes:
    """An absolute or relative path as a path relative to the folder, so that each file has one spelling.

    Removes `..` and `.` from the text and resolves no links. Raises MisuseError for a path outside a store's folder.
    """
    if isinstance(folder, RemotePath):
        return _relative_key(path, folder)
    relative = os.path.relpath(os.path.join(folder, path), folder)
    if os.path.isabs(path) and relative.startswith(b".."):
        # `folder` is resolved, but `path` may go through a link.
        real = os.path.relpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), folder)
        return relative if real.startswith(b"..") else real
    return relative


def _relative_key(path: bytes, folder: RemotePath) -> bytes:
    inside = path.removeprefix(f"{folder}/".encode())
    key = os.path.normpath(inside)
    if b"://" in inside or os.path.isabs(key) or key.split(b"/")[0] == b"..":
        raise MisuseError(f"{folder}: {path_to_text(path)} is outside this folder. Use paths relative to the listing")
    remote_path(folder, key)
    return key


class VideoFiles:
    """The videos below a folder. The first question about them walks the folder, once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def contains(self, path: bytes) -> bool:
        """Whether a file exists at this path. Does not walk the folder."""
        if isinstance(self.folder, RemotePath):
            return exists(remote_path(self.folder, path))
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

    def find(self, path: bytes, *, not_in: Container[bytes] = ()) -> bytes | None:
        """The video at this path, else the video with the same stem, in any folder and with any suffix.

        Skips videos in folders named in `not_in`. Prefers a folder with the name of the path's own folder.
        Raises MisuseError if several videos remain.
        """
        if path in self.paths:
            return path
        parent, name = os.path.split(path)
        stem = os.path.splitext(name)[0] if is_video(name) else name
        matches = [video for video in self._by_stem.get(stem, ()) if _folder_name(video) not in not_in]
        if len(matches) > 1 and parent:
            matches = [video for video in matches if _folder_name(video) == os.path.basename(parent)] or matches
        if len(matches) > 1:
            folder = str(self.folder) if isinstance(self.folder, RemotePath) else path_to_text(self.folder)
            raise MisuseError(
                f"{folder}: {path_to_text(stem)} matches both {path_to_text(matches[0])} and "
                f"{path_to_text(matches[1])}. Move one of them away"
            )
        return matches[0] if matches else None


def _folder_name(path: bytes) -> bytes:
    return os.path.basename(os.path.dirname(path))
