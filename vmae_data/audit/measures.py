"""A sample's luma planes → motion, black and frozen shares, cuts and sharpness.

All but sharpness is measured on small grey frames, so that it does not depend on the size of the video. Grey levels are 0
(black) to 255 (white), whatever the file's luma range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["GRID", "Measures", "grey_levels", "measure", "sharpness_of", "shrink"]

# T frames, P pairs of frames, H and W rows and columns of the grid.
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
GRID = 64  # a frame is shrunk to GRID × GRID cells, each the mean of its area
LAG_SECONDS = 0.25  # motion is the change over this time, so that it hardly depends on the stride
MOVED_LEVELS = 10  # a cell that stays within this range has not moved; coding noise is smaller
BLACK_LEVEL, BLACK_CELLS = 25.5, 0.98  # as ffmpeg's blackdetect: 98 % of the cells below 10 % of white
STILL_LEVELS, STILL_MEAN = 8, 0.5  # two frames are equal if no cell, and the mean, changed more than this
REFRESH_MEAN = 1.5  # a key frame redraws a still picture: this mean change does not end a still run
STILL_SECONDS = 0.5  # shorter still runs are not counted: sources repeat single frames
CUT_LEVELS, CUT_TIMES = 12.0, 2.0  # a cut changes this many levels, and this many times more than its neighbours
SHARP_SIDE = 128  # short side at which sharpness is measured
STEP_LEVELS = 1.2  # one step of 8-bit luma: else the steps of a smooth slope would count as sharp
FLAT_LEVELS = 6.0  # below this contrast (standard deviation) a frame has no measurable sharpness
BLUR_PIXELS = 5  # width of the extra blur: of 5 and 9 px, 5 detects a blur of 2 px better
CHUNK = 512


class Measures(NamedTuple):
    """The measures of a sample. All shares are 0 to 1."""

    started_at: float  # s in the source
    seconds: float
    motion: float  # grey levels per quarter of a second
    moved: float  # share of the picture that ever changes
    black: float  # share of the frames
    frozen: float  # share of the time
    cuts: int
    sharpness: float | None  # None if no frame has enough contrast


def grey_levels(full_range: bool) -> U8:
    """The lookup table from a file's luma to grey levels."""
    luma = np.arange(256, dtype=np.float64)
    grey = luma if full_range else (luma - 16) * 255 / 219
    return np.asarray(np.rint(grey.clip(0, 255)), dtype=np.uint8)


def shrink(y_HW: U8, levels: U8) -> U8:
    """A luma plane as GRID × GRID grey cells, each the mean of its area."""
    small = Image.fromarray(np.ascontiguousarray(y_HW)).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(levels[np.asarray(small)])


def sharpness_of(y_HW: U8, levels: U8) -> float | None:
    """1 minus the blur effect (Crété et al. 2007, "The blur effect"); 0 is completely blurred, None is a flat frame.

    This is the share of the change between neighbouring pixels that a further blur removes, beyond one step of 8 bits.
    Real videos at 256 pixels had 0.30 to 0.60; blurred by 2 px (sigma, at SHARP_SIDE) 0.11 to 0.18, by 3 px 0.08 to 0.11.
    """
    image = Image.fromarray(np.ascontiguousarray(y_HW))
    if min(image.size) > SHARP_SIDE:
        scale = SHARP_SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    grey = levels[np.asarray(image)].astype(np.float32)
    if min(grey.shape) <= 2 * BLUR_PIXELS or grey.std() < FLAT_LEVELS:
        return None
    return min(_removed_by_blur(grey), _removed_by_blur(grey.T))


