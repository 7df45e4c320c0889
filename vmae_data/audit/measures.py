"""What can be measured of a sample's brightness: motion, black and frozen shares, cuts, sharpness.

Everything is measured on small grey frames, so that the numbers do not depend on the size of the video. Grey levels
are 0 (black) to 255 (white), whatever range the file's luma has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["GRID", "Measures", "grey_levels", "measure", "sharpness_of", "shrink"]

# T frames, H and W the grid's lines and columns.
U8 = NDArray[np.uint8]
GRID = 64  # a frame is shrunk to GRID × GRID cells: each is the mean of what it covers
LAG_SECONDS = 0.25  # motion is the change over this time, so that other strides give about the same number
MOVED_LEVELS = 10  # a cell that never leaves a range of so many levels has not moved: above what coding adds
BLACK_LEVEL, BLACK_CELLS = 25.5, 0.98  # as ffmpeg's blackdetect: 98 % of a frame below 10 % of white
STILL_LEVELS, STILL_MEAN = 8, 0.5  # two frames are the same where no cell, and all on average, changed more
REFRESH_MEAN = 1.5  # a key frame draws a still picture anew: so much between two stand-stills ends neither
STILL_SECONDS = 0.5  # shorter stand-stills are not counted: sources repeat single frames
CUT_LEVELS, CUT_TIMES = 12.0, 2.0  # a cut changes so many levels, and so many times what its neighbours do
SHARP_SIDE = 128  # short side at which sharpness is measured
STEP_LEVELS = 1.2  # a step of 8-bit luma: without it the stairs of the smoothest slope would look sharp
FLAT_LEVELS = 6.0  # frames with less contrast (standard deviation) say nothing about sharpness
BLUR_PIXELS = 5  # box of the second blur: of 5 and 9 the one that told a blur of 2 px better from none
CHUNK = 512


class Measures(NamedTuple):
    """All shares are 0 to 1."""

    motion: float  # grey levels a quarter of a second
    moved: float  # share of the picture that ever changes
    black: float  # share of the frames
    frozen: float  # share of the time
    cuts: int
    sharpness: float | None  # None where no frame has enough contrast to say


def grey_levels(full_range: bool) -> U8:
    """A table from a file's luma to grey levels."""
    luma = np.arange(256, dtype=np.float64)
    grey = luma if full_range else (luma - 16) * 255 / 219
    return np.asarray(np.rint(grey.clip(0, 255)), dtype=np.uint8)


def shrink(y_HW: U8, levels: U8) -> U8:
    """A luma plane as GRID × GRID grey cells, each the mean of the area that it covers."""
    small = Image.fromarray(np.ascontiguousarray(y_HW)).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(levels[np.asarray(small)])


def sharpness_of(y_HW: U8, levels: U8) -> float | None:
    """1 less the blur effect of Crété et al. (2007, "The blur effect"): how much of the change between neighbouring pixels a
    further blur takes away, beyond a step of 8 bits. 0 is wholly blurred. None for a flat frame.

    Real videos, built at 256 pixels, had 0.30 to 0.60; blurred by 2 px (sigma, at SHARP_SIDE) 0.11 to 0.18, by 3 px 0.08 to 0.11.
    """
    image = Image.fromarray(np.ascontiguousarray(y_HW))
    if min(image.size) > SHARP_SIDE:
        scale = SHARP_SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    grey = levels[np.asarray(image)].astype(np.float32)
    if min(grey.shape) <= 2 * BLUR_PIXELS or grey.std() < FLAT_LEVELS:
        return None
    kept = [_change_kept(plane) for plane in (grey, grey.T)]
    return min(kept)


