"""Targets of pretraining, and the losses of pretraining, classification, multi-label and regression heads.

B batch, C colours, T frames, H rows, W columns, M predicted tokens, D values of a cube, (p0 p1 p2) c, P pixels of a
cube, K classes, R regressed values.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vmae_train.models.geometry import Geometry
from vmae_train.models.vit import take_cubes

__all__ = [
    "ValueDistance",
    "cube_targets",
    "multi_label_losses",
    "reconstruction_loss",
    "regression_losses",
    "soft_cross_entropy",
    "weighted_mean",
]

ValueDistance = Literal["mse", "l1"]


@torch.no_grad()
def cube_targets(
    clips_BCTHW: Float[Tensor, "B 3 T H W"],
    token_BM: Int64[Tensor, "B M"],
    geometry: Geometry,
    *,
    scale_C: Float32[Tensor, " C"] | None = None,
    shift_C: Float32[Tensor, " C"] | None = None,
    white: int = 1,
) -> Float32[Tensor, "B M D"]:
    """Normalised pixels of the given cubes: (x - mean) / (sqrt(var) + 1e-6), for each cube and each colour separately.

    x is RGB in 0..1: clips × scale + shift, divided by `white`. The variance is the unbiased one. As in VideoMAE's
    pretraining loop; MAE-ST normalises the colours together.
    """
    size = {"tubelet_size": geometry.tubelet_size, "patch_size": geometry.patch_size}
    # A new tensor of the predicted cubes alone: what follows can change it in place.
    x_BMCP = take_cubes(clips_BCTHW, token_BM, **size).float()
    if scale_C is not None and shift_C is not None:
        x_BMCP.mul_(scale_C[:, None]).add_(shift_C[:, None])
    if white != 1:
        x_BMCP.div_(white)
    variance, mean = torch.var_mean(x_BMCP, dim=-1, unbiased=True, keepdim=True)
    x_BMCP.sub_(mean).div_(variance.sqrt() + 1e-6)
    return rearrange(x_BMCP, "b m c p -> b m (p c)")


def reconstruction_loss(
    predictions_BMD: Float[Tensor, "B M D"],
    targets_BMD: Float[Tensor, "B M D"],
    weight_B: Float[Tensor, " B"] | None = None,
) -> Float32[Tensor, ""]:
    """Mean squared error over the predicted cubes, then the (weighted) mean over samples."""
    error = F.mse_loss(predictions_BMD.float(), targets_BMD, reduction="none")
    # A sum and a division of the sums: the backward pass of `mean` would write a tensor of this size.
    return weighted_mean(error.sum(dim=(1, 2)) / predictions_BMD[0].numel(), weight_B)


def soft_cross_entropy(logits_BK: Float[Tensor, "B K"], target_BK: Float32[Tensor, "B K"]) -> Float32[Tensor, " B"]:
    """Cross entropy of each clip with a distribution over the classes."""
    return -(target_BK * F.log_softmax(logits_BK.float(), dim=-1)).sum(dim=-1)


def multi_label_losses(logits_BK: Float[Tensor, "B K"], present_BK: Float[Tensor, "B K"]) -> Float32[Tensor, " B"]:
    """Binary cross entropy, the mean over classes; `present_BK` is 1 if the clip shows the class, else 0."""
    return F.binary_cross_entropy_with_logits(logits_BK.float(), present_BK.float(), reduction="none").mean(dim=1)


def regression_losses(
    predicted_BR: Float[Tensor, "B R"],
    value_BR: Float[Tensor, "B R"],
    spread_R: Float32[Tensor, " R"],
    distance: ValueDistance = "mse",
) -> Float32[Tensor, " B"]:
    """Squared or absolute error in units of each value's spread, the mean over values."""
    error_BR = (predicted_BR.float() - value_BR.float()) / spread_R
    return (error_BR.square() if distance == "mse" else error_BR.abs()).mean(dim=1)


def weighted_mean(loss_B: Float[Tensor, " B"], weight_B: Float[Tensor, " B"] | None) -> Float32[Tensor, ""]:
    """The mean over samples; if all weights are 0, it is 0."""
    if weight_B is None:
        return loss_B.float().mean()
    return (loss_B.float() * weight_B).sum() / weight_B.sum().clamp_min(torch.finfo(torch.float32).tiny)
