"""From planes of YUV 4:2:0 to RGB crops of the model's size, on the device, a whole batch at once.

Colour first, on the whole frame; then one box a clip, resampled as PIL's bilinear filter does; then a flip.
All chance comes in by the boxes; Kornia only applies them. float32 throughout, whatever autocast says:
bfloat16 coordinates are wrong by up to 0.7 px.

B batch, C colours, T frames, H rows, W columns, S the model's image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64
from kornia.augmentation import AugmentationSequential, GeometricAugmentationBase2D, RandomHorizontalFlip
from kornia.augmentation.container.params import ParamItem
from torch import Tensor, nn

from vmae_data.draws import Purpose
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.draws import ClipDraws, integer

__all__ = [
    "MULTISCALE_OFFSETS",
    "MULTISCALE_PAIRS",
    "Augment",
    "AugmentSpec",
    "Boxes",
    "resample_weights",
    "view_boxes",
]

# Which of the four sizes the crop's height and width take, (height, width): sizes next to each other only.
MULTISCALE_PAIRS = tuple((i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1)

# (rows, columns) in quarters of the free room: corners and centre, edge centres, quarter points.
MULTISCALE_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


class AugmentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a clip is cropped and flipped. `center` resizes the short side to `size`, as evaluation does.

    `size` left out is the model's.
    """

    size: int | None = None
    crop: Literal["multiscale", "random", "center"] = "multiscale"
    flip: bool = False
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"augment.size = {self.size} must be at least 1")
        if min(self.std) <= 0:
            raise ValueError(f"augment.std = {self.std} must be above 0 in every channel")


class Boxes(NamedTuple):
    """One box a clip, in pixels of its frame. `limits_B4`: top, left, bottom, right that resampling may read:
    the box itself where the original crops first, the whole frame where it resizes first.
    """

    top_B: Float32[Tensor, " B"]
    left_B: Float32[Tensor, " B"]
    height_B: Float32[Tensor, " B"]
    width_B: Float32[Tensor, " B"]
    flip_B: Bool[Tensor, " B"]
    limits_B4: Float32[Tensor, "B 4"]


