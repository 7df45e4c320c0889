"""Normalised clips → random erasing: noise in one box per clip, the same box in all frames, other noise in each.

Zhong et al., "Random erasing data augmentation", 2020, as in VideoMAE's finetuning (`pixel` mode, count 1).

B clips, N erased clips, C colours, T frames, H rows, W columns, A attempts.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.rng import Purpose, integer, uniform
from vmae_train.clips.rng import ClipRng, HostRng

__all__ = ["ErasedBoxes", "ErasingSpec", "erase", "sample_erasing"]

ATTEMPTS = 100
# A 64-bit hash makes the three colours of a pixel, 16 bits each.
_NOISE_BITS = 16


class ErasingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A clip is erased with probability `prob`. The box has a share of the frame's area, and a ratio of height to width."""

    prob: float = 0.25  # of a clip
    area: tuple[float, float] = (0.02, 1 / 3)  # shares of the frame's area
    ratio: tuple[float, float] = (0.3, 1 / 0.3)  # height to width

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"augment.erasing.prob = {self.prob}: expected 0 to 1")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"augment.erasing.area = {self.area}: expected two shares above 0 in ascending order")
        if not 0 < self.ratio[0] <= self.ratio[1] <= 1000:
            raise ValueError(f"augment.erasing.ratio = {self.ratio}: expected two ratios above 0 in ascending order")


class ErasedBoxes(NamedTuple):
    """On the host: which clips of a batch are erased (`index_N`), and their boxes."""

    index_N: NDArray[np.int64]
    top_N: NDArray[np.int64]
    left_N: NDArray[np.int64]
    height_N: NDArray[np.int64]
    width_N: NDArray[np.int64]


def sample_erasing(spec: ErasingSpec, rng: HostRng, size: int) -> ErasedBoxes:
    """The first of a hundred attempts that is smaller than the frame; a clip without one is not erased."""
    is_erased_B = uniform(rng.bits(Purpose.ERASE)) < spec.prob
    index_N = np.flatnonzero(is_erased_B)
    erased_rng = rng.select(index_N)
    attempt_A = np.arange(ATTEMPTS)
    area_NA = _between(spec.area, erased_rng, Purpose.ERASE_AREA, attempt_A) * size * size
    log_ratio = (math.log(spec.ratio[0]), math.log(spec.ratio[1]))
    ratio_NA = np.exp(_between(log_ratio, erased_rng, Purpose.ERASE_RATIO, attempt_A))
    height_NA = np.rint(np.sqrt(area_NA * ratio_NA)).astype(np.int64)
    width_NA = np.rint(np.sqrt(area_NA / ratio_NA)).astype(np.int64)
    fits_NA = (height_NA > 0) & (height_NA < size) & (width_NA > 0) & (width_NA < size)
    first_N1 = fits_NA.argmax(axis=1)[:, None]
    height_N, width_N = (np.take_along_axis(x, first_N1, axis=1)[:, 0] for x in (height_NA, width_NA))
    start_bits = erased_rng.bits(Purpose.ERASE_POSITION, np.arange(2))
    top_N = integer(start_bits[:, 0], size - np.minimum(height_N, size) + 1)
    left_N = integer(start_bits[:, 1], size - np.minimum(width_N, size) + 1)
    fits_N = fits_NA.any(axis=1)
    return ErasedBoxes(*(x[fits_N] for x in (index_N, top_N, left_N, height_N, width_N)))


def _between(bounds: tuple[float, float], rng: HostRng, purpose: Purpose, i: NDArray[np.int64]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform(rng.bits(purpose, i))


@torch.no_grad()
def erase(clips: Float32[Tensor, "B 3 T S S"], rng: ClipRng, boxes: ErasedBoxes) -> Float32[Tensor, "B 3 T S S"]:
    """Standard normal noise in the boxes of normalised clips. `clips` are changed in place and returned.

    The noise of a pixel depends on its position only. All boxes are filled as if they had the largest size: pixels
    beyond a box's own edge are written to that edge again, with the same number.
    """
    if len(boxes.index_N) == 0:
        return clips
    num_frames, size, device = clips.shape[2], clips.shape[-1], clips.device
    index_N = _to(boxes.index_N, device)
    row_NH = _to(_pixels(boxes.top_N, boxes.height_N), device)
    column_NW = _to(_pixels(boxes.left_N, boxes.width_N), device)
    frame_T = torch.arange(num_frames, device=device)

    frame, row, column = frame_T[:, None, None], row_NH[:, None, :, None], column_NW[:, None, None, :]
    number = rearrange((frame * size + row) * size + column, "n t h w -> n (t h w)")
    bits = rng.select(boxes.index_N).bits(Purpose.ERASE_NOISE, number)
    bits = bits.view(len(index_N), num_frames, row_NH.shape[1], column_NW.shape[1])
    table = _noise_table(device)
    for c in range(3):
        shifted = (bits >> (64 - _NOISE_BITS * (c + 1))) & (2**_NOISE_BITS - 1)
        clips[index_N[:, None, None, None], c, frame, row, column] = table[shifted]
    return clips


def _pixels(start_N: NDArray[np.int64], extent_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixels of each box along one axis, as many as the largest box has; a box's last pixel repeats."""
    step = np.arange(int(extent_N.max()))
    return start_N[:, None] + np.minimum(step, extent_N[:, None] - 1)


_noise_tables: dict[torch.device, Tensor] = {}


def _noise_table(device: torch.device) -> Float32[Tensor, " G"]:
    """Standard normal numbers at the middles of 2^16 equal shares: a lookup is equal on every device."""
    if device in _noise_tables:
        return _noise_tables[device]
    count = 2**_NOISE_BITS
    inverse = NormalDist().inv_cdf
    table = torch.tensor([inverse((k + 0.5) / count) for k in range(count)], dtype=torch.float32, device=device)
    if type(table) is Tensor:  # a fake tensor has no values: no later step may get it
        _noise_tables[device] = table
    return table


def _to(values: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
