"""The motion vectors of decoded frames → how far each cell of the picture moved. No torch.

The encoder chose the vectors to predict pixels, so they are an estimate of the motion.

N vectors, F frames, H rows and W columns of cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import av
import numpy as np
from av.sidedata.motionvectors import MotionVectors
from numpy.typing import NDArray

__all__ = ["CELL", "UNITS", "Vectors", "cells_of", "motion_of_frames", "vectors_of"]

Vectors = NDArray[np.void]

# FFmpeg's AVMotionVector: a block's size, its centre, and where it comes from. PyAV makes this type for every frame
# anew, which takes longer than the rest of the reading.
_VECTOR = np.dtype(
    {
        "names": [
            "source",
            "w",
            "h",
            "src_x",
            "src_y",
            "dst_x",
            "dst_y",
            "flags",
            "motion_x",
            "motion_y",
            "motion_scale",
        ],
        "formats": ["i4", "u1", "u1", "i2", "i2", "i2", "i2", "u8", "i4", "i4", "u2"],
    },
    align=True,
)

CELL = 8  # pixels along one side; H.264 and MPEG-4 have no smaller blocks with vectors of their own here
UNITS = 4  # of one pixel


def vectors_of(frame: av.VideoFrame) -> Vectors | None:
    """A copy of the vectors that the decoder exported. None for a frame without any, as a key frame is."""
    exported = frame.side_data.get("MOTION_VECTORS")
    return np.frombuffer(bytes(exported), _VECTOR) if isinstance(exported, MotionVectors) else None


def cells_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells that cover a frame."""
    return -(-height // CELL), -(-width // CELL)


def motion_of_frames(
    vectors: Sequence[Vectors | None], height: int, width: int, *, top: int = 0, left: int = 0
) -> NDArray[np.uint16]:
    """The length of the vectors in each cell of each frame, (F, H, W), in quarters of a pixel.

    A cell with several vectors has their mean, a cell without one has 0. A frame without vectors has those of the
    next frame that has some, or else of the last one. `top` and `left`: the first pixel that is kept of the frames.
    """
    rows, columns = cells_of(height, width)
    known = {number: own for number, own in enumerate(vectors) if own is not None and len(own)}
    if not known:
        return np.zeros((len(vectors), rows, columns), np.uint16)
    source_F = np.minimum(np.searchsorted([*known], np.arange(len(vectors))), len(known) - 1)
    # As bytes, because NumPy copies records field by field.
    joined = np.concatenate([own.view(np.uint8) for own in known.values()])
    all_N = joined.view(next(iter(known.values())).dtype)
    frame_N = np.repeat(np.arange(len(known)), [len(own) for own in known.values()])
    x_N, y_N, scale_N = (all_N[name].astype(np.float64) for name in ("motion_x", "motion_y", "motion_scale"))
    length_N = np.sqrt(x_N * x_N + y_N * y_N) * UNITS / np.maximum(scale_N, 1)
    wide_N, high_N = all_N["w"].astype(np.int64), all_N["h"].astype(np.int64)
    # A margin around the grid takes what lies outside the frame.
    margin = -(-max(int(wide_N.max()), int(high_N.max())) // CELL)
    padded = (len(known), rows + 2 * margin, columns + 2 * margin)
    row_N = ((all_N["dst_y"] - high_N // 2 - top) // CELL).clip(-margin, rows) + margin
    column_N = ((all_N["dst_x"] - wide_N // 2 - left) // CELL).clip(-margin, columns) + margin
    first_N = (frame_N * padded[1] + row_N) * padded[2] + column_N
    size = math.prod(padded)
    total, count = np.zeros(size), np.zeros(size)
    for down, right in product(range(margin), repeat=2):
        covered_N = np.flatnonzero((down * CELL < high_N) & (right * CELL < wide_N))
        cell_N = first_N[covered_N] + (down * padded[2] + right)
        total += np.bincount(cell_N, length_N[covered_N], size)
        count += np.bincount(cell_N, minlength=size)
    mean = np.minimum(np.rint(total / np.maximum(count, 1)), np.iinfo(np.uint16).max).astype(np.uint16)
    return mean.reshape(padded)[source_F, margin : margin + rows, margin : margin + columns]
