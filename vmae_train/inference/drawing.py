"""Reconstructions → files: sheets with captions as pictures and videos, and pages.

T frames, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmae_data.errors import MisuseError
from vmae_data.pages.html import Charts, Figure, Note, Part, Section, write_page
from vmae_data.pages.pictures import (
    Picture,
    SheetRow,
    animated_gif,
    enlarge,
    picture,
    sheet,
    text_tile,
    video_mp4,
    wrap_text,
)
from vmae_data.storage import StoragePath, commit_bytes, writable_path

__all__ = [
    "EXPLANATION",
    "MaskedClip",
    "Reconstruction",
    "draw_moving",
    "draw_still",
    "error_map",
    "page_figures",
    "page_rows",
    "picture_path",
    "write_reconstructions",
]

U8 = NDArray[np.uint8]
SUFFIXES = (".png", ".gif", ".mp4", ".html")
STILL_FRAMES = 8
PAGE_SIDE = 160  # a page is at most eight frames wide
GAP, GAP_GREY = 4, 60  # darker than masked cubes; fits a light and a dark page
MOST_ERROR = 64  # grey levels; the brightest colour of an error map
ERROR_COLOURS = ((0, 0, 0), (95, 20, 110), (200, 60, 75), (250, 150, 20), (255, 255, 170))  # from no error to the most
EXPLANATION = (
    "Brightness and contrast of each masked cube come from the original: the model predicts its pattern only. "
    "Visible cubes are those of the original. "
    f"Error: black is none, pale yellow a mean difference of {MOST_ERROR} or more of 255 levels."
)


class MaskedClip(NamedTuple):
    """A clip under one mask, uint8 (T, H, W, 3): grey masked cubes, predicted ones; and the loss of these cubes."""

    mask: str
    masked_THWC: U8
    predicted_THWC: U8
    loss: float

    def __repr__(self) -> str:
        return f"MaskedClip({self.mask!r}, loss={self.loss:.4g})"

    @property
    def caption(self) -> str:
        return f"{self.mask}   (loss of the masked cubes {self.loss:.3f})"


class Reconstruction(NamedTuple):
    """One clip, uint8 (T, H, W, 3), and what the model predicts of it under each mask."""

    title: str
    original_THWC: U8
    masks: tuple[MaskedClip, ...]

    def __repr__(self) -> str:
        frames, height, width, _ = self.original_THWC.shape
        return f"Reconstruction({self.title!r}, {frames} frames of {width} × {height} pixels, {list(self.masks)})"

    def versions(self, masked: MaskedClip) -> tuple[tuple[str, U8], ...]:
        """The rows or columns of a picture."""
        error_THWC = error_map(self.original_THWC, masked.predicted_THWC)
        return (
            ("original", self.original_THWC),
            ("masked", masked.masked_THWC),
            ("reconstructed", masked.predicted_THWC),
            ("error", error_THWC),
        )

    def save(self, out: str | Path) -> None:
        """Write a .png with frames side by side, a moving .gif or .mp4, or an .html page; a path or a URL of a bucket.

        Raises MisuseError for another suffix, and for a path that can't be written.
        """
        write_reconstructions(picture_path(out, "save"), [self])


def picture_path(out: str | Path, option: str) -> StoragePath:
    """The path of a file of reconstructions. Raises MisuseError for an unusable suffix or path."""
    path = writable_path(out, option)
    if path.suffix not in SUFFIXES:
        raise MisuseError(f"{option} {out}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return path


def write_reconstructions(path: StoragePath, clips: Sequence[Reconstruction], subtitle: str = "") -> None:
    """Write all clips into one file; its suffix chooses the kind."""
    if path.suffix == ".html":
        parts: tuple[Part, ...] = (Note(EXPLANATION), *(page_figures(clip) for clip in clips))
        write_page(path, "Reconstructions", [Section("Videos", parts)], subtitle)
    elif path.suffix == ".png":
        commit_bytes(path, picture(draw_still(clips), lossless=True).data)
    else:
        frames = draw_moving(clips)
        commit_bytes(path, animated_gif(frames).data if path.suffix == ".gif" else video_mp4(frames))


def error_map(original_THWC: U8, predicted_THWC: U8) -> U8:
    """The absolute difference of each pixel, averaged over its colours, in the colours of ERROR_COLOURS."""
    difference_THW = np.abs(original_THWC.astype(np.float32) - predicted_THWC).mean(axis=-1)
    steps = np.linspace(0, MOST_ERROR, len(ERROR_COLOURS))
    channels = [np.interp(difference_THW, steps, values) for values in zip(*ERROR_COLOURS, strict=True)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), dtype=np.uint8)


def draw_still(clips: Sequence[Reconstruction]) -> U8:
    """The original, and three rows for each mask, with up to eight frames."""
    rows = []
    for clip in clips:
        title = clip.title
        for number, masked in enumerate(clip.masks):
            shown = clip.versions(masked)[min(number, 1) :]  # the original once
            for label, frames in shown:
                title = masked.caption if label == "masked" else title
                rows.append(SheetRow([*enlarge(_still_frames(frames))], label, title))
                title = ""
    return sheet([*_explanation(rows), *rows])


def draw_moving(clips: Sequence[Reconstruction]) -> list[U8]:
    """One sheet per frame. It has a row for each mask of a clip: original, masked, reconstruction and error."""
    versions = [(clip, masked, clip.versions(masked)) for clip in clips for masked in clip.masks]
    width = enlarge(versions[0][2][0][1][0]).shape[1]
    columns = [text_tile(label, width) for label, _ in versions[0][2]]
    sheets = []
    for t in range(len(clips[0].original_THWC)):
        rows = []
        for clip, masked, frames in versions:
            if masked is clip.masks[0]:
                rows.append(SheetRow(columns, title=clip.title))
            rows.append(SheetRow([enlarge(one[t]) for _, one in frames], title=masked.caption))
        sheets.append(sheet([*_explanation(rows), *rows]))
    return sheets


def _explanation(rows: Sequence[SheetRow]) -> list[SheetRow]:
    return [SheetRow(title=line) for line in wrap_text(EXPLANATION, sheet(rows[:3]).shape[1])]


def _still_frames(frames_THWC: U8) -> U8:
    return frames_THWC[:: max(1, len(frames_THWC) // STILL_FRAMES)][:STILL_FRAMES]


def page_figures(clip: Reconstruction) -> Charts:
    """A clip for a page: for each mask an animation, and rows of frames. The page explains the rows."""
    figures = []
    for masked in clip.masks:
        versions = [_page_size(frames) for _, frames in clip.versions(masked)]
        names = ", ".join(label for label, _ in clip.versions(masked)).capitalize()
        moving = [_side_by_side([frames[t] for frames in versions]) for t in range(len(versions[0]))]
        rows = [_side_by_side([*_still_frames(frames)]) for frames in versions]
        still = np.concatenate([part for row in rows for part in (row, np.full_like(row[:GAP], GAP_GREY))][:-1])
        caption = f"{names}. {masked.mask.capitalize()}. Loss of the masked cubes: {masked.loss:.3f}"
        figures += [
            Figure(animated_gif(moving), clip.title, caption),
            Figure(_page_picture(still), f"{names}, from top to bottom"),
        ]
    return Charts(tuple(figures), wide=True)


def page_rows(named: Sequence[tuple[str, Reconstruction]]) -> Charts:
    """One clip under one mask, as several models reconstruct it, for a page: a row of frames for each, by its name."""
    first = named[0][1]
    rows = [("original", first.original_THWC, ""), ("masked", first.masks[0].masked_THWC, "")]
    for name, clip in named:
        masked = clip.masks[0]
        rows.append((name, masked.predicted_THWC, f"Loss of the masked cubes: {masked.loss:.3f}"))
    figures = []
    for name, frames, caption in rows:
        row = _side_by_side([*_still_frames(_page_size(frames))])
        figures.append(Figure(_page_picture(row), name.capitalize(), caption))
    return Charts(tuple(figures), wide=True)


def _page_picture(rows: U8) -> Picture:
    """Frames side by side; those of tiny clips without loss."""
    return picture(rows, lossless=rows.shape[1] < 8 * 128 + 8 * GAP)


def _page_size(frames_THWC: U8) -> U8:
    """At most `PAGE_SIDE` pixels; tiny clips are enlarged by a whole factor."""
    if min(frames_THWC.shape[1:3]) <= PAGE_SIDE:
        return enlarge(frames_THWC)
    images = [Image.fromarray(frame).resize((PAGE_SIDE, PAGE_SIDE), Image.Resampling.BOX) for frame in frames_THWC]
    return np.stack([np.asarray(image) for image in images])


def _side_by_side(tiles: Sequence[U8]) -> U8:
    gap = np.full((tiles[0].shape[0], GAP, 3), GAP_GREY, dtype=np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
