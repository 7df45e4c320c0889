"""The videos below a folder → the one that a listing means, by path, by stem or by Kinetics' id."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path

from vmae_data.errors import MisuseError
from vmae_data.format import RULES
from vmae_data.names import path_to_text
from vmae_data.sources.video_files import USUAL_SUFFIXES, Folder, remote_path, suffix, video_suffixes
from vmae_data.sources.walk import FoundVideos, walk_videos
from vmae_data.storage import RemotePath, exists

__all__ = ["VideoFiles"]

KINETICS_STEM = re.compile(rb"([\w-]{11})_\d{6}_\d{6}")


class VideoFiles:
    """The videos below a folder. The first question about them walks the folder, once."""

    def __init__(self, folder: Folder, rules: int = RULES) -> None:
        self.folder, self.rules = folder, rules

    def contains(self, path: bytes) -> bool:
        """Whether a file exists at this path. Does not walk the folder."""
        if isinstance(self.folder, RemotePath):
            return exists(remote_path(self.folder, path))
        return Path(os.fsdecode(os.path.join(self.folder, path))).exists()

    def is_stem(self, path: bytes) -> bool:
        """Whether a listed path may be a stem: it has no suffix of a video by the rules, or a rare one and no file."""
        if suffix(path) not in video_suffixes(self.rules):
            return True
        return self.rules >= 3 and suffix(path) not in USUAL_SUFFIXES and not self.contains(path)

    @cached_property
    def found(self) -> FoundVideos:
        return walk_videos(self.folder, self.rules)

    @cached_property
    def paths(self) -> frozenset[bytes]:
        return frozenset(self.found.videos)

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
        stem = name if self.is_stem(path) else os.path.splitext(name)[0]
        matches = [video for video in self._by_stem.get(stem, ()) if _folder_name(video) not in not_in]
        if len(matches) > 1 and parent:
            matches = [video for video in matches if _folder_name(video) == os.path.basename(parent)] or matches
        if len(matches) > 1:
            matches = [video for video in matches if suffix(video) in USUAL_SUFFIXES] or matches
        if len(matches) > 1:
            raise self._two_matches(stem, matches)
        return matches[0] if matches else None

    def find_clip(self, path: bytes) -> bytes | None:
        """The only clip of a video, ID_SSSSSS_EEEEEE as Kinetics names it. Raises MisuseError if it has several clips."""
        clips = self._clips_of_id.get(os.path.basename(path), ())
        if len(clips) > 1:
            raise self._two_matches(os.path.basename(path), clips)
        return clips[0] if clips else None

    @cached_property
    def _clips_of_id(self) -> dict[bytes, list[bytes]]:
        clips: dict[bytes, list[bytes]] = {}
        for stem, paths in self._by_stem.items():
            if (match := KINETICS_STEM.fullmatch(stem)) is not None:
                clips.setdefault(match[1], []).extend(paths)
        return clips

    def _two_matches(self, name: bytes, matches: Sequence[bytes]) -> MisuseError:
        folder = str(self.folder) if isinstance(self.folder, RemotePath) else path_to_text(self.folder)
        first, second = map(path_to_text, matches[:2])
        return MisuseError(f"{folder}: {path_to_text(name)} matches both {first} and {second}. Move one of them away")


def _folder_name(path: bytes) -> bytes:
    return os.path.basename(os.path.dirname(path))
