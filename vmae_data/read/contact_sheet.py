"""Some samples of a data set as a gallery: first, middle and last kept frame of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmae_data.errors import SampleError
from vmae_data.html import Gallery, Tile
from vmae_data.pictures import frame_pictures
from vmae_data.read.dataset import Shards
from vmae_data.read.durations import sample_seconds

__all__ = ["ContactSheet", "contact_sheet"]


class ContactSheet(NamedTuple):
    """The gallery, and what could not be shown, by key."""

    gallery: Gallery
    unreadable: dict[str, str]


def contact_sheet(shards: Shards, numbers: Sequence[int]) -> ContactSheet:
    """Pictures of the samples of these numbers. Raises DataError where a shard or its marker is gone."""
    tiles, unreadable = [], {}
    for number in numbers:
        try:
            tiles.append(_tile(shards, number))
        except SampleError as error:
            unreadable[error.key] = error.detail
    return ContactSheet(Gallery(tuple(tiles)), unreadable)


def _tile(shards: Shards, number: int) -> Tile:
    key = shards.key(number)
    sample = shards.sample(number)
    frames = int(shards.frames_NP[number, 0])
    height, width = (int(n) for n in shards.size_N2[number])
    pictures = frame_pictures(
        sample.data,
        sorted({0, frames // 2, frames - 1}),
        key,
        is_bt709=bool(shards.is_bt709_N[number]),
        full_range=bool(shards.full_range_N[number]),
    )
    counted = f"{frames} {'frames' if frames > 1 else 'frame'}"
    size = f"{width} × {height}, {counted}, {sample_seconds(sample.facts):.1f} s"
    shown = _label_text(shards, number)
    return Tile(pictures, shown, (key, size)) if shown else Tile(pictures, key, (size,))


def _label_text(shards: Shards, number: int) -> str:
    label = shards.label(number)
    known = dict(enumerate(shards.classes))
    values = label if isinstance(label, tuple) else () if label is None else (label,)
    return ", ".join(f"{one:.4g}" if isinstance(one, float) else known.get(one, str(one)) for one in values)
