"""PIL's colour operations on uint8 RGB, a batch at once, with exactly PIL's grey levels.

Frames of different sizes are padded to one tensor; padding never changes a pixel inside a clip's own frame.
Statistics (histograms, means) are per frame, as if PIL were called frame by frame. Kornia's operations take float
images without padding, so they are not used here.

N clips, C colours, T frames, H rows, W columns, G the 256 grey levels.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

__all__ = [
    "autocontrast_table",
    "brightness_table",
    "colour",
    "contrast_table",
    "equalise_table",
    "inside_frame",
    "invert_table",
    "look_up",
    "posterise_table",
    "sharpness",
    "solarise_add_table",
    "solarise_table",
]

GREYS = 256
SOLARISE_ADD_BELOW = 128


def inside_frame(size_N2: Int64[Tensor, "N 2"], height: int, width: int) -> Bool[Tensor, "N H W"]:
    """Which pixels of the padded frames are a clip's own."""
    row_H, column_W = (torch.arange(n, device=size_N2.device) for n in (height, width))
    inside_rows, inside_columns = row_H < size_N2[:, :1], column_W < size_N2[:, 1:]
    return inside_rows[:, :, None] & inside_columns[:, None]


def look_up(frames: UInt8[Tensor, "N C T H W"], table: UInt8[Tensor, "N c t G"]) -> UInt8[Tensor, "N C T H W"]:
    """Map every pixel through the table of its clip, or of its colour and frame."""
    num_clips, num_colours, num_frames = frames.shape[:3]
    flat = table.expand(num_clips, num_colours, num_frames, GREYS).reshape(-1)
    first = GREYS * torch.arange(num_clips * num_colours * num_frames, device=frames.device, dtype=torch.int32)
    index = frames.int() + first.view(num_clips, num_colours, num_frames, 1, 1)
    return flat.index_select(0, index.view(-1)).view(frames.shape)


# Tables from one number per clip: N 1 1 G.


