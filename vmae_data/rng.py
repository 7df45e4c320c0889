"""Seed, epoch, sample, purpose → random numbers: a counter-based generator without state.

h = seed; for x in (epoch, sample, visit, repeat, purpose, i): h = splitmix64(h ^ x)

No number depends on a worker, a rank or an earlier number, so any batch can be made again.
splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from enum import IntEnum
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Purpose",
    "Rng",
    "bits",
    "fine_uniform",
    "integer",
    "normal",
    "permutation",
    "sample_number",
    "splitmix64",
    "uniform",
]

U64 = NDArray[np.uint64]
_STANDARD_NORMAL = NormalDist()


class Purpose(IntEnum):
    """What a random number is for. Runs depend on the numbers: never change one, only add."""

    SHARDS = 1
    WINDOW = 2
    FRAMES = 3
    CROP_SIZE = 4
    CROP_POSITION = 5
    FLIP = 6
    MASK = 7
    INIT = 8
    DEMO = 9
    WITHIN_SHARD = 10
    PICTURES = 11
    PHASE = 12
    MIXTURE = 13
    RUNNING_CELL = 14
    DROP_PATH = 15
    DROPOUT = 16
    RANDAUGMENT_OP = 20
    RANDAUGMENT_APPLY = 21
    RANDAUGMENT_MAGNITUDE = 22
    RANDAUGMENT_SIGN = 23
    CROP_AREA = 26
    CROP_RATIO = 27
    ERASE = 28
    ERASE_AREA = 29
    ERASE_RATIO = 30
    ERASE_POSITION = 31
    ERASE_NOISE = 32
    MIXUP_APPLY = 33
    MIXUP_SWITCH = 34
    MIXUP_LAMBDA = 35
    CUTMIX_POSITION = 36
    FEW_SHOT = 37
    GAP = 38
    DECODED = 39


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
    """Numbers in [0, 1) from the top 24 bits, which float32 represents exactly."""
    return np.asarray((np.asarray(h, dtype=np.uint64) >> np.uint64(40)).astype(np.float64) / float(1 << 24))


def fine_uniform(h: ArrayLike) -> NDArray[np.float64]:
    """Numbers in (0, 1), both excluded, from the top 52 bits: for logarithms and inverse distribution functions."""
    high = np.asarray(h, dtype=np.uint64) >> np.uint64(12)
    return np.asarray((high.astype(np.float64) + 0.5) / float(1 << 52))


def normal(h: ArrayLike) -> NDArray[np.float64]:
    """One standard normal number per hash, by the inverse distribution function (Wichura's AS 241)."""
    u = fine_uniform(h)
    values = np.fromiter((_STANDARD_NORMAL.inv_cdf(float(x)) for x in u.flat), np.float64, u.size)
    return values.reshape(u.shape)


def integer(h: ArrayLike, n: ArrayLike) -> NDArray[np.int64]:
    """Integers in [0, n), n below 2^32: ((h >> 32) * n) >> 32."""
    high = np.asarray(h, dtype=np.uint64) >> np.uint64(32)
    return np.asarray(((high * np.asarray(n, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64))


def permutation(h: U64) -> NDArray[np.int64]:
    """The stable argsort of the hashes along the last axis."""
    return np.argsort(h, axis=-1, kind="stable")


def sample_number(data_id: str, key: str) -> int:
    """The 64 bits that identify a sample in every random number: from its data set and key, not its row."""
    return int.from_bytes(hashlib.sha256(f"{data_id}/{key}".encode()).digest()[:8], "big")


class Rng(NamedTuple):
    """The random numbers of one visit to one sample, by purpose and counter."""

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

    def beta(self, purpose: Purpose, a: float, b: float) -> float:
        """A number of the Beta distribution, in [0, 1]: x / (x + y) for two gamma numbers. `a` and `b` are above 0.

        The two gamma numbers take turns in the counter i.
        """
        log_x, log_y = self._log_gamma(purpose, a, 0), self._log_gamma(purpose, b, 1)
        return 1 / (1 + math.exp(min(log_y - log_x, 700.0)))

    def _log_gamma(self, purpose: Purpose, shape: float, first: int) -> float:
        """The logarithm of a gamma number. Marsaglia, Tsang, "A simple method for generating gamma variables", 2000.

        Rejection sampling with three numbers per attempt accepts more than 19 in 20. A shape below 1 is raised by one,
        and the result is scaled by u^(1 / shape). Logarithms keep a small shape from underflow.
        """
        raised = shape + 1 if shape < 1 else shape
        d = raised - 1 / 3
        c = 1 / math.sqrt(9 * d)
        for attempt in itertools.count():
            i = 3 * (2 * attempt + first)
            z, u, scale = (self._bits(purpose, i + k) for k in range(3))
            x = float(normal(z))
            v = (1 + c * x) ** 3
            if v > 0 and math.log(float(fine_uniform(u))) < x * x / 2 + d - d * v + d * math.log(v):
                log_x = math.log(d * v)
                return log_x if shape >= 1 else log_x + math.log(float(fine_uniform(scale))) / shape
        raise AssertionError("unreachable")

    def _bits(self, purpose: Purpose, i: int) -> U64:
        return bits(self.seed, self.epoch, self.sample, self.visit, self.repeat, purpose, i)
