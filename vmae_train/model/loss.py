"""What a pretraining model has to predict.

B batch, C colours, T frames, H rows, W columns, M tokens asked for, D values of a cube, (p0 p1 p2) c.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float32, Int64
from torch import Tensor

from vmae_train.model.vit import Geometry, take_tokens

__all__ = ["cube_targets"]


@torch.no_grad()
def cube_targets(
    rgb01_BCTHW: Float32[Tensor, "B 3 T H W"], token_BM: Int64[Tensor, "B M"], geometry: Geometry
) -> Float32[Tensor, "B M D"]:
    """Pixels of the named cubes, each cube and each colour for itself: (x - mean) / (sqrt(var) + 1e-6).

    RGB in 0..1; the variance is the unbiased one. As in VideoMAE's pretraining loop (MAE-ST normalises the
    colours together: not the same).
    """
    cubes = rearrange(
        rgb01_BCTHW,
        "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2 c)",
        p0=geometry.tubelet_size,
        p1=geometry.patch_size,
        p2=geometry.patch_size,
    )
    cubes = rearrange(take_tokens(cubes, token_BM), "b m (p c) -> b m p c", c=3)
    variance, mean = torch.var_mean(cubes, dim=2, unbiased=True, keepdim=True)
    return rearrange((cubes - mean) / (variance.sqrt() + 1e-6), "b m p c -> b m (p c)")
