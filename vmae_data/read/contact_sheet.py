"""Sample numbers → a gallery with the first, middle and last kept frame of each, and the video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmae_data.errors import SampleError
from vmae_data.pages.html import Gallery, Tile
from vmae_data.pages.pictures import Picture, frame_pictures
from vmae_data.pages.previews import Previews
from vmae_data.read.dataset import Shards, sample_seconds

__all__ = ["DrawnSample", "contact_sheet", "draw_sample"]


class DrawnSample(NamedTuple):
    """Some frames of a sample, and its video as a data URI, if it plays."""

    pictures: tuple[Picture, ...]
    video: str


def contact_sheet(
    shards: Shards, numbers: Sequence[int], previews: Previews | None = None
) -> tuple[Gallery, dict[str, str]]:
    """The gallery, and why samples are unreadable, by key. The tiles play if there are previews.

    Raises DataError if a shard or its marker is missing.
    """
    tiles, unreadable = [], {}
    for number in numbers:
        try:
            tiles.append(_tile(shards, number, previews))
        except SampleError as error:
            unreadable[error.key] = error.detail
    return Gallery(tuple(tiles)), unreadable


def _tile(shards: Shards, number: int, previews: Previews | None) -> Tile:
    key = shards.key(number)
    sample = shards.sample(number)
    frames = int(shards.frames_NP[number, 0])
    height, width = shards.frame_size(number)
    pictures, video = draw_sample(shards, number, sample.data, (0, frames // 2, frames - 1), previews)
    count = f"{frames} {'frames' if frames > 1 else 'frame'}"
    size = f"{width} × {height}, {count}, {sample_seconds(sample.facts):.1f} s"
    label = _label_text(shards, number)
    return Tile(pictures, label, (key, size), video) if label else Tile(pictures, key, (size,), video)


def draw_sample(
    shards: Shards, number: int, data: bytes, frames: Sequence[int], previews: Previews | None
) -> DrawnSample:
    """These frames of the sample, whose first phase is `data`, and its video. Raises SampleError."""
    key = shards.key(number)
    bt709, full_range = bool(shards.is_bt709_N[number]), bool(shards.full_range_N[number])
    pictures = frame_pictures(data, sorted(set(frames)), key, is_bt709=bt709, full_range=full_range)
    if previews is None:
        return DrawnSample(pictures, "")
    count, rate = int(shards.frames_NP[number, 0]), float(shards.rate_N[number])
    video = previews.add(data, key, frames=count, rate=rate, is_bt709=bt709, full_range=full_range)
    return DrawnSample(pictures, video)


def _label_text(shards: Shards, number: int) -> str:
    label = shards.label(number)
    names = dict(enumerate(shards.classes))
    values = label if isinstance(label, tuple) else () if label is None else (label,)
    return ", ".join(f"{one:.4g}" if isinstance(one, float) else names.get(one, str(one)) for one in values)
