"""Chance as a pure function: every draw is a hash of what it is for.

h = seed; for x in (epoch, sample, visit, repeat, purpose, i): h = splitmix64(h ^ x)

So a draw depends on no generator's state, no worker, no rank, and any batch can be made again.
splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Draw", "Purpose", "bits", "integer", "permutation", "sample_number", "splitmix64", "uniform"]

U64 = NDArray[np.uint64]


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format of a run: never renumber, only add."""

    SHARDS = 1
    WINDOW = 2
    FRAMES = 3
    CROP_SIZE = 4
    CROP_PLACE = 5
    FLIP = 6
    MASK = 7
    INIT = 8
    DEMO = 9
    WITHIN_SHARD = 10
    PICTURES = 11
    PHASE = 12
    MIX = 13
    RUNNING_CELL = 14
    DROP_PATH = 24
    DROPOUT = 25


def splitmix64(x: ArrayLike) -> U64:
    """One step of splitmix64 on uint64 values, elementwise."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def bits(
    seed: int,
    epoch: ArrayLike,
    sample: ArrayLike,
    visit: ArrayLike,
    repeat: ArrayLike,
    purpose: Purpose,
    i: ArrayLike = 0,
) -> U64:
    """64 random bits for each element of the broadcast arguments."""
    h = np.asarray(seed, dtype=np.uint64)
    for x in (epoch, sample, visit, repeat, int(purpose), i):
        h = splitmix64(h ^ np.asarray(x, dtype=np.uint64))
    return h


def uniform(h: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the top 24 bits, so that float32 holds them exactly."""
    return np.asarray((np.asarray(h, dtype=np.uint64) >> np.uint64(40)).astype(np.float64) / float(1 << 24))


def integer(h: ArrayLike, n: ArrayLike) -> NDArray[np.int64]:
    """Integers in [0, n), n below 2^32: ((h >> 32) * n) >> 32."""
    high = np.asarray(h, dtype=np.uint64) >> np.uint64(32)
    return np.asarray(((high * np.asarray(n, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64))


def permutation(h: U64) -> NDArray[np.int64]:
    """The stable argsort of the hashes along the last axis."""
    return np.argsort(h, axis=-1, kind="stable")


def sample_number(data_id: str, key: str) -> int:
    """The 64 bits that stand for a sample in every draw: from its data set and key, not from its row."""
    return int.from_bytes(hashlib.sha256(f"{data_id}/{key}".encode()).digest()[:8], "big")


class Draw(NamedTuple):
    """Everything that a draw for one visit of one sample hangs on, but its purpose."""

    seed: int
    epoch: int
    sample: int
    visit: int = 0
    repeat: int = 0

    def integer(self, purpose: Purpose, n: int, i: int = 0) -> int:
        """An integer in [0, n)."""
        return int(integer(self._bits(purpose, i), n))

    def uniform(self, purpose: Purpose, i: int = 0) -> float:
        """A number in [0, 1)."""
        return float(uniform(self._bits(purpose, i)))

    def _bits(self, purpose: Purpose, i: int) -> U64:
        return bits(self.seed, self.epoch, self.sample, self.visit, self.repeat, purpose, i)
