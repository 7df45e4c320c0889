"""Row 11. Walks order, fetch and decode for one process, and writes planes into a slot.

The frame sampler is handed in as a picklable callable: this side knows nothing of training.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.decode import FrameSize, decode_frames
from vmae_data.errors import DataError, SampleError
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.fetch import Fetcher, Member, ReadTimings
from vmae_data.read.prefetch import READ_AHEAD, Prefetcher
from vmae_data.read.shared_buffers import BufferPlanes, SharedBuffers
from vmae_data.read.table import SampleView, Table
from vmae_data.rng import Rng
from vmae_data.storage import RemotePath, storage_path

__all__ = [
    "ClipFrames",
    "DataPart",
    "Decoder",
    "FilledPiece",
    "FilledPlace",
    "Reading",
    "Sampler",
    "WantedClip",
    "is_remote",
    "make_decoder",
]


class ClipFrames(NamedTuple):
    """Which kept frames to decode (ascending, each once), and which of them make each view: (views, T)."""

    decode: tuple[int, ...]
    index_VT: NDArray[np.int64]
    phase: int = 0


Sampler = Callable[[SampleView, Rng], ClipFrames]


class WantedClip(NamedTuple):
    """One place of a slot and the sample that belongs there."""

    place: int
    sample: int
    seed: int
    epoch: int


class FilledPlace(NamedTuple):
    """What came into a place: the frame's size, and the views into the decoded frames; or why nothing did."""

    place: int
    sample: int
    height: int
    width: int
    index_VT: NDArray[np.int64] | None
    failure: SampleError | None


class FilledPiece(NamedTuple):
    """A piece of work done: its places, what it took, and what a person should know."""

    places: list[FilledPlace]
    took: ReadTimings
    remarks: tuple[str, ...] = ()


class Reading(NamedTuple):
    """How a process reads what is far away: bytes that may be on their way at once, and the node's cache."""

    read_ahead: int = READ_AHEAD
    cache: CacheSpec = CacheSpec()


class DataPart(NamedTuple):
    """A data set to decode from: the number of its first sample, and how its clips are chosen."""

    url: str
    digest: str
    first: int
    sampler: Sampler


class _OpenPart:
    """A data set in the process that decodes."""

    def __init__(self, part: DataPart, ahead: Prefetcher | None, cache: ShardCache | None) -> None:
        self.shards = Table.open(part.url, part.digest)
        if self.shards.digest != part.digest:
            raise DataError(f"{part.url}: changed while it was read; start again")
        self.fetcher = Fetcher(self.shards, ahead=ahead, cache=cache)
        self.first, self.sampler = part.first, part.sampler


class _ChosenClip(NamedTuple):
    """A wanted clip, and what of its sample makes it."""

    clip: WantedClip
    part: _OpenPart
    view: SampleView
    frames: ClipFrames


class _Piece(NamedTuple):
    slot: int
    chosen: list[_ChosenClip]


