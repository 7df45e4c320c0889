"""uint8 frames and matrices → PIL's affine transforms (rotation, shear, translation), a batch at once.

N clips, C colours, T frames, H rows, W columns, K source pixels of one pixel.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

__all__ = ["FILL", "Interpolation", "affine"]

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
FILL = 128
# Weights are multiples of 2^-14 that add up to 1. Every product and sum is then exact in float32 in any order, so a
# pixel is bit-identical in any batch and on any device, although it is truncated (as in PIL), not rounded.
_WEIGHT_UNIT = 2.0**14
_SLACK = 2.0**-9  # the value nearest to PIL among those tried: 0.2 % of the pixels differ by one grey level


def affine(
    frames: UInt8[Tensor, "N C T H W"],
    size_N2: Int64[Tensor, "N 2"],
    matrix_N23: Float64[Tensor, "N 2 3"],
    interpolation: Interpolation,
) -> UInt8[Tensor, "N C T H W"]:
    """Pixel (x, y) is taken from matrix · (x, y, 1) of its own frame; it is grey 128 if that is outside.

    Positions are float64, of pixel corners. Bicubic is PIL's, with a = -1 (torch and Kornia take -0.75).
    """
    num_colours, _, height, width = frames.shape[1:]
    x_W, y_H = (torch.arange(n, device=frames.device, dtype=torch.float64) + 0.5 for n in (width, height))
    across, down, shift = (part[..., None, None] for part in matrix_N23.unbind(-1))
    x_NHW, y_NHW = (across * x_W + down * y_H[:, None] + shift).unbind(1)
    height_N, width_N = (n[:, None, None] for n in size_N2.unbind(-1))
    inside = (x_NHW >= 0) & (x_NHW < width_N) & (y_NHW >= 0) & (y_NHW < height_N)

    column, column_weight = _taps(x_NHW, width_N, interpolation)
    row, row_weight = _taps(y_NHW, height_N, interpolation)
    first_N = height * width * torch.arange(len(frames), device=frames.device).view(-1, 1, 1, 1, 1)
    index = first_N + row[..., None] * width + column[..., None, :]
    weight = rearrange(row_weight[..., None] * column_weight[..., None, :], "n h w i j -> (n h w) (i j)")
    weight = (weight * _WEIGHT_UNIT).round() / _WEIGHT_UNIT
    weight[:, 0] += 1 - weight.sum(dim=-1)

    # Pixels as rows of a table: one kernel then gathers, weights and adds all colours and frames of a pixel.
    table = rearrange(frames, "n c t h w -> (n h w) (c t)").float()
    pixels = F.embedding_bag(
        rearrange(index, "n h w i j -> (n h w) (i j)"),
        table,
        mode="sum",
        per_sample_weights=weight.float(),
    )
    pixels = (pixels + _SLACK).clamp_(0, 255).to(torch.uint8)
    pixels = torch.where(inside.view(-1, 1), pixels, FILL)
    return rearrange(pixels, "(n h w) (c t) -> n c t h w", h=height, w=width, c=num_colours).contiguous()


def _taps(position: Tensor, length: Tensor, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """The source pixels of each pixel along one axis, N H W K, and their weights; a frame's border pixels repeat."""
    centre = position - 0.5
    first = centre.floor()
    d = centre - first
    weight: tuple[Tensor, ...]
    if interpolation == "bilinear":
        weight, before = (1 - d, d), 0
    else:
        d2 = d * d
        d3 = d2 * d
        weight, before = (2 * d2 - d - d3, 1 - 2 * d2 + d3, d + d2 - d3, d3 - d2), 1
    number = torch.arange(len(weight), device=position.device) - before
    index = first.long()[..., None] + number
    return torch.minimum(index.clamp_min(0), length[..., None] - 1), torch.stack(weight, dim=-1)
