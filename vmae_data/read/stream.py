"""Row 11. Walks order, fetch and decode for one process, and writes planes into a slot.

The frame sampler is handed in as a picklable callable: this side knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.decode import decode_frames
from vmae_data.draws import Draw
from vmae_data.errors import SampleError
from vmae_data.read.fetch import Fetcher
from vmae_data.read.slots import SharedSlots, SlotPlanes
from vmae_data.read.table import SampleView, Table

__all__ = ["ClipFrames", "Decoder", "FilledPlace", "Sampler", "WantedClip", "make_decoder"]


class ClipFrames(NamedTuple):
    """Which kept frames to decode (ascending, each once), and which of them make each view: (views, T)."""

    decode: tuple[int, ...]
    index_VT: NDArray[np.int64]
    phase: int = 0


Sampler = Callable[[SampleView, Draw], ClipFrames]


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


class Decoder:
    """Fills places of slots; one a process."""

    def __init__(self, url: str, digest: str, sampler: Sampler, slots: SharedSlots) -> None:
        self.shards = Table.open(url)
        if self.shards.digest != digest:
            raise SampleError("-", f"{url} changed while it was read; start again")
        self.fetcher = Fetcher(self.shards)
        self.sampler, self.slots = sampler, slots

    def fill(self, slot: int, wanted: Sequence[WantedClip]) -> list[FilledPlace]:
        """Decode the wanted clips into their places. A bad sample is said, never replaced."""
        planes = self.slots.planes(slot)
        return [self._fill(planes, clip) for clip in wanted]

    def _fill(self, planes: SlotPlanes, clip: WantedClip) -> FilledPlace:
        view = self.shards.view(clip.sample)
        draw = Draw(clip.seed, clip.epoch, self.shards.sample_number(clip.sample))
        chosen = self.sampler(view, draw)
        try:
            data = self.fetcher.fetch(clip.sample, chosen.phase)
            height, width = self._decode(data, chosen.decode, view, planes, clip.place)
        except SampleError as error:
            for plane in planes:  # a place without a clip must not show the one before
                plane[clip.place] = 0
            return FilledPlace(clip.place, clip.sample, planes.y_BFHW.shape[2], planes.y_BFHW.shape[3], None, error)
        return FilledPlace(clip.place, clip.sample, height, width, chosen.index_VT, None)

    def _decode(
        self, data: bytes, wanted: tuple[int, ...], view: SampleView, planes: SlotPlanes, place: int
    ) -> tuple[int, int]:
        height, width = (int(n) for n in self.shards.size_N2[view.number])
        top, left, height, width = _cut(height, width, planes)
        for row, frame in enumerate(decode_frames(data, wanted, view.key)):
            _copy(planes.y_BFHW[place, row], frame.y, top, left, height, width)
            _copy(planes.u_BFHW[place, row], frame.u, top // 2, left // 2, height // 2, width // 2)
            _copy(planes.v_BFHW[place, row], frame.v, top // 2, left // 2, height // 2, width // 2)
        for plane in planes:  # a clip that repeats frames decodes fewer than the slot has rows
            plane[place, len(wanted) :] = 0
        return height, width


def _cut(height: int, width: int, planes: SlotPlanes) -> tuple[int, int, int, int]:
    """A frame larger than the slot is cut at the centre, at even places so that chroma stays sited."""
    room_h, room_w = planes.y_BFHW.shape[2:]
    top, left = max(0, height - room_h) // 4 * 2, max(0, width - room_w) // 4 * 2
    return top, left, min(height, room_h), min(width, room_w)


def _copy(to: NDArray[np.uint8], plane: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> None:
    to[:height, :width] = plane[top : top + height, left : left + width]
    # Padding is zero, so that a slot's bytes are the same whatever lay there before.
    to[height:] = 0
    to[:height, width:] = 0


def make_decoder(url: str, digest: str, sampler: Sampler, slots: SharedSlots) -> Callable[..., list[FilledPlace]]:
    """The decode worker's entry."""
    return Decoder(url, digest, sampler, slots).fill
