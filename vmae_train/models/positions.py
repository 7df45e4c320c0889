"""A geometry → its fixed sinusoidal position embedding, interpolated if the weights were trained on another grid.

N tokens, E channels, S slices, R rows and columns of a slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32
from torch import Tensor

from vmae_train.models.geometry import Geometry

__all__ = ["position_embedding"]


def position_embedding(geometry: Geometry, dim: int) -> Float32[Tensor, "N E"]:
    """The fixed embedding of every token, for the encoder's or the decoder's dim.

    `sinusoid-1d` is VideoMAE's: one running number for all tokens of a clip.
    """
    slices, side = geometry.position_grid or (geometry.slices, geometry.side)
    if geometry.position == "sinusoid-1d":
        embedding_NE = _sinusoid(torch.arange(slices * side**2), dim).float()
    else:
        embedding_NE = _three_axes(slices, side, dim)
    return embedding_NE if geometry.position_grid is None else _interpolated(embedding_NE, slices, side, geometry)


def _three_axes(slices: int, side: int, dim: int) -> Tensor:
    """Each axis gets a third of the channels, an even number; the remaining channels are zero."""
    third = dim // 3 // 2 * 2
    axes = torch.meshgrid(torch.arange(slices), torch.arange(side), torch.arange(side), indexing="ij")
    embedding = torch.cat([_sinusoid(axis.flatten(), third) for axis in axes], dim=-1)
    return F.pad(embedding, (0, dim - 3 * third)).float()


def _sinusoid(number_N: Tensor, dim: int) -> Tensor:
    """Sine on even, cosine on odd channels of number / 10000^(2 (channel // 2) / dim)."""
    pair = torch.arange(dim, dtype=torch.float64) // 2
    angle = number_N[:, None] / 10000 ** (2 * pair / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


def _interpolated(embedding_NE: Tensor, slices: int, side: int, geometry: Geometry) -> Tensor:
    """Bicubic in space, then linear in time, pixel centres aligned, as in VideoMAEv2's finetuning."""
    grid_SERR = rearrange(embedding_NE, "(s h w) e -> s e h w", s=slices, h=side)
    if side != geometry.side:
        size = (geometry.side, geometry.side)
        grid_SERR = F.interpolate(grid_SERR, size=size, mode="bicubic", align_corners=False)
    if slices != geometry.slices:
        along_time = rearrange(grid_SERR, "s e h w -> (h w) e s")
        along_time = F.interpolate(along_time, size=geometry.slices, mode="linear", align_corners=False)
        grid_SERR = rearrange(along_time, "(h w) e s -> s e h w", h=geometry.side)
    return rearrange(grid_SERR, "s e h w -> (s h w) e").contiguous()
