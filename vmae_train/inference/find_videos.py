"""Files, folders, listings, URLs and shards → the videos to read, each with its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, MisuseError, StoreError
from vmae_data.format import INDEX
from vmae_data.names import path_to_text
from vmae_data.sources.find import find_sources, listed_urls
from vmae_data.sources.video_files import is_video, remote_path
from vmae_data.storage import (
    RemotePath,
    StoragePath,
    copied,
    exists,
    file_size,
    read_range,
    refuse_special,
    storage_path,
    write_error,
)

__all__ = ["FoundVideos", "Member", "VideoFile", "find_videos"]


class Member(NamedTuple):
    """The bytes of a video in the tar of a shard, and their checksum."""

    offset: int
    size: int
    sha256: str


class VideoFile(NamedTuple):
    """A video by path or URL. The name is that of the argument, or of its folder and the path below it; else it is absolute.

    With `member` it is a part of the file: the sample of a shard.
    """

    name: str
    path: StoragePath
    member: Member | None = None

    @contextmanager
    def local(self, folder: Path) -> Iterator[Path]:
        """The video as a file of this machine: itself, or a copy in `folder`. Raises DataError, StoreError."""
        if self.member is None:
            with copied(self.path, folder) as path:
                yield path
            return
        data = read_range(self.path, self.member.offset, self.member.size)
        if hashlib.sha256(data).hexdigest() != self.member.sha256:
            raise DataError(f"its checksum in {self.path.name} differs. Verify the shards")
        path = folder / "member.mp4"
        try:
            path.write_bytes(data)
        except OSError as error:
            raise write_error(path, error) from error
        yield path

    def version(self) -> str:
        """Differs if the file was replaced by another: its size, and on this machine when it was written."""
        if self.member is not None:
            return self.member.sha256
        if isinstance(self.path, RemotePath):
            with suppress(StoreError):  # reading it says so
                return str(file_size(self.path))
            return "missing"
        try:
            status = self.path.stat()
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"


class FoundVideos(NamedTuple):
    """What the arguments name, without repeats. `notes` and `warnings` are for people to see."""

    videos: tuple[VideoFile, ...]
    shards: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def find_videos(arguments: Iterable[str]) -> FoundVideos:
    """A name with the suffix of a video is a video, any other file is a listing. Labels of listings don't matter.

    Raises MisuseError for a path that names nothing, for a folder without permission, and for a folder or a listing
    without videos; StoreError.
    """
    videos: dict[str, VideoFile] = {}
    shards: dict[str, None] = {}
    notes: list[str] = []
    warnings: list[str] = []
    for argument in arguments:
        path = storage_path(argument)
        if isinstance(path, Path):
            refuse_special(path, folder=True)
            if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
                raise MisuseError(f"{argument}: this user may not read the folder. Check its permissions")
        named_as_video = is_video(os.fsencode(path.name))
        if path.name == INDEX or ((isinstance(path, Path) or not named_as_video) and exists(path / INDEX)):
            shards[argument.removesuffix(INDEX).rstrip("/") or "."] = None
        elif named_as_video and not (isinstance(path, Path) and path.is_dir()):
            if isinstance(path, Path) and not path.exists():
                raise MisuseError(f"{argument}: nothing at this path. Check it")
            name = path_to_text(os.fsencode(argument))
            videos.setdefault(name, VideoFile(name, path))
        elif isinstance(path, Path) and path.is_file() and (urls := listed_urls(path)):
            videos |= {url: VideoFile(url, storage_path(url)) for url in urls if url not in videos}
        else:
            listing = find_sources(argument)
            folder = argument if not exists(path) else str(path.parent)
            for source in listing.sources:
                if isinstance(listing.folder, RemotePath):
                    video = remote_path(listing.folder, source.path)
                    videos.setdefault(str(video), VideoFile(str(video), video))
                else:
                    local = os.path.normpath(os.path.join(listing.folder, source.path))
                    outside = source.path.startswith(b"../")  # as a listing of absolute paths may name them
                    text = path_to_text(local if outside else source.path)
                    name = text if outside else os.path.normpath(os.path.join(folder, text))
                    videos.setdefault(name, VideoFile(name, Path(os.fsdecode(local))))
            notes += listing.notes
            warnings += listing.warnings
    return FoundVideos(tuple(videos.values()), tuple(shards), tuple(notes), tuple(warnings))
