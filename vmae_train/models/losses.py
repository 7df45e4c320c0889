"""What a pretraining model has to predict, and the losses of the heads.

B batch, C colours, T frames, H rows, W columns, M tokens asked for, D values of a cube, (p0 p1 p2) c, K classes,
R values of regression.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vmae_train.models.geometry import Geometry
from vmae_train.models.vit import take_tokens

__all__ = ["ValueDistance", "class_losses", "cube_targets", "label_losses", "value_losses", "weighted_mean"]

ValueDistance = Literal["mse", "l1"]


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


def class_losses(logits_BK: Float[Tensor, "B K"], label_B: Int64[Tensor, " B"]) -> Float32[Tensor, " B"]:
    """Cross entropy of one class a clip."""
    return F.cross_entropy(logits_BK.float(), label_B, reduction="none")


def label_losses(logits_BK: Float[Tensor, "B K"], present_BK: Float[Tensor, "B K"]) -> Float32[Tensor, " B"]:
    """Binary cross entropy, the mean over classes; `present_BK` is 1 where a clip shows the class, else 0."""
    return F.binary_cross_entropy_with_logits(logits_BK.float(), present_BK.float(), reduction="none").mean(dim=1)


def value_losses(
    predicted_BR: Float[Tensor, "B R"],
    value_BR: Float[Tensor, "B R"],
    spread_R: Float32[Tensor, " R"],
    distance: ValueDistance = "mse",
) -> Float32[Tensor, " B"]:
    """Squared or absolute error in units of each value's spread, the mean over values."""
    error_BR = (predicted_BR.float() - value_BR.float()) / spread_R
    return (error_BR.square() if distance == "mse" else error_BR.abs()).mean(dim=1)


def weighted_mean(loss_B: Float[Tensor, " B"], weight_B: Float[Tensor, " B"] | None) -> Float32[Tensor, ""]:
    """The mean over samples; all weights 0 give 0, not a division by it."""
    if weight_B is None:
        return loss_B.float().mean()
    return (loss_B.float() * weight_B).sum() / weight_B.sum().clamp_min(torch.finfo(torch.float32).tiny)
