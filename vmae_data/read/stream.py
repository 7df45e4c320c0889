"""Requests for clips → fetched, decoded planes in shared buffers. One decoder runs in each process that decodes.

The frame sampler is a picklable callable from outside: this module knows nothing of training.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.decode import decode_frames
from vmae_data.errors import DataError, SampleError
from vmae_data.motion import Vectors, motion_of_frames
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.fetch import Fetcher, ReadTimings
from vmae_data.read.prefetch import READ_AHEAD, Prefetcher
from vmae_data.read.shared_buffers import BufferPlanes, SharedBuffers
from vmae_data.read.table import SampleView, Table
from vmae_data.rng import Rng
from vmae_data.storage import RemotePath, storage_path

__all__ = ["ClipFrames", "ClipRequest", "DataPart", "DecodedChunk", "DecodedClip", "Decoder", "Sampler", "is_remote"]


class ClipFrames(NamedTuple):
    """Which kept frames to decode (ascending, each once), and which of them form each view: (views, T)."""

    decode: tuple[int, ...]
    index_VT: NDArray[np.int64]
    phase: int = 0


Sampler = Callable[[SampleView, Rng], ClipFrames]


class ClipRequest(NamedTuple):
    """A position of a batch, and the sample to decode for it."""

    position: int
    sample: int
    seed: int
    epoch: int


class DecodedClip(NamedTuple):
    """A filled position of a batch: the size of its frames, and its views. With an `error`, the frames are black.

    `motion_FHW`: that of `motion_of_frames`, if it was asked for.
    """

    position: int
    sample: int
    height: int
    width: int
    index_VT: NDArray[np.int64] | None
    error: SampleError | None
    motion_FHW: NDArray[np.uint16] | None = None


class DecodedChunk(NamedTuple):
    """The clips of one task, what they cost, and messages for the user."""

    clips: list[DecodedClip]
    timings: ReadTimings
    notes: tuple[str, ...] = ()


class DataPart(NamedTuple):
    """One data set of a mixture: the number of its first sample, and its frame sampler."""

    url: str
    digest: str
    first: int
    sampler: Sampler


class Decoder:
    """Decodes clips into positions of shared buffers; one in each process. Also the handler of a worker pool's tasks.

    Remote data sets share one prefetcher of at most `read_ahead` bytes, and the node's cache. `motion`: also read the
    motion vectors.
    """

    def __init__(
        self,
        parts: Sequence[DataPart],
        buffers: SharedBuffers,
        read_ahead: int = READ_AHEAD,
        cache: CacheSpec | None = None,
        motion: bool = False,
    ) -> None:
        remote = is_remote(part.url for part in parts)
        self._prefetcher = Prefetcher(read_ahead) if remote else None
        self._cache = ShardCache(cache) if remote and cache is not None and cache.dir is not None else None
        self.parts, self.buffers, self.motion = parts, buffers, motion
        self._fetchers = [self._open(part) for part in parts]
        self._reported = ReadTimings()

    def _open(self, part: DataPart) -> Fetcher:
        table = Table.open(part.url, part.digest)
        if table.digest != part.digest:
            raise DataError(f"{part.url}: changed while it was read. Start again")
        return Fetcher(table, prefetcher=self._prefetcher, cache=self._cache)

    def fill(self, buffer: int, requests: Sequence[ClipRequest]) -> DecodedChunk:
        """Decode the requested clips into a buffer. A bad sample is reported, never replaced."""
        return self.finish(self.prepare(buffer, requests))

    __call__ = fill

    def prepare(self, buffer: int, requests: Sequence[ClipRequest]) -> tuple[int, list[tuple[ClipRequest, ClipFrames]]]:
        """Choose frames and start to prefetch their bytes. Does not touch the buffer."""
        members: list[list[tuple[int, int]]] = [[] for _ in self.parts]
        chosen = []
        for request in requests:
            part = self._part(request.sample)
            view = self._fetchers[part].shards.view(request.sample - self.parts[part].first)
            rng = Rng(request.seed, request.epoch, self._fetchers[part].shards.sample_number(view.number))
            frames = self.parts[part].sampler(view, rng)
            members[part].append((view.number, frames.phase))
            chosen.append((request, frames))
        for fetcher, own in zip(self._fetchers, members, strict=True):
            fetcher.prefetch(own)
        return buffer, chosen

    def finish(self, prepared: tuple[int, list[tuple[ClipRequest, ClipFrames]]]) -> DecodedChunk:
        """Decode what was prepared."""
        buffer, chosen = prepared
        planes = self.buffers.planes(buffer)
        started_at = time.perf_counter()
        clips = [self._clip(planes, request, frames) for request, frames in chosen]
        timings = self._new_timings(time.perf_counter() - started_at)
        return DecodedChunk(clips, timings, self._cache.notes if self._cache is not None else ())

    def close(self) -> None:
        for fetcher in self._fetchers:
            fetcher.close()
        for shared in (self._prefetcher, self._cache):
            if shared is not None:
                shared.close()

    def _part(self, sample: int) -> int:
        return bisect_right(self.parts, sample, key=attrgetter("first")) - 1

    def _clip(self, planes: BufferPlanes, request: ClipRequest, frames: ClipFrames) -> DecodedClip:
        part, position = self._part(request.sample), request.position
        fetcher, number = self._fetchers[part], request.sample - self.parts[part].first
        try:
            data = fetcher.fetch(number, frames.phase)
            key, size = fetcher.shards.key(number), fetcher.shards.frame_size(number)
            vectors: list[Vectors | None] | None = [] if self.motion else None
            top, left, height, width = _decode(data, frames.decode, key, planes, position, size, vectors)
        except SampleError as error:
            for plane in planes:  # must not show the previous clip
                plane[position] = 0
            height, width = planes.y_BFHW.shape[2:]
            return DecodedClip(position, request.sample, height, width, None, error)
        motion_FHW = motion_of_frames(vectors, height, width, top=top, left=left) if vectors is not None else None
        return DecodedClip(position, request.sample, height, width, frames.index_VT, None, motion_FHW)

    def _new_timings(self, seconds: float) -> ReadTimings:
        """What was added since the last call, of which fetching and decoding took `seconds`."""
        total = ReadTimings(cache_bytes=self._cache.downloaded_bytes if self._cache is not None else 0)
        for fetcher in self._fetchers:
            total = total.plus(fetcher.timings)
        new, self._reported = total.minus(self._reported), total
        return new._replace(decode_seconds=seconds - new.fetch_seconds)


def _decode(
    data: bytes,
    numbers: tuple[int, ...],
    key: str,
    planes: BufferPlanes,
    position: int,
    size: tuple[int, int],
    vectors: list[Vectors | None] | None,
) -> tuple[int, int, int, int]:
    """Returns the part of the frames that is in the buffer: top, left, height and width.

    A frame larger than the buffer is cropped at its centre, at even positions so that chroma stays aligned.
    """
    room_h, room_w = planes.y_BFHW.shape[2:]
    top, left = max(0, size[0] - room_h) // 4 * 2, max(0, size[1] - room_w) // 4 * 2
    height, width = min(size[0], room_h), min(size[1], room_w)
    for row, frame in enumerate(decode_frames(data, numbers, key, size, vectors)):
        _copy(planes.y_BFHW[position, row], frame.y, top, left, height, width)
        _copy(planes.u_BFHW[position, row], frame.u, top // 2, left // 2, height // 2, width // 2)
        _copy(planes.v_BFHW[position, row], frame.v, top // 2, left // 2, height // 2, width // 2)
    for plane in planes:  # a clip that repeats frames decodes fewer than the buffer has
        plane[position, len(numbers) :] = 0
    return top, left, height, width


def _copy(to: NDArray[np.uint8], plane: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> None:
    to[:height, :width] = plane[top : top + height, left : left + width]
    # Padding is zero, so that a batch's bytes do not depend on what the buffer held before.
    to[height:] = 0
    to[:height, width:] = 0


def is_remote(urls: Iterable[str]) -> bool:
    """Whether any of them is on another machine, so that prefetching helps."""
    return any(isinstance(storage_path(url), RemotePath) for url in urls)