def _removed_by_blur(plane: NDArray[np.float32]) -> float:
    """Along the columns: the share of the change between neighbours that a box blur removes."""
    sums = np.cumsum(np.pad(plane, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    blurred = (sums[BLUR_PIXELS:] - sums[:-BLUR_PIXELS]) / BLUR_PIXELS
    edge = BLUR_PIXELS // 2
    change = np.abs(np.diff(plane[edge : len(plane) - edge], axis=0)).astype(np.float64)
    lost = np.maximum(0, change - STEP_LEVELS - np.abs(np.diff(blurred, axis=0)))
    total = float(change.sum())
    return float(lost.sum()) / total if total else 0.0


def measure(time_T: F64, grey_THW: U8, sharpness: list[float]) -> Measures:
    """From the frames' times (s, ascending), the small grey frames, and the sharpness of some frames."""
    mean_P, max_P = _changes(grey_THW, np.arange(len(grey_THW) - 1), np.arange(1, len(grey_THW)))
    steps = len(time_T) - 1
    span = float(time_T[-1] - time_T[0])
    return Measures(
        started_at=float(time_T[0]),
        seconds=span * (steps + 1) / steps if steps else 0.0,  # the last frame lasts as long as the mean of the others
        motion=_motion(time_T, grey_THW),
        moved=float(np.mean(np.ptp(grey_THW, axis=0) > MOVED_LEVELS)),
        black=float(np.mean(np.mean(grey_THW <= BLACK_LEVEL, axis=(1, 2)) >= BLACK_CELLS)),
        frozen=_frozen(time_T, _still(mean_P, max_P)),
        cuts=_cuts(mean_P),
        sharpness=float(np.median(sharpness)) if sharpness else None,
    )


def _changes(grey_THW: U8, first_P: I64, second_P: I64) -> tuple[F64, I64]:
    """The mean and the greatest change of pairs of frames, in grey levels.

    In chunks: a long video at its full frame rate would not fit into memory as 16-bit differences.
    """
    mean_P, max_P = np.zeros(len(first_P)), np.zeros(len(first_P), dtype=np.int64)
    for start in range(0, len(first_P), CHUNK):
        part = slice(start, start + CHUNK)
        change = np.abs(grey_THW[second_P[part]].astype(np.int16) - grey_THW[first_P[part]].astype(np.int16))
        mean_P[part] = change.mean(axis=(1, 2), dtype=np.float64)
        max_P[part] = change.max(axis=(1, 2))
    return mean_P, max_P


def _motion(time_T: F64, grey_THW: U8) -> float:
    """Mean change over LAG_SECONDS, or from the first to the last frame of a shorter sample."""
    now = np.arange(len(time_T))
    before = np.searchsorted(time_T, time_T - LAG_SECONDS + 1e-6, side="right") - 1
    has_before = before >= 0
    if has_before.any():
        mean_P, _ = _changes(grey_THW, before[has_before], now[has_before])
    else:
        mean_P, _ = _changes(grey_THW, now[:1], now[-1:])
    return float(mean_P.mean())


def _still(mean_P: F64, max_P: I64) -> Bool:
    """Which steps change nothing; a key frame's refresh between two such steps counts too."""
    alike_P = max_P <= STILL_LEVELS
    still_P = alike_P & (mean_P <= STILL_MEAN)
    padded = np.concatenate(([False], still_P, [False]))
    return still_P | (alike_P & (mean_P <= REFRESH_MEAN) & padded[:-2] & padded[2:])


def _frozen(time_T: F64, still_P: Bool) -> float:
    """Share of the time in still runs of STILL_SECONDS or more."""
    length = float(time_T[-1] - time_T[0])
    if length <= 0:
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([0], still_P.view(np.int8), [0]))))
    runs = time_T[edges[1::2]] - time_T[edges[::2]]
    return float(runs[runs >= STILL_SECONDS].sum()) / length


def _cuts(change_P: F64) -> int:
    """Steps that change far more than the steps around them. A flash changes two steps in a row, so it is no cut."""
    if len(change_P) < 2:
        return 0
    padded = np.concatenate(([0.0], change_P, [0.0]))
    around = np.maximum(padded[:-2], padded[2:])
    return int(np.sum((change_P >= CUT_LEVELS) & (change_P >= CUT_TIMES * around)))
