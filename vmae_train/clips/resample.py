"""A box of a frame → a square of the model's size, a batch at once.

B batch, N colours and frames, S the model's image size, H and W pixels of a frame's column and row.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float32
from kornia.augmentation import GeometricAugmentationBase2D
from kornia.geometry import remap
from torch import Tensor

from vmae_train.clips.boxes import Boxes

__all__ = ["BoxCrop", "resample", "resample_weights"]


class BoxCrop(GeometricAugmentationBase2D):
    """Crop and resize as a Kornia augmentation; its params are the fields of Boxes. It does not flip."""

    def __init__(self, *, size: int, antialias: bool) -> None:
        super().__init__(p=1.0)
        self.size, self.antialias = size, antialias

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        return self.identity_matrix(input)  # for bounding boxes and key points, which a clip does not have

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        boxes = Boxes(*(params[name] for name in Boxes._fields))
        return resample(input, boxes, size=self.size, antialias=self.antialias)


def resample(
    image_BNHW: Float32[Tensor, "B N H W"], boxes: Boxes, *, size: int, antialias: bool, flip: bool = False
) -> Float32[Tensor, "B N S S"]:
    """Crop and resize. `flip`: also mirror the clips of `boxes.flip_B`.

    With `antialias`: PIL's antialiased bilinear filter, as two batched matrix products.
    Without: plain bilinear interpolation of four pixels, equal to `torch.nn.functional.interpolate` of the crop.
    Positions stop at the limits, which warp_affine cannot do. Float32 positions cost up to 0.02 grey levels.
    """
    return (_separable if antialias else _bilinear)(image_BNHW, boxes, size, flip)


def _separable(image_BNHW: Tensor, boxes: Boxes, size: int, flip: bool) -> Tensor:
    num_images, height, width = image_BNHW.shape[1:]
    top_B, left_B, bottom_B, right_B = boxes.limits_B4.unbind(-1)
    rows_BSH = resample_weights(boxes.top_B, boxes.height_B, top_B, bottom_B, length=height, size=size)
    columns_BSW = resample_weights(boxes.left_B, boxes.width_B, left_B, right_B, length=width, size=size)
    if flip:
        columns_BSW = torch.where(boxes.flip_B[:, None, None], columns_BSW.flip(1), columns_BSW)
    narrow = rearrange(image_BNHW, "b n h w -> b (n h) w") @ columns_BSW.mT
    return rows_BSH[:, None] @ rearrange(narrow, "b (n h) s -> b n h s", n=num_images)


def _bilinear(image_BNHW: Tensor, boxes: Boxes, size: int, flip: bool) -> Tensor:
    top_B, left_B, bottom_B, right_B = boxes.limits_B4.unbind(-1)
    row_BS = _positions(boxes.top_B, boxes.height_B, top_B, bottom_B, image_BNHW.shape[-2], size)
    column_BS = _positions(boxes.left_B, boxes.width_B, left_B, right_B, image_BNHW.shape[-1], size)
    if flip:
        column_BS = torch.where(boxes.flip_B[:, None], column_BS.flip(1), column_BS)
    return remap(
        image_BNHW,
        repeat(column_BS, "b w -> b h w", h=size),
        repeat(row_BS, "b h -> b h w", w=size),
        padding_mode="border",
        align_corners=False,
        normalized_coordinates=True,
    )


def _positions(start_B: Tensor, extent_B: Tensor, low_B: Tensor, high_B: Tensor, length: int, size: int) -> Tensor:
    """The centre of each pixel, from -1 to 1 between the edges of the padded frame."""
    offset_S = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    centre_BS = start_B[:, None] + offset_S * (extent_B / size)[:, None]
    centre_BS = torch.maximum(centre_BS, low_B[:, None] + 0.5)
    return torch.minimum(centre_BS, high_B[:, None] - 0.5) * (2 / length) - 1


def resample_weights(
    start_B: Float32[Tensor, " B"],
    extent_B: Float32[Tensor, " B"],
    low_B: Float32[Tensor, " B"],
    high_B: Float32[Tensor, " B"],
    *,
    length: int | torch.SymInt,
    size: int,
    antialias: bool = True,
) -> Float32[Tensor, "B S N"]:
    """Weights of `length` source pixels for `size` pixels over [start, start + extent), reading [low, high).

    PIL's bilinear filter: a triangle, as wide as the step if the picture shrinks, normalised over the readable pixels.
    Without `antialias`, the triangle always spans two pixels.
    """
    pixel_N = torch.arange(length, device=start_B.device, dtype=torch.float32)  # type: ignore[arg-type]
    step_B = extent_B / size
    offset_S = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    centre_BS = start_B[:, None] + offset_S * step_B[:, None]
    distance_BSN = (pixel_N + 0.5 - centre_BS[..., None]).abs()
    if antialias:
        distance_BSN = distance_BSN / step_B.clamp_min(1)[:, None, None]
    readable_BN = (pixel_N >= low_B[:, None]) & (pixel_N < high_B[:, None])
    weights_BSN = (1 - distance_BSN).clamp_min(0) * readable_BN[:, None]
    return weights_BSN / weights_BSN.sum(dim=-1, keepdim=True)
