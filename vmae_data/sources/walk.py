"""A folder, on disk or in a bucket → every video below it, and what was not taken."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

from vmae_data.amounts import plural
from vmae_data.errors import MisuseError
from vmae_data.format import RULES
from vmae_data.names import first_names, path_to_text
from vmae_data.sources.video_files import UNOPENED_SUFFIXES, VIDEO_SUFFIXES, Folder, suffix, video_suffixes
from vmae_data.storage import RemotePath, list_tree

__all__ = ["FoundVideos", "walk_videos"]

# Thumbnails, deleted files and copies that file systems, NAS devices and archives keep, in lower case.
SYSTEM_FOLDERS = frozenset(
    b"@eadir #recycle #snapshot @recycle @recently-snapshot @tmp @sharebin $recycle.bin lost+found __macosx"
    b" ~snapshot".split()
) | {b"system volume information"}
MAX_SHOWN = 5  # in a note


class FoundVideos(NamedTuple):
    """The paths of the videos, and what the walk left out."""

    videos: list[bytes]
    system_folders: list[bytes]
    unreadable: list[bytes]
    repeated: list[bytes]  # links to a folder whose videos were found at another path
    other_suffixes: Counter[bytes]  # of files that are no videos by their names

    def warnings(self) -> list[str]:
        """The folders whose videos are missing, as a sentence."""
        if not self.unreadable:
            return []
        names = first_names(map(path_to_text, self.unreadable), MAX_SHOWN)
        return [f"{plural(len(self.unreadable), 'folder')} without permission left out ({names})"]

    def notes(self) -> list[str]:
        """What else was left out, as sentences. Hidden files are not counted."""
        notes: list[str] = []
        if self.system_folders:
            names = ", ".join(sorted({path_to_text(os.path.basename(path)) for path in self.system_folders}))
            notes.append(f"{plural(len(self.system_folders), 'system folder')} skipped ({names})")
        if self.repeated:
            names = first_names(map(path_to_text, self.repeated), MAX_SHOWN)
            notes.append(f"{plural(len(self.repeated), 'link')} to a folder found before skipped ({names})")
        unopened = Counter({name: n for name, n in self.other_suffixes.items() if name in UNOPENED_SUFFIXES})
        if unopened:
            notes.append(
                f"{plural(unopened.total(), 'file')} in a format that builds don't open left out ({_counts(unopened)}). "
                "Convert its videos, for example to .mp4"
            )
        newer = Counter({name: n for name, n in self.other_suffixes.items() if name in VIDEO_SUFFIXES})
        if newer:
            notes.append(
                f"{plural(newer.total(), 'file')} left out, whose suffix the rules of this plan don't have "
                f"({_counts(newer)}). --append takes the newest suffixes"
            )
        if others := self.other_suffixes - unopened - newer:
            notes.append(
                f"{plural(others.total(), 'file')} without the suffix of a video left out ({_counts(others)}). "
                "If some are videos in a format that builds open, a listing can name them"
            )
        return notes


def _counts(suffixes: Counter[bytes]) -> str:
    common = suffixes.most_common()
    return first_names((f"{count} {path_to_text(name) or 'without a suffix'}" for name, count in common), MAX_SHOWN)


def walk_videos(folder: Folder, rules: int = RULES) -> FoundVideos:
    """Every video below a folder. Skips names that begin with a dot, folders of the system, and folders without permission.

    `rules`: those of the plan. They say which suffixes are those of videos.
    Follows links to folders, but visits each real folder once: a loop of links ends.
    Raises MisuseError if a folder can't be read for another reason: its videos would be lost.
    """
    found, suffixes = FoundVideos([], [], [], [], Counter()), video_suffixes(rules)
    if isinstance(folder, RemotePath):
        _sort_keys(map(str.encode, list_tree(folder)), found, suffixes)
        return found
    visited: set[tuple[int, int]] = set()

    def pass_over(error: OSError) -> None:
        if not isinstance(error, PermissionError) or os.fsencode(error.filename) == folder:
            raise MisuseError(
                f"{os.fsdecode(error.filename)}: can't be read ({error.strerror}). Allow reading, or move the folder away"
            )
        found.unreadable.append(os.path.relpath(os.fsencode(error.filename), folder))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=pass_over):
        status = Path(os.fsdecode(parent)).stat()
        if (status.st_dev, status.st_ino) in visited:
            found.repeated.append(os.path.relpath(parent, folder))
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        found.system_folders.extend(os.path.join(parent, name) for name in folders if _is_system(name))
        folders[:] = sorted(name for name in folders if not _is_system(name) and not name.startswith(b"."))
        below = os.path.relpath(parent, folder)
        for name in sorted(names):
            _sort_file(os.path.normpath(os.path.join(below, name)), found, suffixes)
    return found


def _is_system(name: bytes) -> bool:
    return name.lower() in SYSTEM_FOLDERS


def _sort_keys(keys: Iterable[bytes], found: FoundVideos, suffixes: Set[bytes]) -> None:
    system_folders: dict[bytes, None] = {}
    for key in keys:
        parents = key.split(b"/")[:-1]
        number = next((number for number, name in enumerate(parents) if _is_system(name)), None)
        if number is not None:
            system_folders[b"/".join(parents[: number + 1])] = None
        elif not any(name.startswith(b".") for name in parents):
            _sort_file(key, found, suffixes)
    found.system_folders.extend(system_folders)


def _sort_file(path: bytes, found: FoundVideos, suffixes: Set[bytes]) -> None:
    name = os.path.basename(path)
    if name.startswith(b".") or not name:
        return
    if suffix(name) in suffixes:
        found.videos.append(path)
    else:
        found.other_suffixes[suffix(name)] += 1
