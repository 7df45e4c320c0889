"""Videos → the clips of their windows, in this process or, several videos at a time, in worker processes."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.encode.open_source import open_source
from vmae_data.errors import DataError
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.storage import copied
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.inference.find_videos import VideoFile
from vmae_train.inference.read_video import BYTES_AT_ONCE, WindowClips, read_windows, video_windows
from vmae_train.inference.windows import WindowSpec

__all__ = ["VideoReading", "load_videos"]

AHEAD = 2  # videos for each worker: one that it decodes, and one that waits


class VideoReading(NamedTuple):
    """Which clips are read of a video."""

    clip: ClipSpec
    windows: WindowSpec
    num_frames: int
    views: int
    short_side: int


def load_videos(
    videos: Iterable[VideoFile], reading: VideoReading, *, workers: int
) -> Iterator[tuple[VideoFile, Iterator[WindowClips]]]:
    """Each video and its clips, in order. Iterating over the clips raises SourceError or DataError for a bad video.

    A worker decodes a video whose pictures fit into `BYTES_AT_ONCE`; this process decodes a longer one, in parts.
    """
    if not workers:
        for video in videos:
            yield video, _load(video, reading)
        return
    coming = iter(enumerate(videos))
    submitted: deque[tuple[int, VideoFile]] = deque()
    finished: dict[int, Finished] = {}
    with Pool(workers) as pool:
        while True:
            while len(submitted) < AHEAD * workers and (numbered := next(coming, None)) is not None:
                submitted.append(numbered)
                pool.submit(numbered[0], _load_short, numbered[1], reading)
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
    yield from _load(video, reading) if ended.result is None else ended.result


def _load(video: VideoFile, reading: VideoReading, *, in_worker: bool = False) -> Iterator[WindowClips]:
    with tempfile.TemporaryDirectory() as folder, copied(video.path, Path(folder)) as path:
        opened = open_source(path, in_worker=in_worker)
        windows = video_windows(opened, reading.clip, reading.windows, reading.num_frames, reading.views)
        yield from read_windows(opened, windows, reading.short_side)


def _load_short(video: VideoFile, reading: VideoReading) -> list[WindowClips] | None:
    """In a worker; None for a video with too many clips to hand over at once."""
    clips: list[WindowClips] = []
    size = 0
    for one in _load(video, reading, in_worker=True):
        clips.append(one)
        size += sum(plane.nbytes for plane in one.planes)
        if size > BYTES_AT_ONCE:
            return None
    return clips