class Decoder:
    """Fills places of slots; one a process. Samples of several data sets are numbered through."""

    def __init__(self, parts: Sequence[DataPart], slots: SharedBuffers, reading: Reading | None = None) -> None:
        reading = reading or Reading()
        remote = is_remote(part.url for part in parts)
        self._ahead = Prefetcher(reading.read_ahead) if remote else None
        self._cache = ShardCache(reading.cache) if remote and reading.cache.dir is not None else None
        self.parts, self.slots = [_OpenPart(part, self._ahead, self._cache) for part in parts], slots

    def fill(self, slot: int, wanted: Sequence[WantedClip]) -> FilledPiece:
        """Decode the wanted clips into their places. A bad sample is said, never replaced."""
        return self.finish(self.prepare(slot, wanted))

    __call__ = fill

    def prepare(self, slot: int, wanted: Sequence[WantedClip]) -> _Piece:
        """Choose the clips, and let their bytes come. Touches no slot."""
        chosen = [self._choose(clip) for clip in wanted]
        for part in self.parts:
            part.fetcher.ask([Member(one.view.number, one.frames.phase) for one in chosen if one.part is part])
        return _Piece(slot, chosen)

    def finish(self, piece: _Piece) -> FilledPiece:
        """Decode what was prepared."""
        planes = self.slots.planes(piece.slot)
        started_at = time.perf_counter()
        places = [_fill(planes, one) for one in piece.chosen]
        seconds = time.perf_counter() - started_at
        took = ReadTimings()
        for part in self.parts:
            took = took.plus(part.fetcher.take_took())
        took = took._replace(decoding=seconds - took.waiting)
        if self._cache is None:
            return FilledPiece(places, took)
        return FilledPiece(places, took._replace(cache_bytes=self._cache.take_fetched()), self._cache.take_remarks())

    def close(self) -> None:
        for part in self.parts:
            part.fetcher.close()
        for shared in (self._ahead, self._cache):
            if shared is not None:
                shared.close()

    def _choose(self, clip: WantedClip) -> _ChosenClip:
        part = self.parts[bisect_right(self.parts, clip.sample, key=attrgetter("first")) - 1]
        view = part.shards.view(clip.sample - part.first)
        draw = Rng(clip.seed, clip.epoch, part.shards.sample_number(view.number))
        return _ChosenClip(clip, part, view, part.sampler(view, draw))


def _fill(planes: BufferPlanes, chosen: _ChosenClip) -> FilledPlace:
    clip, part, view, frames = chosen
    try:
        data = part.fetcher.fetch(view.number, frames.phase)
        size = part.shards.frame_size(view.number)
        height, width = _decode(data, frames.decode, view.key, planes, clip.place, size)
    except SampleError as error:
        for plane in planes:  # a place without a clip must not show the one before
            plane[clip.place] = 0
        return FilledPlace(clip.place, clip.sample, planes.y_BFHW.shape[2], planes.y_BFHW.shape[3], None, error)
    return FilledPlace(clip.place, clip.sample, height, width, frames.index_VT, None)


def _decode(
    data: bytes, wanted: tuple[int, ...], key: str, planes: BufferPlanes, place: int, size: FrameSize
) -> tuple[int, int]:
    top, left, height, width = _cut(*size, planes)
    for row, frame in enumerate(decode_frames(data, wanted, key, size)):
        _copy(planes.y_BFHW[place, row], frame.y, top, left, height, width)
        _copy(planes.u_BFHW[place, row], frame.u, top // 2, left // 2, height // 2, width // 2)
        _copy(planes.v_BFHW[place, row], frame.v, top // 2, left // 2, height // 2, width // 2)
    for plane in planes:  # a clip that repeats frames decodes fewer than the slot has rows
        plane[place, len(wanted) :] = 0
    return height, width


def _cut(height: int, width: int, planes: BufferPlanes) -> tuple[int, int, int, int]:
    """A frame larger than the slot is cut at the centre, at even places so that chroma stays sited."""
    room_h, room_w = planes.y_BFHW.shape[2:]
    top, left = max(0, height - room_h) // 4 * 2, max(0, width - room_w) // 4 * 2
    return top, left, min(height, room_h), min(width, room_w)


def _copy(to: NDArray[np.uint8], plane: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> None:
    to[:height, :width] = plane[top : top + height, left : left + width]
    # Padding is zero, so that a slot's bytes are the same whatever lay there before.
    to[height:] = 0
    to[:height, width:] = 0


def is_remote(urls: Iterable[str]) -> bool:
    """Whether any of them lies on another machine, and is worth reading ahead."""
    return any(isinstance(storage_path(url), RemotePath) for url in urls)


def make_decoder(parts: Sequence[DataPart], slots: SharedBuffers, reading: Reading | None = None) -> Decoder:
    """The decode worker's entry."""
    return Decoder(parts, slots, reading)
