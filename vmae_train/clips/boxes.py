"""Frame sizes and an rng → one crop box per clip, the same for all its frames.

All numbers are integers or come from float64, so every device gives the same boxes.

B batch, R crops of a sample, A attempts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from vmae_data.rng import Purpose, uniform
from vmae_train.clips.rng import ClipRng, integer

__all__ = [
    "MULTISCALE_OFFSETS",
    "MULTISCALE_PAIRS",
    "Boxes",
    "multiscale_boxes",
    "random_boxes",
    "region_of",
    "resized_boxes",
    "view_boxes",
]

# Which of the four sizes the crop's height and width take, (height, width): adjacent sizes only.
MULTISCALE_PAIRS = tuple((i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1)

# (rows, columns) in quarters of the free space: corners and centre, edge centres, quarter points.
MULTISCALE_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)

# Attempts at a box of random area and ratio, before the centre of the frame is taken.
RESIZED_ATTEMPTS = 10

REGION_MARGIN = 2


class Boxes(NamedTuple):
    """One box per clip, in pixels of its frame.

    `limits_B4`: top, left, bottom, right of the pixels that resampling may read: the box itself in training, the full
    frame in an evaluation.
    """

    top_B: Float32[Tensor, " B"]
    left_B: Float32[Tensor, " B"]
    height_B: Float32[Tensor, " B"]
    width_B: Float32[Tensor, " B"]
    flip_B: Bool[Tensor, " B"]
    limits_B4: Float32[Tensor, "B 4"]

    def moved(self, start_B2: Int64[Tensor, "B 2"]) -> Boxes:
        """The same boxes in a region of the frame whose first row and column are given."""
        top_B, left_B = start_B2.float().unbind(-1)
        limits_B4 = self.limits_B4 - torch.cat((start_B2, start_B2), dim=-1)
        return self._replace(top_B=self.top_B - top_B, left_B=self.left_B - left_B, limits_B4=limits_B4)


def region_of(boxes: Boxes, *, size: int) -> tuple[Int64[Tensor, "B 2"], Int64[Tensor, "B 2"]]:
    """The first row and column of each frame that the boxes need, both even, and those after the last.

    They are what the filter reads and `REGION_MARGIN` pixels more, as the chroma of a pixel comes from its neighbours.
    They may lie outside the frame.
    """
    start_B2 = torch.stack((boxes.top_B, boxes.left_B), dim=-1)
    extent_B2 = torch.stack((boxes.height_B, boxes.width_B), dim=-1)
    support_B2 = (extent_B2 / size).clamp_min(1)
    low_B2 = torch.maximum(start_B2 - support_B2, boxes.limits_B4[:, :2])
    high_B2 = torch.minimum(start_B2 + extent_B2 + support_B2, boxes.limits_B4[:, 2:])
    first_B2 = (low_B2 - REGION_MARGIN).div(2, rounding_mode="floor").long() * 2
    return first_B2, high_B2.ceil().long() + REGION_MARGIN


def multiscale_boxes(size_B2: Tensor, rng: ClipRng, *, size: int) -> Boxes:
    """VideoMAE's MultiScaleCrop: one of 10 pairs of sizes, at one of 13 offsets."""
    short_B1 = size_B2.amin(dim=-1, keepdim=True)
    # int(short * (1, .875, .75, .66)), in integers so that every device agrees
    hundredths = torch.tensor([1000, 875, 750, 660], device=size_B2.device)
    side_B4 = short_B1 * hundredths // 1000
    # The original takes the model's size here even if the frame is a pixel smaller; ours stays inside.
    side_B4 = torch.where((side_B4 - size).abs() < 3, torch.full_like(side_B4, size), side_B4)
    side_B4 = torch.minimum(side_B4, short_B1)
    pairs = torch.tensor(MULTISCALE_PAIRS, device=size_B2.device)
    offsets = torch.tensor(MULTISCALE_OFFSETS, device=size_B2.device)
    extent_B2 = side_B4.gather(1, pairs[integer(rng.bits(Purpose.CROP_SIZE), len(pairs))])
    start_B2 = offsets[integer(rng.bits(Purpose.CROP_POSITION), len(offsets))] * ((size_B2 - extent_B2) // 4)
    return _cropped_first(start_B2, extent_B2)


def random_boxes(size_B2: Tensor, rng: ClipRng, *, size: int) -> Boxes:
    # The caller has checked the sizes; a check on a GPU would wait for it.
    assert size_B2.device.type != "cpu" or bool((size_B2 >= size).all()), f"a frame is smaller than {size}"
    both = torch.arange(2, device=size_B2.device)
    start_B2 = integer(rng.bits(Purpose.CROP_POSITION, both), size_B2 - size + 1)
    return _cropped_first(start_B2, torch.full_like(start_B2, size))


def resized_boxes(
    size_B2: Int64[Tensor, "B 2"], rng: ClipRng, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """RandomResizedCrop: a share of the frame's area and a ratio of width to height, uniform in its logarithm.

    The first of ten attempts that fits inside the frame; else the largest central box within the bounds of the ratio,
    as in the original. Fractions come in float64 from the host. The device only computes products, square roots and
    roundings, which IEEE 754 fixes to the bit.
    """
    attempt_A = np.arange(RESIZED_ATTEMPTS)
    area = scale[0] + (scale[1] - scale[0]) * uniform(rng.host.bits(Purpose.CROP_AREA, attempt_A))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * uniform(rng.host.bits(Purpose.CROP_RATIO, attempt_A)))
    sides = torch.from_numpy(np.stack((area / aspect, area * aspect), axis=-1))
    sides_BA2 = sides.to(size_B2.device, non_blocking=True)

    extent_BA2 = (sides_BA2 * size_B2.prod(dim=-1)[:, None, None]).sqrt().round().long()
    fits_BA = ((extent_BA2 > 0) & (extent_BA2 <= size_B2[:, None])).all(dim=-1)
    first_B = fits_BA.to(torch.int8).argmax(dim=-1)  # of equals the first
    extent_B2 = extent_BA2.take_along_dim(first_B[:, None, None], dim=1)[:, 0]
    extent_B2 = torch.where(fits_BA.any(dim=-1, keepdim=True), extent_B2, _widest(size_B2, ratio))
    free_B2 = size_B2 - extent_B2
    both = torch.arange(2, device=size_B2.device)
    start_B2 = integer(rng.bits(Purpose.CROP_POSITION, both), free_B2 + 1)
    return _cropped_first(torch.where(fits_BA.any(dim=-1, keepdim=True), start_B2, free_B2 // 2), extent_B2)


def _widest(size_B2: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest box of a frame whose ratio of width to height is within the bounds."""
    height_B, width_B = size_B2.double().unbind(-1)
    lowered_B = torch.minimum(height_B, (width_B / ratio[0]).round())
    narrowed_B = torch.minimum(width_B, (height_B * ratio[1]).round())
    return torch.stack((lowered_B, narrowed_B), dim=-1).long()


def view_boxes(size_B2: Int64[Tensor, "B 2"], *, num_crops: int, size: int) -> Boxes:
    """Evaluation's crops, sample-major: short side to `size`, then `num_crops` squares along the longer side.

    The first and the last touch the ends; a single one is central, and half a pixel is rounded to even. The kernel
    reads the full frame, as if the frame were resized first. VideoMAE's dense test, and its CenterCrop.
    """
    height_B, width_B = size_B2.unbind(-1)
    short_B, long_B = torch.minimum(height_B, width_B), torch.maximum(height_B, width_B)
    resized_B = size * long_B // short_B
    crop_R = torch.arange(num_crops, device=size_B2.device)
    spare_B1 = (resized_B - size)[:, None]
    start_BR = (spare_B1 / 2).round().long() if num_crops == 1 else crop_R * spare_B1 // (num_crops - 1)
    scale_B1 = (long_B / resized_B)[:, None]  # a true division: pixels of the frame in one resized pixel

    along_BR = rearrange(start_BR * scale_B1, "b r -> (b r)")
    extent_B, short_B, is_tall_B, height_B, width_B = (
        repeat(x, "b -> (b r)", r=num_crops)
        for x in (size * scale_B1[:, 0], short_B.float(), height_B >= width_B, height_B, width_B)
    )
    zero_B = torch.zeros_like(along_BR)
    return Boxes(
        top_B=torch.where(is_tall_B, along_BR, zero_B),
        left_B=torch.where(is_tall_B, zero_B, along_BR),
        height_B=torch.where(is_tall_B, extent_B, short_B),
        width_B=torch.where(is_tall_B, short_B, extent_B),
        flip_B=torch.zeros_like(is_tall_B),
        limits_B4=torch.stack((zero_B, zero_B, height_B.float(), width_B.float()), dim=-1),
    )


def _cropped_first(start_B2: Tensor, extent_B2: Tensor) -> Boxes:
    (top_B, left_B), (height_B, width_B) = start_B2.float().unbind(-1), extent_B2.float().unbind(-1)
    limits_B4 = torch.cat((start_B2, start_B2 + extent_B2), dim=-1).float()
    return Boxes(top_B, left_B, height_B, width_B, torch.zeros_like(top_B, dtype=torch.bool), limits_B4)
