"""The fixed position codes, and how they are stretched to clips of another size or length.

N tokens, E channels, S slices, R rows and columns of a slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32
from torch import Tensor

from vmae_train.models.geometry import Geometry

__all__ = ["position_code"]


def position_code(geometry: Geometry, dim: int) -> Float32[Tensor, "N E"]:
    """The fixed code of every token, one for the encoder's and one for the decoder's dim."""
    slices, side = geometry.position_grid or (geometry.slices, geometry.side)
    code_NE = _flat(slices, side, dim) if geometry.position == "sinusoid-1d" else _by_axis(slices, side, dim)
    if geometry.position_grid is None:
        return code_NE
    return _stretched(code_NE, geometry.position_grid, geometry)


def _flat(slices: int, side: int, dim: int) -> Tensor:
    """VideoMAE's: one running number for all tokens of a clip."""
    return _sinusoid(torch.arange(slices * side**2), dim).float()


def _by_axis(slices: int, side: int, dim: int) -> Tensor:
    """Each axis gets a third of the channels, an even number; channels left over stay zero."""
    third = dim // 3 // 2 * 2
    axes = torch.meshgrid(torch.arange(slices), torch.arange(side), torch.arange(side), indexing="ij")
    code = torch.cat([_sinusoid(axis.flatten(), third) for axis in axes], dim=-1)
    return F.pad(code, (0, dim - 3 * third)).float()


def _sinusoid(number_N: Tensor, dim: int) -> Tensor:
    """Sine on even, cosine on odd channels of number / 10000^(2 (channel // 2) / dim)."""
    pair = torch.arange(dim, dtype=torch.float64) // 2
    angle = number_N[:, None] / 10000 ** (2 * pair / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


def _stretched(code_NE: Tensor, grid: tuple[int, int], geometry: Geometry) -> Tensor:
    """Bicubic in space, then linear in time, pixel centres aligned, as VideoMAEv2's finetuning does."""
    slices, side = grid
    code_SERR = rearrange(code_NE, "(s h w) e -> s e h w", s=slices, h=side)
    if side != geometry.side:
        wanted = (geometry.side, geometry.side)
        code_SERR = F.interpolate(code_SERR, size=wanted, mode="bicubic", align_corners=False)
    if slices != geometry.slices:
        along_time = rearrange(code_SERR, "s e h w -> (h w) e s")
        along_time = F.interpolate(along_time, size=geometry.slices, mode="linear", align_corners=False)
        code_SERR = rearrange(along_time, "(h w) e s -> s e h w", h=geometry.side)
    return rearrange(code_SERR, "s e h w -> (s h w) e").contiguous()