def _change_kept(plane: NDArray[np.float32]) -> float:
    """Along the columns: the share of the change between neighbours that a box blur takes away."""
    sums = np.cumsum(np.pad(plane, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    blurred = (sums[BLUR_PIXELS:] - sums[:-BLUR_PIXELS]) / BLUR_PIXELS
    edge = BLUR_PIXELS // 2
    change = np.abs(np.diff(plane[edge : len(plane) - edge], axis=0)).astype(np.float64)
    lost = np.maximum(0, change - STEP_LEVELS - np.abs(np.diff(blurred, axis=0)))
    total = float(change.sum())
    return float(lost.sum()) / total if total else 0.0


def measure(time_T: NDArray[np.float64], grey_THW: U8, sharpness: list[float]) -> Measures:
    """The measures of a sample from its frames' times (in s, ascending), its small grey frames, and the sharpness of some."""
    step = _changes(grey_THW, np.arange(len(grey_THW) - 1), np.arange(1, len(grey_THW)))
    return Measures(
        motion=_motion(time_T, grey_THW),
        moved=float(np.mean(np.ptp(grey_THW, axis=0) > MOVED_LEVELS)),
        black=float(np.mean(np.mean(grey_THW <= BLACK_LEVEL, axis=(1, 2)) >= BLACK_CELLS)),
        frozen=_frozen(time_T, _still(step)),
        cuts=_cuts(step.mean_P),
        sharpness=float(np.median(sharpness)) if sharpness else None,
    )


class _Changes(NamedTuple):
    """How two frames differ, for P pairs, in grey levels."""

    mean_P: NDArray[np.float64]
    greatest_P: NDArray[np.int64]


def _changes(grey_THW: U8, first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> _Changes:
    """In chunks: a long video at its full rate would not fit as 16-bit differences."""
    parts = list(_change_chunks(grey_THW, first_P, second_P))
    if not parts:
        return _Changes(np.zeros(0), np.zeros(0, dtype=np.int64))
    return _Changes(
        np.concatenate([part.mean_P for part in parts]), np.concatenate([part.greatest_P for part in parts])
    )


def _change_chunks(grey_THW: U8, first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> Iterator[_Changes]:
    for start in range(0, len(first_P), CHUNK):
        one, other = (grey_THW[side[start : start + CHUNK]].astype(np.int16) for side in (first_P, second_P))
        change = np.abs(other - one)
        yield _Changes(change.mean(axis=(1, 2), dtype=np.float64), change.max(axis=(1, 2)).astype(np.int64))


def _motion(time_T: NDArray[np.float64], grey_THW: U8) -> float:
    """Mean change over LAG_SECONDS; of a sample that is shorter, from its first to its last frame."""
    now = np.arange(len(time_T))
    before = np.searchsorted(time_T, time_T - LAG_SECONDS + 1e-6, side="right") - 1
    known = before >= 0
    if not known.any():
        return float(_changes(grey_THW, now[:1], now[-1:]).mean_P[0])
    return float(_changes(grey_THW, before[known], now[known]).mean_P.mean())


def _still(step: _Changes) -> NDArray[np.bool_]:
    """Which steps change nothing; a key frame's refresh between two such steps is one."""
    alike_P = step.greatest_P <= STILL_LEVELS
    still_P = alike_P & (step.mean_P <= STILL_MEAN)
    padded = np.concatenate(([False], still_P, [False]))
    return still_P | (alike_P & (step.mean_P <= REFRESH_MEAN) & padded[:-2] & padded[2:])


def _frozen(time_T: NDArray[np.float64], still_P: NDArray[np.bool_]) -> float:
    """Share of the time in which nothing changes for STILL_SECONDS or more."""
    length = float(time_T[-1] - time_T[0])
    if length <= 0:
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([0], still_P.view(np.int8), [0]))))
    runs = time_T[edges[1::2]] - time_T[edges[::2]]
    return float(runs[runs >= STILL_SECONDS].sum()) / length


def _cuts(change_P: NDArray[np.float64]) -> int:
    """Steps that change far more than the steps around them. A flash changes two steps in a row, and is none."""
    if len(change_P) < 2:
        return 0
    padded = np.concatenate(([0.0], change_P, [0.0]))
    around = np.maximum(padded[:-2], padded[2:])
    return int(np.sum((change_P >= CUT_LEVELS) & (change_P >= CUT_TIMES * around)))
