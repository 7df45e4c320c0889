"""Sample numbers → a gallery with the first, middle and last kept frame of each."""

from __future__ import annotations

from collections.abc import Sequence

from vmae_data.errors import SampleError
from vmae_data.pages.html import Gallery, Tile
from vmae_data.pages.pictures import frame_pictures
from vmae_data.read.dataset import Shards, sample_seconds

__all__ = ["contact_sheet"]


def contact_sheet(shards: Shards, numbers: Sequence[int]) -> tuple[Gallery, dict[str, str]]:
    """The gallery, and why samples are unreadable, by key. Raises DataError if a shard or its marker is missing."""
    tiles, unreadable = [], {}
    for number in numbers:
        try:
            tiles.append(_tile(shards, number))
        except SampleError as error:
            unreadable[error.key] = error.detail
    return Gallery(tuple(tiles)), unreadable


def _tile(shards: Shards, number: int) -> Tile:
    key = shards.key(number)
    sample = shards.sample(number)
    frames = int(shards.frames_NP[number, 0])
    height, width = shards.frame_size(number)
    pictures = frame_pictures(
        sample.data,
        sorted({0, frames // 2, frames - 1}),
        key,
        is_bt709=bool(shards.is_bt709_N[number]),
        full_range=bool(shards.full_range_N[number]),
    )
    count = f"{frames} {'frames' if frames > 1 else 'frame'}"
    size = f"{width} × {height}, {count}, {sample_seconds(sample.facts):.1f} s"
    label = _label_text(shards, number)
    return Tile(pictures, label, (key, size)) if label else Tile(pictures, key, (size,))


def _label_text(shards: Shards, number: int) -> str:
    label = shards.label(number)
    names = dict(enumerate(shards.classes))
    values = label if isinstance(label, tuple) else () if label is None else (label,)
    return ", ".join(f"{one:.4g}" if isinstance(one, float) else names.get(one, str(one)) for one in values)