class Augment(nn.Module):
    """The way from planes to clips: `draw` boxes, `forward` to RGB of 0..255, `normalise` to clips."""

    scale_C: Tensor
    shift_C: Tensor

    def __init__(self, spec: AugmentSpec) -> None:
        super().__init__()
        if spec.size is None:
            raise ValueError("augment.size is not resolved; give the model's image size")
        self.spec, self.size = spec, spec.size
        self.sequence = AugmentationSequential(
            SeparableCrop(size=self.size, antialias=spec.antialias),
            RandomHorizontalFlip(p=0.5),  # p only says that it is not always: batch_prob decides
            transformation_matrix_mode="skip",
        )
        scale = torch.tensor([1 / (255 * std) for std in spec.std])
        shift = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        self.register_buffer("scale_C", scale, persistent=False)
        self.register_buffer("shift_C", shift, persistent=False)

    def draw(self, size_B2: Int64[Tensor, "B 2"], draws: ClipDraws, may_flip_B: Bool[Tensor, " B"]) -> Boxes:
        """A box for each clip, all integers, equal on every device."""
        size = self.size
        if self.spec.crop == "multiscale":
            boxes = _multiscale_boxes(size_B2, draws, size=size)
        elif self.spec.crop == "random":
            boxes = _random_boxes(size_B2, draws, size=size)
        else:
            boxes = view_boxes(size_B2, num_crops=1, size=size)
        if self.spec.flip:
            boxes = boxes._replace(flip_B=(integer(draws.bits(Purpose.FLIP), 2) == 1) & may_flip_B)
        return boxes

    @torch.no_grad()
    def forward(self, planes: Planes, boxes: Boxes) -> Float32[Tensor, "BR 3 T S S"]:
        """RGB of 0..255, not rounded and not normalised (targets are made of it).

        R boxes a sample, sample-major, give R clips a sample.
        """
        num_boxes, num_frames = len(boxes.top_B), planes.y_BTHW.shape[1]
        with _true_float32(planes.y_BTHW.device):
            frame = rearrange(planes_to_rgb(planes), "b c t h w -> b (c t) h w")
            if num_boxes != len(frame):
                frame = repeat(frame, "b n h w -> (b r) n h w", r=num_boxes // len(frame))
            crop, flip = (name for name, _ in self.sequence.named_children())
            params = [
                ParamItem(crop, boxes._asdict()),
                ParamItem(flip, {"batch_prob": boxes.flip_B.float()}),
            ]
            image: Tensor = self.sequence(frame, params=params)
            self.sequence.clear_state()
        return rearrange(image, "b (c t) h w -> b c t h w", t=num_frames)

    def normalise(self, rgb_BCTHW: Float32[Tensor, "B 3 T H W"]) -> Float32[Tensor, "B 3 T H W"]:
        """Clips as the model takes them: (rgb / 255 - mean) / std."""
        return rgb_BCTHW * _per_colour(self.scale_C) + _per_colour(self.shift_C)


class SeparableCrop(GeometricAugmentationBase2D):
    """Crop and resize by two batched matrix products; its params are the fields of Boxes."""

    def __init__(self, *, size: int, antialias: bool) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.antialias = antialias

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        return self.identity_matrix(input)  # for boxes and key points, which a clip has none of

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        num_channels, height, width = input.shape[1:]
        top_B, left_B, bottom_B, right_B = params["limits_B4"].unbind(-1)
        rows_BSH = resample_weights(
            params["top_B"], params["height_B"], top_B, bottom_B,
            length=height, size=self.size, antialias=self.antialias,
        )  # fmt: skip
        columns_BSW = resample_weights(
            params["left_B"], params["width_B"], left_B, right_B,
            length=width, size=self.size, antialias=self.antialias,
        )  # fmt: skip
        narrow = rearrange(input, "b n h w -> b (n h) w") @ columns_BSW.mT
        narrow = rearrange(narrow, "b (n h) s -> b n h s", n=num_channels)
        return rows_BSH[:, None] @ narrow


def resample_weights(
    start_B: Float32[Tensor, " B"],
    extent_B: Float32[Tensor, " B"],
    low_B: Float32[Tensor, " B"],
    high_B: Float32[Tensor, " B"],
    *,
    length: int,
    size: int,
    antialias: bool,
) -> Float32[Tensor, "B S N"]:
    """Weights of `length` source pixels for `size` pixels over [start, start + extent), reading [low, high).

    PIL's bilinear filter: a triangle, as wide as the step where the step shrinks the picture (antialias),
    normalised over the pixels that may be read.
    """
    pixel_N = torch.arange(length, device=start_B.device, dtype=torch.float32)
    step_B = extent_B / size
    offset_S = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    centre_BS = start_B[:, None] + offset_S * step_B[:, None]
    distance_BSN = (pixel_N + 0.5 - centre_BS[..., None]).abs()
    if antialias:
        distance_BSN = distance_BSN / step_B.clamp_min(1)[:, None, None]
    readable_BN = (pixel_N >= low_B[:, None]) & (pixel_N < high_B[:, None])
    weights_BSN = (1 - distance_BSN).clamp_min(0) * readable_BN[:, None]
    return weights_BSN / weights_BSN.sum(dim=-1, keepdim=True)


def view_boxes(size_B2: Int64[Tensor, "B 2"], *, num_crops: int, size: int) -> Boxes:
    """Evaluation's crops, sample-major: short side to `size`, then `num_crops` squares along the longer side.

    First and last touch the ends; a single one is central. The kernel reads the whole frame, as when the
    frame is resized first. VideoMAE's dense test.
    """
    height_B, width_B = size_B2.unbind(-1)
    short_B, long_B = torch.minimum(height_B, width_B), torch.maximum(height_B, width_B)
    resized_B = size * long_B // short_B
    crop_R = torch.arange(num_crops, device=size_B2.device)
    spare_B1 = (resized_B - size)[:, None]
    start_BR = spare_B1 // 2 if num_crops == 1 else crop_R * spare_B1 // (num_crops - 1)
    scale_B1 = (long_B / resized_B)[:, None]  # a true division: pixels of the frame in one resized pixel

    along_BR = rearrange(start_BR * scale_B1, "b r -> (b r)")
    extent_B, short_B, is_tall_B, height_B, width_B = (
        repeat(x, "b -> (b r)", r=num_crops)
        for x in (size * scale_B1[:, 0], short_B.float(), height_B >= width_B, height_B, width_B)
    )
    zero_B = torch.zeros_like(along_BR)
    return Boxes(
        top_B=torch.where(is_tall_B, along_BR, zero_B),
        left_B=torch.where(is_tall_B, zero_B, along_BR),
        height_B=torch.where(is_tall_B, extent_B, short_B),
        width_B=torch.where(is_tall_B, short_B, extent_B),
        flip_B=torch.zeros_like(is_tall_B),
        limits_B4=torch.stack((zero_B, zero_B, height_B.float(), width_B.float()), dim=-1),
    )


def _multiscale_boxes(size_B2: Tensor, draws: ClipDraws, *, size: int) -> Boxes:
    """VideoMAE's MultiScaleCrop: one of 10 pairs of sizes, at one of 13 places."""
    short_B1 = size_B2.amin(dim=-1, keepdim=True)
    # int(short * (1, .875, .75, .66)), in integers so that every device agrees
    hundredths = torch.tensor([1000, 875, 750, 660], device=size_B2.device)
    side_B4 = short_B1 * hundredths // 1000
    # The original takes the model's size here even where the frame is a pixel smaller; ours stays inside.
    side_B4 = torch.where((side_B4 - size).abs() < 3, torch.full_like(side_B4, size), side_B4)
    side_B4 = torch.minimum(side_B4, short_B1)
    pairs = torch.tensor(MULTISCALE_PAIRS, device=size_B2.device)
    places = torch.tensor(MULTISCALE_OFFSETS, device=size_B2.device)
    extent_B2 = side_B4.gather(1, pairs[integer(draws.bits(Purpose.CROP_SIZE), len(pairs))])
    start_B2 = places[integer(draws.bits(Purpose.CROP_PLACE), len(places))] * ((size_B2 - extent_B2) // 4)
    return _cropped_first(start_B2, extent_B2)


def _random_boxes(size_B2: Tensor, draws: ClipDraws, *, size: int) -> Boxes:
    # The caller has looked at the sizes; looking again on a GPU would wait for it.
    assert size_B2.device.type != "cpu" or bool((size_B2 >= size).all()), f"a frame is smaller than {size}"
    both = torch.arange(2, device=size_B2.device)
    start_B2 = integer(draws.bits(Purpose.CROP_PLACE, both), size_B2 - size + 1)
    return _cropped_first(start_B2, torch.full_like(start_B2, size))


def _cropped_first(start_B2: Tensor, extent_B2: Tensor) -> Boxes:
    (top_B, left_B), (height_B, width_B) = start_B2.float().unbind(-1), extent_B2.float().unbind(-1)
    limits_B4 = torch.cat((start_B2, start_B2 + extent_B2), dim=-1).float()
    return Boxes(top_B, left_B, height_B, width_B, torch.zeros_like(top_B, dtype=torch.bool), limits_B4)


def _per_colour(x_C: Tensor) -> Tensor:
    return rearrange(x_C, "c -> c 1 1 1")


@contextmanager
def _true_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32: its 10 bits would be a tenth of a grey level off."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
