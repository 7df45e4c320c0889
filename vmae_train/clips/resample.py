"""A box of a frame → a square of the model's size, a batch at once, as a Kornia augmentation fed by `params`.

B batch, S the model's image size, N pixels of a frame's row or column.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float32
from kornia.augmentation import GeometricAugmentationBase2D
from kornia.geometry import remap
from torch import Tensor

__all__ = ["BoxCrop", "resample_weights"]


class BoxCrop(GeometricAugmentationBase2D):
    """Crop and resize; its params are the fields of Boxes.

    With `antialias`: PIL's antialiased bilinear filter, as two batched matrix products.
    Without: plain bilinear interpolation of four pixels, equal to `torch.nn.functional.interpolate` of the crop.
    Positions stop at the limits, which warp_affine cannot do. Float32 positions cost up to 0.02 grey levels.
    """

    def __init__(self, *, size: int, antialias: bool) -> None:
        super().__init__(p=1.0)
        self.size, self.antialias = size, antialias

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        return self.identity_matrix(input)  # for bounding boxes and key points, which a clip does not have

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        return self._separable(input, params) if self.antialias else self._bilinear(input, params)

    def _separable(self, input: Tensor, params: dict[str, Tensor]) -> Tensor:
        num_channels, height, width = input.shape[1:]
        top_B, left_B, bottom_B, right_B = params["limits_B4"].unbind(-1)
        rows_BSH = resample_weights(params["top_B"], params["height_B"], top_B, bottom_B, length=height, size=self.size)
        columns_BSW = resample_weights(
            params["left_B"], params["width_B"], left_B, right_B, length=width, size=self.size
        )
        narrow = rearrange(input, "b n h w -> b (n h) w") @ columns_BSW.mT
        narrow = rearrange(narrow, "b (n h) s -> b n h s", n=num_channels)
        return rows_BSH[:, None] @ narrow

    def _bilinear(self, input: Tensor, params: dict[str, Tensor]) -> Tensor:
        top_B, left_B, bottom_B, right_B = params["limits_B4"].unbind(-1)
        row_BS = self._positions(params["top_B"], params["height_B"], top_B, bottom_B, input.shape[-2])
        column_BS = self._positions(params["left_B"], params["width_B"], left_B, right_B, input.shape[-1])
        return remap(
            input,
            repeat(column_BS, "b w -> b h w", h=self.size),
            repeat(row_BS, "b h -> b h w", w=self.size),
            padding_mode="border",
            align_corners=False,
            normalized_coordinates=True,
        )

    def _positions(self, start_B: Tensor, extent_B: Tensor, low_B: Tensor, high_B: Tensor, length: int) -> Tensor:
        """The centre of each pixel, from -1 to 1 between the edges of the padded frame."""
        offset_S = torch.arange(self.size, device=start_B.device, dtype=torch.float32) + 0.5
        centre_BS = start_B[:, None] + offset_S * (extent_B / self.size)[:, None]
        centre_BS = torch.maximum(centre_BS, low_B[:, None] + 0.5)
        return torch.minimum(centre_BS, high_B[:, None] - 0.5) * (2 / length) - 1


def resample_weights(
    start_B: Float32[Tensor, " B"],
    extent_B: Float32[Tensor, " B"],
    low_B: Float32[Tensor, " B"],
    high_B: Float32[Tensor, " B"],
    *,
    length: int,
    size: int,
) -> Float32[Tensor, "B S N"]:
    """Weights of `length` source pixels for `size` pixels over [start, start + extent), reading [low, high).

    PIL's bilinear filter: a triangle, as wide as the step if the picture shrinks, normalised over the readable pixels.
    """
    pixel_N = torch.arange(length, device=start_B.device, dtype=torch.float32)
    step_B = extent_B / size
    offset_S = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    centre_BS = start_B[:, None] + offset_S * step_B[:, None]
    distance_BSN = (pixel_N + 0.5 - centre_BS[..., None]).abs()
    distance_BSN = distance_BSN / step_B.clamp_min(1)[:, None, None]
    readable_BN = (pixel_N >= low_B[:, None]) & (pixel_N < high_B[:, None])
    weights_BSN = (1 - distance_BSN).clamp_min(0) * readable_BN[:, None]
    return weights_BSN / weights_BSN.sum(dim=-1, keepdim=True)
