"""The torch twin of vmae_data.rng: the same bits, computed on the device for a batch at once.

Torch has hardly any unsigned 64-bit arithmetic, so uint64 values are held as the int64 with the same bits. Sums,
products and xor are the same. Right shifts mask the copied sign bits. Unsigned order is the signed order after flipping
the top bit.

B batch, I random numbers of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vmae_data import rng as numpy_rng
from vmae_data.rng import Purpose, Rng

__all__ = ["ClipRng", "HostRng", "integer", "permutation", "signed", "splitmix64", "uniform"]

Numbers: TypeAlias = int | np.integer | Sequence[int] | NDArray[Any]

_TOP_BIT = -(2**63)


def signed(value: int) -> int:
    """The int64 with the bits of a uint64, as torch takes it."""
    return value - 2**64 if value >= 2**63 else value


_GAMMA = signed(0x9E3779B97F4A7C15)
_MIX_1 = signed(0xBF58476D1CE4E5B9)
_MIX_2 = signed(0x94D049BB133111EB)


def splitmix64(x: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """One step of splitmix64, elementwise, on the bits of uint64 values."""
    z = x + _GAMMA
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(x: Tensor, k: int) -> Tensor:
    return (x >> k) & ((1 << (64 - k)) - 1)


def integer(bits: Int64[Tensor, "*any"], n: Int64[Tensor, "*any"] | int) -> Int64[Tensor, "*any"]:
    """Integers in [0, n), n below 2^32: ((h >> 32) * n) >> 32."""
    return _shift_right(_shift_right(bits, 32) * n, 32)


def uniform(bits: Int64[Tensor, "*any"]) -> Float32[Tensor, "*any"]:
    """Numbers in [0, 1) from the top 24 bits, which float32 holds exactly."""
    return _shift_right(bits, 40).float() / float(1 << 24)


def permutation(bits: Int64[Tensor, "*any I"]) -> Int64[Tensor, "*any I"]:
    """The stable argsort of the unsigned hashes along the last axis."""
    return torch.argsort(bits ^ _TOP_BIT, dim=-1, stable=True)


class HostRng(NamedTuple):
    """The counters of ClipRng on the host: for float64 numbers, and for choices that decide which work is done."""

    seed: int
    epoch_B: NDArray[np.uint64]
    sample_B: NDArray[np.uint64]
    visit_B: NDArray[np.uint64]
    repeat_B: NDArray[np.uint64]

    def bits(self, purpose: Purpose, i: int | NDArray[Any] = 0) -> NDArray[np.uint64]:
        """64 random bits for each sample: (B,) for one counter `i`, (B, I) for a row of counters."""
        numbers = self[1:] if isinstance(i, int) else [x[:, None] for x in self[1:]]
        epoch, sample, visit, repeat = numbers
        return numpy_rng.bits(self.seed, epoch, sample, visit, repeat, purpose, i)

    def select(self, index_N: NDArray[np.int64]) -> HostRng:
        """The rng of some clips of the batch."""
        return HostRng(self.seed, *(x[index_N] for x in self[1:]))

    def clip_rng(self, index: int) -> Rng:
        """The rng of one clip of the batch."""
        epoch, sample, visit, repeat = (int(x[index]) for x in self[1:])
        return Rng(self.seed, epoch, sample, visit, repeat)


class ClipRng(NamedTuple):
    """A counter-based rng for a batch of clips: every number is a hash of these fields, a purpose and a counter.

    `sample_B` holds the bits of the uint64 sample numbers of vmae_data.rng.sample_number. `host` holds the same numbers
    for use without waiting for the device.
    """

    seed: int
    epoch_B: Int64[Tensor, " B"]
    sample_B: Int64[Tensor, " B"]
    visit_B: Int64[Tensor, " B"]
    repeat_B: Int64[Tensor, " B"]
    host: HostRng

    @classmethod
    def on(
        cls,
        device: torch.device | str,
        *,
        seed: int,
        epoch: Numbers,
        sample: Numbers,
        visit: Numbers = 0,
        repeat: Numbers = 0,
    ) -> ClipRng:
        """An rng on a device from numbers or uint64 arrays on the host, broadcast to the shape of `sample`."""
        numbers = (np.asarray(x, dtype=np.uint64) for x in (epoch, sample, visit, repeat))
        host = HostRng(seed, *(np.broadcast_to(x, np.shape(sample)).copy() for x in numbers))
        return cls.of(host, device)

    @classmethod
    def of(cls, host: HostRng, device: torch.device | str) -> ClipRng:
        """The same rng on a device."""
        tensors = (torch.from_numpy(x.view(np.int64)).to(device, non_blocking=True) for x in host[1:])
        epoch_B, sample_B, visit_B, repeat_B = tensors
        return cls(host.seed, epoch_B, sample_B, visit_B, repeat_B, host)

    def repeated(self, repeats: int) -> ClipRng:
        """The rng of `repeats` clips per sample, sample-major; their `repeat` numbers differ."""
        if repeats == 1:
            return self
        host = HostRng(self.seed, *(np.repeat(x, repeats) for x in self.host[1:]))
        host = host._replace(repeat_B=np.tile(np.arange(repeats, dtype=np.uint64), len(self.sample_B)))
        return ClipRng.of(host, self.sample_B.device)

    def select(self, index_N: NDArray[np.int64]) -> ClipRng:
        """The rng of some clips of the batch."""
        return ClipRng.of(self.host.select(index_N), self.sample_B.device)

    def bits(self, purpose: Purpose, i: Int64[Tensor, "*#B I"] | int = 0) -> Int64[Tensor, "B ..."]:
        """64 random bits for each sample: (B,) for one counter `i`, (B, I) for a row of counters, shared or per sample."""
        h = splitmix64(self.epoch_B ^ signed(self.seed))
        for x in (self.sample_B, self.visit_B, self.repeat_B):
            h = splitmix64(h ^ x)
        h = splitmix64(h ^ int(purpose))
        return splitmix64(h ^ i) if isinstance(i, int) else splitmix64(h[:, None] ^ i)
