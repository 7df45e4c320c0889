"""Reconstructions → pictures: sheets with captions for files, single pictures for pages.

T frames, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmae_data.pages.html import Charts, Figure
from vmae_data.pages.pictures import SheetRow, animated_gif, enlarge, picture, sheet

__all__ = ["Reconstruction", "draw_moving", "draw_still", "page_figures"]

U8 = NDArray[np.uint8]
STILL_FRAMES = 8
PAGE_SIDE = 160  # a page is at most eight frames wide
GAP, GAP_GREY = 4, 60  # darker than masked cubes; fits a light and a dark page


class Reconstruction(NamedTuple):
    """One clip three times, uint8 (T, H, W, 3), and the loss of its masked cubes."""

    title: str
    original_THWC: U8
    masked_THWC: U8
    predicted_THWC: U8
    loss: float


def draw_still(clips: Sequence[Reconstruction]) -> U8:
    """Three rows per clip, with up to eight of its frames."""
    rows = []
    for clip in clips:
        title = f"{clip.title}   (loss of the masked cubes {clip.loss:.3f})"
        for label, frames in _versions(clip):
            rows.append(SheetRow([*enlarge(_still_frames(frames))], label, title))
            title = ""
    return sheet(rows)


def draw_moving(clips: Sequence[Reconstruction]) -> list[U8]:
    """One sheet per frame: original, masked and reconstruction of each clip side by side."""
    header = SheetRow(title="original, masked, reconstructed")
    return [
        sheet(
            [
                header,
                *(SheetRow([enlarge(frames[t]) for _, frames in _versions(clip)], title=clip.title) for clip in clips),
            ]
        )
        for t in range(len(clips[0].original_THWC))
    ]


def _still_frames(frames_THWC: U8) -> U8:
    return frames_THWC[:: max(1, len(frames_THWC) // STILL_FRAMES)][:STILL_FRAMES]


def _versions(clip: Reconstruction) -> tuple[tuple[str, U8], ...]:
    return (("original", clip.original_THWC), ("masked", clip.masked_THWC), ("reconstructed", clip.predicted_THWC))


def page_figures(clip: Reconstruction) -> Charts:
    """A clip for a page: as an animation, and as rows of frames. The page explains the rows."""
    versions = [_page_size(frames) for _, frames in _versions(clip)]
    moving = [_side_by_side([frames[t] for frames in versions]) for t in range(len(versions[0]))]
    rows = [_side_by_side([*_still_frames(frames)]) for frames in versions]
    still = np.concatenate([part for row in rows for part in (row, np.full_like(row[:GAP], GAP_GREY))][:-1])
    return Charts(
        (
            Figure(animated_gif(moving), clip.title, f"Loss of the masked cubes: {clip.loss:.3f}"),
            Figure(picture(still, lossless=still.shape[1] < 8 * 128 + 8 * GAP), "Original, masked, reconstructed"),
        ),
        wide=True,
    )


def _page_size(frames_THWC: U8) -> U8:
    """At most `PAGE_SIDE` pixels; tiny clips are enlarged by a whole factor."""
    if min(frames_THWC.shape[1:3]) <= PAGE_SIDE:
        return enlarge(frames_THWC)
    images = [Image.fromarray(frame).resize((PAGE_SIDE, PAGE_SIDE), Image.Resampling.BOX) for frame in frames_THWC]
    return np.stack([np.asarray(image) for image in images])


def _side_by_side(tiles: Sequence[U8]) -> U8:
    gap = np.full((tiles[0].shape[0], GAP, 3), GAP_GREY, dtype=np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
