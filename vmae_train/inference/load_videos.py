"""Videos → the clips of their windows, in this process or, several videos at a time, in worker processes."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.encode.open_source import OpenedSource, open_source
from vmae_data.errors import DataError
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.inference.find_videos import VideoFile
from vmae_train.inference.read_video import Part, WindowClips, map_windows, read_windows, video_windows, write_windows
from vmae_train.inference.windows import Window, WindowSpec

__all__ = ["VideoReading", "load_videos"]

AHEAD = 2  # videos for each worker: one that it decodes, and one that waits


class VideoReading(NamedTuple):
    """Which clips are read of a video."""

    clip: ClipSpec
    windows: WindowSpec
    num_frames: int
    views: int
    short_side: int


class _Stored(NamedTuple):
    """What a worker hands over: the file of the windows' pictures, or None for a video that needs more room."""

    opened: OpenedSource
    windows: list[Window]
    target: Path | None


def load_videos(
    videos: Iterable[VideoFile], reading: VideoReading, *, workers: int
) -> Iterator[tuple[VideoFile, Iterator[WindowClips]]]:
    """Each video and its clips, in order. Iterating over the clips raises SourceError or DataError for a bad video.

    Workers hand over pictures by files in the temporary folder. This process decodes a video that needs more room.
    """
    if not workers:
        for video in videos:
            yield video, (clips for part in _load(video, reading) for clips in part.clips())
        return
    coming = iter(enumerate(videos))
    submitted: deque[tuple[int, VideoFile]] = deque()
    finished: dict[int, Finished] = {}
    with tempfile.TemporaryDirectory() as folder, Pool(workers) as pool:
        while True:
            while len(submitted) < AHEAD * workers and (numbered := next(coming, None)) is not None:
                submitted.append(numbered)
                target = Path(folder) / f"{numbered[0]}.yuv"
                pool.submit(numbered[0], _store, numbered[1], reading, target, AHEAD * workers)
            if not submitted:
                return
            number, video = submitted.popleft()
            while number not in finished:
                ended = next_finished([pool])
                assert ended is not None
                finished[ended.tag] = ended
            yield video, _clips(finished.pop(number), video, reading)


def _clips(ended: Finished, video: VideoFile, reading: VideoReading) -> Iterator[WindowClips]:
    if isinstance(ended.error, WorkerDied):
        raise DataError(f"decoding it stopped: {ended.error}") from ended.error
    if ended.error is not None:
        raise ended.error
    stored: _Stored = ended.result
    parts = _load(video, reading, stored.opened)
    if stored.target is not None:
        parts = iter([map_windows(stored.opened, stored.windows, reading.short_side, stored.target)])
        stored.target.unlink()
    for part in parts:
        yield from part.clips()


def _load(video: VideoFile, reading: VideoReading, opened: OpenedSource | None = None) -> Iterator[Part]:
    """`opened`: the video, if it was opened before."""
    with tempfile.TemporaryDirectory() as folder, video.local(Path(folder)) as path:
        opened = open_source(path) if opened is None else opened._replace(path=bytes(path.absolute()))
        yield from read_windows(opened, _windows(opened, reading), reading.short_side)


def _store(video: VideoFile, reading: VideoReading, target: Path, sharers: int) -> _Stored:
    """In a worker."""
    with tempfile.TemporaryDirectory() as folder, video.local(Path(folder)) as path:
        opened = open_source(path, in_worker=True)
        windows = _windows(opened, reading)
        try:
            is_written = write_windows(opened, windows, reading.short_side, target, sharers)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return _Stored(opened, windows, target if is_written else None)


def _windows(opened: OpenedSource, reading: VideoReading) -> list[Window]:
    return video_windows(opened, reading.clip, reading.windows, reading.num_frames, reading.views)
