"""Row 1, first part. The videos below a folder: one walk, then found by path or by stem."""

from __future__ import annotations

import os
from collections.abc import Container
from functools import cached_property
from pathlib import Path

from vmae_data.errors import MisuseError
from vmae_data.format import path_to_text

__all__ = ["VideoTree", "is_video", "path_below", "suffixes_text", "walk_videos"]

VIDEO_SUFFIXES = frozenset(
    b".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .wmv .asf .flv .f4v .3gp .3g2 .ts .m2ts .mts .ogv .mxf".split()
)


def is_video(name: bytes) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def suffixes_text() -> str:
    return " ".join(sorted(suffix.decode() for suffix in VIDEO_SUFFIXES))


def walk_videos(folder: bytes) -> list[bytes]:
    """Paths of every video below a folder, relative to it. Names that begin with a dot are passed over.

    Linked folders are followed, each real folder once: a loop of links ends.
    """
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


def path_below(path: bytes, folder: bytes) -> bytes:
    """A path that is absolute or starts from the folder, as it starts from there: one spelling a file.

    `..` and `.` are taken away as written, without a look at links.
    """
    relative = os.path.relpath(os.path.join(folder, path), folder)
    if os.path.isabs(path) and relative.startswith(b".."):
        # The folder's name is resolved, the given one may go by a link.
        real = os.path.relpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), folder)
        return relative if real.startswith(b"..") else real
    return relative


class VideoTree:
    """A folder of videos. It is walked when it is first asked, and only once."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder

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
                f"{os.fsdecode(self.folder)}: {path_to_text(found[0])} and {path_to_text(found[1])} may both be meant by "
                f"{path_to_text(stem)}; move one of them away"
            )
        return found[0] if found else None


def _folder_name(path: bytes) -> bytes:
    return os.path.basename(os.path.dirname(path))
