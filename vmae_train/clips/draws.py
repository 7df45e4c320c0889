"""The torch twin of vmae_data.draws: the same bits, drawn on the device for a whole batch at once.

Torch has no unsigned 64-bit arithmetic to speak of, so the uint64 values are held as the int64 of the same
bits: sums, products and xor are the same; shifts to the right mask the copied sign away; an order of
unsigned values is the order of the signed ones after flipping the top bit.

B batch, I draws of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.draws import Purpose

__all__ = ["ClipDraws", "integer", "permutation", "signed", "splitmix64", "uniform"]

Numbers: TypeAlias = int | np.integer | Sequence[int] | NDArray[Any]

_TOP_BIT = -(2**63)


def signed(value: int) -> int:
    """The int64 with the bits of a uint64, which is how torch takes it."""
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


def integer(bits: Int64[Tensor, "*any"], n: Int64[Tensor, "*any"] | int) -> Int64[Tensor, "*any"]:
    """Integers in [0, n), n below 2^32: ((h >> 32) * n) >> 32."""
    return _shift_right(_shift_right(bits, 32) * n, 32)


def uniform(bits: Int64[Tensor, "*any"]) -> Float32[Tensor, "*any"]:
    """Numbers in [0, 1) from the top 24 bits, which float32 holds exactly."""
    return _shift_right(bits, 40).float() / float(1 << 24)


def permutation(bits: Int64[Tensor, "*any I"]) -> Int64[Tensor, "*any I"]:
    """The stable argsort of the unsigned hashes along the last axis."""
    return torch.argsort(bits ^ _TOP_BIT, dim=-1, stable=True)


class ClipDraws(NamedTuple):
    """All that the draws of a batch of clips hang on, but their purpose.

    `sample_B` holds the bits of the uint64 sample numbers of vmae_data.draws.sample_number.
    """

    seed: int
    epoch_B: Int64[Tensor, " B"]
    sample_B: Int64[Tensor, " B"]
    visit_B: Int64[Tensor, " B"]
    repeat_B: Int64[Tensor, " B"]

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
    ) -> ClipDraws:
        """Draws on a device from numbers or uint64 arrays on the host, broadcast to the shape of `sample`."""
        sample_numbers = np.asarray(sample, dtype=np.uint64)

        def tensor(numbers: Numbers) -> Tensor:
            whole = np.broadcast_to(np.asarray(numbers, dtype=np.uint64), sample_numbers.shape)
            return torch.from_numpy(whole.astype(np.uint64).view(np.int64)).to(device, non_blocking=True)

        return cls(seed, tensor(epoch), tensor(sample_numbers), tensor(visit), tensor(repeat))

    def to(self, device: torch.device | str) -> ClipDraws:
        """The same draws on another device; pinned memory is copied without waiting."""
        epoch_B, sample_B, visit_B, repeat_B = (x.to(device, non_blocking=True) for x in self[1:])
        return ClipDraws(self.seed, epoch_B, sample_B, visit_B, repeat_B)

    def bits(self, purpose: Purpose, i: Int64[Tensor, " I"] | int = 0) -> Int64[Tensor, "B ..."]:
        """64 random bits for each sample: (B,) for one draw `i`, (B, I) for a row of draws."""
        h = splitmix64(self.epoch_B ^ signed(self.seed))
        for x in (self.sample_B, self.visit_B, self.repeat_B):
            h = splitmix64(h ^ x)
        h = splitmix64(h ^ int(purpose))
        return splitmix64(h ^ i) if isinstance(i, int) else splitmix64(h[:, None] ^ i)


def _shift_right(x: Tensor, k: int) -> Tensor:
    return (x >> k) & ((1 << (64 - k)) - 1)
