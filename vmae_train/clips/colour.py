"""Decoded planes of YUV 4:2:0 → RGB, on the device, a batch at once.

B batch, C colours, T frames, H rows, W columns, V views of a clip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

__all__ = ["Planes", "per_colour", "planes_of_region", "planes_of_views", "planes_to_rgb"]


class Planes(NamedTuple):
    """Decoded frames, padded to a common size. `size_B2`: height and width of each sample's own frame, even.

    `matrix_B`: 0 BT.601, 1 BT.709. `full_range_B`: 0..255 instead of 16..235 and 16..240.
    """

    y_BTHW: UInt8[Tensor, "B T H W"]
    u_BTHW: UInt8[Tensor, "B T H2 W2"]
    v_BTHW: UInt8[Tensor, "B T H2 W2"]
    size_B2: Int64[Tensor, "B 2"]
    matrix_B: Int64[Tensor, " B"]
    full_range_B: Bool[Tensor, " B"]


def planes_of_views(planes: Planes, index_BVT: Int64[Tensor, "B V T"] | None) -> Planes:
    """Gather the frames of all views of a sample, view after view along the time axis.

    None: the decoded frames are the clip.
    """
    if index_BVT is None:
        return planes
    index_BF = rearrange(index_BVT, "b v t -> b (v t)")[..., None, None]

    def pick(plane: Tensor) -> Tensor:
        return plane.take_along_dim(index_BF, dim=1)

    return planes._replace(y_BTHW=pick(planes.y_BTHW), u_BTHW=pick(planes.u_BTHW), v_BTHW=pick(planes.v_BTHW))


def planes_of_region(planes: Planes, start_B2: Int64[Tensor, "B 2"], height: int, width: int) -> Planes:
    """A part of each sample's frames: `height` and `width` pixels from `start_B2`. All are even, or those of the frames.

    RGB made of it equals that of the full frame, except along the edges that cut through the frame: there 1 row and
    1 column differ.
    """
    if (height, width) == planes.y_BTHW.shape[2:]:
        return planes
    size_B2 = planes.size_B2 - start_B2
    if len(start_B2) == 1 and start_B2.device.type == "cpu":  # a view
        top, left = start_B2[0].tolist()

        def part(plane: Tensor, step: int) -> Tensor:
            rows = slice(top // step, -(-(top + height) // step))
            return plane[:, :, rows, left // step : -(-(left + width) // step)]
    else:
        sample_B = torch.arange(len(start_B2), device=start_B2.device)[:, None, None, None]
        frame_T = torch.arange(planes.y_BTHW.shape[1], device=start_B2.device)[:, None, None]

        def part(plane: Tensor, step: int) -> Tensor:
            row_BH, column_BW = (
                (start_B // step)[:, None] + torch.arange(-(-extent // step), device=start_B2.device)
                for start_B, extent in zip(start_B2.unbind(-1), (height, width), strict=True)
            )
            return plane[sample_B, frame_T, row_BH[:, None, :, None], column_BW[:, None, None, :]]

    return planes._replace(
        y_BTHW=part(planes.y_BTHW, 1), u_BTHW=part(planes.u_BTHW, 2), v_BTHW=part(planes.v_BTHW, 2), size_B2=size_B2
    )


def planes_to_rgb(planes: Planes) -> Float32[Tensor, "B 3 T H W"]:
    """RGB of 0..255, clamped, not rounded. Pixels outside a sample's own frame are arbitrary.

    Chroma is upsampled bilinearly, sited left: on even columns, between the rows (MPEG-2, and ffmpeg's assumption for
    streams that do not state it).
    """
    height, width = planes.y_BTHW.shape[2:]
    chroma = torch.cat((planes.u_BTHW, planes.v_BTHW), dim=1).float() - 128
    chroma = _double_rows(_double_columns(chroma, planes.size_B2[:, 1]), planes.size_B2[:, 0])
    u_BTHW, v_BTHW = rearrange(chroma[..., :height, :width], "b (two t) h w -> two b t h w", two=2)

    full = planes.full_range_B
    y_scale = torch.where(full, 1.0, 255 / 219)[:, None, None, None]
    y_BTHW = planes.y_BTHW * y_scale - torch.where(full, 0.0, 16 * 255 / 219)[:, None, None, None]
    # BT.601 and BT.709: the weights of red and blue in the luma; green has the rest.
    is_709 = planes.matrix_B == 1
    red, blue = torch.where(is_709, 0.2126, 0.299), torch.where(is_709, 0.0722, 0.114)
    green = 1 - red - blue
    c_scale = torch.where(full, 2.0, 2 * 255 / 224)
    v_to_red, u_to_blue = c_scale * (1 - red), c_scale * (1 - blue)
    v_to_green, u_to_green = -v_to_red * red / green, -u_to_blue * blue / green

    rgb = repeat(y_BTHW, "b t h w -> b c t h w", c=3).contiguous()
    rgb[:, 0].addcmul_(v_BTHW, v_to_red[:, None, None, None])
    rgb[:, 1].addcmul_(v_BTHW, v_to_green[:, None, None, None])
    rgb[:, 1].addcmul_(u_BTHW, u_to_green[:, None, None, None])
    rgb[:, 2].addcmul_(u_BTHW, u_to_blue[:, None, None, None])
    return rgb.clamp_(0, 255)


def _double_columns(chroma: Tensor, width_B: Tensor) -> Tensor:
    """Even columns equal chroma, odd ones are halfway to the next; a sample's last column repeats."""
    column = torch.arange(chroma.shape[-1], device=chroma.device)
    is_last = (column >= (width_B[:, None] + 1) // 2 - 1)[:, None, None]
    following = torch.where(is_last, chroma, torch.cat((chroma[..., 1:], chroma[..., -1:]), dim=-1))
    return rearrange([chroma, torch.lerp(chroma, following, 0.5)], "two b t h w -> b t h (w two)")


def _double_rows(chroma: Tensor, height_B: Tensor) -> Tensor:
    """Two rows per row of chroma, a quarter before and a quarter after it; a sample's first and last row repeat."""
    row = torch.arange(chroma.shape[-2], device=chroma.device)
    is_last = (row >= (height_B[:, None] + 1) // 2 - 1)[:, None, :, None]
    before = torch.cat((chroma[..., :1, :], chroma[..., :-1, :]), dim=-2)
    following = torch.where(is_last, chroma, torch.cat((chroma[..., 1:, :], chroma[..., -1:, :]), dim=-2))
    pair = [torch.lerp(chroma, before, 0.25), torch.lerp(chroma, following, 0.25)]
    return rearrange(pair, "two b t h w -> b t (h two) w")


def per_colour(x_C: Tensor) -> Tensor:
    """One number per colour, in a shape that broadcasts over C T H W."""
    return rearrange(x_C, "c -> c 1 1 1")
