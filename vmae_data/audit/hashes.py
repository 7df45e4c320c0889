"""Small grey frames → perceptual hashes: 64 bits that re-encoding and rescaling hardly change.

Each bit is the sign of one of the 64 lowest frequencies (DCT-II) of the frame at 32 × 32, without the mean. In a mirrored
frame the odd horizontal frequencies change their sign, so its hash is the same with a fixed half of the bits flipped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.audit.measures import GRID

__all__ = ["MIRROR", "Fingerprint", "distance", "fingerprint"]

SIDE = 32
BITS = 64
HASHES_PER_SECOND = 8.0
FLAT_LEVELS = 6.0  # below this contrast (standard deviation) a frame has no hash: black, fog, plain colour
AROUND_SECONDS = 1.5
MOVING_LEVELS = 3.0  # a motion hash counts if the frame differs this much from the mean picture around it
_FREQUENCIES = sorted((u + v, u, v) for u in range(SIDE) for v in range(SIDE))[1 : BITS + 1]
_ROWS, _COLUMNS = ([f[axis] for f in _FREQUENCIES] for axis in (1, 2))

U64 = NDArray[np.uint64]


class Fingerprint(NamedTuple):
    """The hashes of a sample's frames with enough contrast, at most 8 per second (T of them)."""

    time_T: NDArray[np.float32]  # s, in the source
    look_T: U64  # of the frame
    move_T: U64  # of the frame minus the mean picture around it: what moves, without the background
    moves_T: NDArray[np.bool_]  # whether enough moves for `move_T` to count


def _pack(bits_TB: NDArray[np.bool_]) -> U64:
    return np.ascontiguousarray(np.packbits(bits_TB, axis=1)).view(">u8").astype(np.uint64).reshape(-1)


def _cosines() -> NDArray[np.float32]:
    """The DCT-II matrix: a row for each frequency that a hash needs."""
    n = np.arange(SIDE)
    highest = max(*_ROWS, *_COLUMNS)
    return np.cos(np.pi * np.arange(highest + 1)[:, None] * (2 * n + 1) / (2 * SIDE)).astype(np.float32)


_COSINES = _cosines()
MIRROR: np.uint64 = _pack(np.asarray(_COLUMNS)[None, :] % 2 == 1)[0]
"""The bits that differ in a mirrored frame's hash."""


def fingerprint(time_T: NDArray[np.float64], grey_THW: NDArray[np.uint8]) -> Fingerprint:
    """Hashes of a sample's small grey frames; `time_T`: when the source shows them, in seconds."""
    chosen = _thinned(time_T)
    small = grey_THW[chosen].reshape(len(chosen), SIDE, GRID // SIDE, SIDE, GRID // SIDE).mean((2, 4), dtype=np.float32)
    moving = small - _mean_around(time_T[chosen], small)
    has_contrast = small.std(axis=(1, 2)) >= FLAT_LEVELS
    return Fingerprint(
        time_T=time_T[chosen][has_contrast].astype(np.float32),
        look_T=_hash(small)[has_contrast],
        move_T=_hash(moving)[has_contrast],
        moves_T=(moving.std(axis=(1, 2)) >= MOVING_LEVELS)[has_contrast],
    )


def _mean_around(time_T: NDArray[np.float64], small_THW: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean picture around each frame. A mean of the complete sample would differ in a part that was cut from it."""
    sums = np.concatenate(
        (np.zeros_like(small_THW[:1], dtype=np.float64), np.cumsum(small_THW, axis=0, dtype=np.float64))
    )
    first = np.searchsorted(time_T, time_T - AROUND_SECONDS - 1e-6)
    after = np.searchsorted(time_T, time_T + AROUND_SECONDS + 1e-6)
    return np.asarray((sums[after] - sums[first]) / (after - first)[:, None, None], dtype=np.float32)


def _thinned(time_T: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first frame of every eighth of a second: a function of time, not of the stride."""
    tick = np.floor((time_T - time_T[0]) * HASHES_PER_SECOND + 1e-6).astype(np.int64)
    return np.unique(tick, return_index=True)[1].astype(np.int64)


def _hash(small_THW: NDArray[np.float32]) -> U64:
    spectrum = _COSINES @ small_THW @ _COSINES.T
    return _pack(spectrum[:, _ROWS, _COLUMNS] > 0)


def distance(one: U64, other: U64) -> NDArray[np.uint8]:
    """How many bits differ; the arrays are broadcast. Unrelated frames differ in about 32."""
    counted: NDArray[np.uint8] = np.bitwise_count(one ^ other)
    return counted