def invert_table(level_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N 1 1 G"]:
    return _greys(255 - _ramp(level_N).expand(len(level_N), -1))


def posterise_table(bits_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N 1 1 G"]:
    """Keep the `bits` highest bits."""
    step_N1 = torch.exp2(8 - bits_N).long()[:, None]
    return _greys(_ramp(bits_N) // step_N1 * step_N1)


def solarise_table(threshold_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N 1 1 G"]:
    """Invert greys from the threshold upwards."""
    grey_G = _ramp(threshold_N)
    return _greys(torch.where(grey_G < threshold_N[:, None], grey_G, 255 - grey_G))


def solarise_add_table(added_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N 1 1 G"]:
    """Raise greys below 128."""
    grey_G = _ramp(added_N)
    return _greys(torch.where(grey_G < SOLARISE_ADD_BELOW, grey_G + added_N[:, None], grey_G))


def brightness_table(factor_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N 1 1 G"]:
    """Away from black (factor above 1) or towards it."""
    grey_G = _ramp(factor_N).float()
    return _greys(_blend(torch.zeros_like(grey_G), grey_G, factor_N[:, None]))


# Tables from the statistics of each frame: N C T G.


def contrast_table(
    frames: UInt8[Tensor, "N C T H W"], inside: Bool[Tensor, "N H W"], factor_N: Float32[Tensor, " N"]
) -> UInt8[Tensor, "N 1 T G"]:
    """Away from the frame's mean grey (factor above 1) or towards it."""
    grey_NTHW = torch.where(inside[:, None], _luma(frames), 0)
    mean_NT = grey_NTHW.sum(dim=(-2, -1)).double() / inside.sum(dim=(-2, -1))[:, None]
    mean_NT1 = (mean_NT + 0.5).floor().float()[..., None]
    blended = _blend(mean_NT1, _ramp(factor_N).float(), factor_N[:, None, None])
    return rearrange(_greys(blended), "n t 1 1 g -> n 1 t g")


def autocontrast_table(frames: UInt8[Tensor, "N C T H W"], inside: Bool[Tensor, "N H W"]) -> UInt8[Tensor, "N C T G"]:
    """Each colour's lowest grey becomes 0, its highest 255."""
    inside = inside[:, None, None]
    low_NCT1 = torch.where(inside, frames, 255).amin(dim=(-2, -1)).double()[..., None]
    high_NCT1 = torch.where(inside, frames, 0).amax(dim=(-2, -1)).double()[..., None]
    grey_G = _ramp(low_NCT1).double()
    is_flat = high_NCT1 <= low_NCT1
    # A true division (torch makes `255 / x` a reciprocal), then product and sum as two steps in float64: PIL truncates.
    scale = torch.full_like(low_NCT1, 255) / (high_NCT1 - low_NCT1).clamp_min(1)
    stretched = grey_G * scale + -low_NCT1 * scale
    return torch.where(is_flat, grey_G, stretched.clamp(0, 255).floor()).to(torch.uint8)


def equalise_table(frames: UInt8[Tensor, "N C T H W"], inside: Bool[Tensor, "N H W"]) -> UInt8[Tensor, "N C T G"]:
    """Spread each colour's greys so that they are equally frequent."""
    count_NCTG = _histogram(frames, inside)
    used = count_NCTG > 0
    last_NCT1 = GREYS - 1 - used.flip(-1).to(torch.int8).argmax(dim=-1, keepdim=True)
    total_NCT1 = count_NCTG.sum(dim=-1, keepdim=True)
    step_NCT1 = (total_NCT1 - count_NCTG.gather(-1, last_NCT1)) // 255
    below_NCTG = count_NCTG.cumsum(dim=-1) - count_NCTG
    spread = (step_NCT1 // 2 + below_NCTG) // step_NCT1.clamp_min(1)
    unchanged = (used.sum(dim=-1, keepdim=True) <= 1) | (step_NCT1 == 0)
    return torch.where(unchanged, _ramp(frames), spread.clamp_max(255)).to(torch.uint8)


# Operations that read more than one colour of a pixel.


def colour(frames: UInt8[Tensor, "N C T H W"], factor_N: Float32[Tensor, " N"]) -> UInt8[Tensor, "N C T H W"]:
    """Away from grey (factor above 1) or towards it."""
    grey = _luma(frames)[:, None].float()
    return _blend(grey, frames.float(), factor_N.view(-1, 1, 1, 1, 1)).to(torch.uint8)


def sharpness(
    frames: UInt8[Tensor, "N C T H W"], size_N2: Int64[Tensor, "N 2"], factor_N: Float32[Tensor, " N"]
) -> UInt8[Tensor, "N C T H W"]:
    """Away from the smoothed frame (factor above 1) or towards it; border pixels stay."""
    height, width = frames.shape[-2:]
    image = frames.float()
    three = image[..., :-2, :] + image[..., 1:-1, :] + image[..., 2:, :]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:] + 4 * image[..., 1:-1, 1:-1]
    smooth = image.clone()
    # The middle pixel counts five times. Sums are integers, and a thirteenth of an integer is never halfway.
    smooth[..., 1:-1, 1:-1] = (nine / 13 + 0.5).floor_()
    within = inside_frame(size_N2 - 1, height, width)
    within[:, 0], within[:, :, 0] = False, False
    smooth = torch.where(within[:, None, None], smooth, image)
    return _blend(smooth, image, factor_N.view(-1, 1, 1, 1, 1)).to(torch.uint8)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """PIL's blend: float32, clipped and truncated. lerp would round differently."""
    return (start + factor * (end - start)).clamp_(0, 255).floor_()


def _luma(frames: Tensor) -> Tensor:
    """PIL's grey of RGB, in 16-bit fixed point: N T H W, int32."""
    red, green, blue = (frames[:, c].int() for c in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _histogram(frames: Tensor, inside: Tensor) -> Tensor:
    """How often each grey occurs inside a frame, N C T G; pixels outside get their own bin, which is dropped."""
    outside = ~inside[:, None, None]
    grey = rearrange(torch.where(outside, GREYS, frames.long()), "n c t h w -> n c t (h w)")
    count = torch.zeros((*grey.shape[:-1], GREYS + 1), device=frames.device, dtype=torch.int64)
    one = torch.ones((), device=frames.device, dtype=torch.int64).expand(grey.shape)
    return count.scatter_add_(-1, grey, one)[..., :GREYS]


def _ramp(like: Tensor) -> Tensor:
    return torch.arange(GREYS, device=like.device)


def _greys(table: Tensor) -> Tensor:
    return repeat(table.clamp(0, 255).to(torch.uint8), "n ... g -> n ... 1 1 g")
