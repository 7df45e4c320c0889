"""From planes of YUV 4:2:0 to RGB crops of the model's size, on the device, a whole batch at once.

Colour first, on the whole frame; then RandAugment, where it is asked for; then one box a clip, resampled as PIL's
bilinear filter does; then a flip; then, on normalised clips, random erasing. All chance comes in by draws; Kornia only
applies boxes and flips. float32 throughout, whatever autocast says: bfloat16 coordinates are wrong by up to 0.7 px.

B batch, R clips of a sample, C colours, T frames, H rows, W columns, S the model's image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip
from kornia.augmentation.container.params import ParamItem
from torch import Tensor, nn

from vmae_data.rng import Purpose
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.clips.boxes import Boxes, multiscale_boxes, random_boxes, resized_boxes, view_boxes
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.erasing import ErasingSpec, draw_erased, erase
from vmae_train.clips.randaugment import Policy, RandAugmentSpec, draw_policy, rand_augment
from vmae_train.clips.resample import BilinearCrop, SeparableCrop
from vmae_train.clips.rng import ClipRng, integer

__all__ = ["Augment", "AugmentSpec"]


class AugmentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a clip is cropped, flipped and changed.

    `size` left out is the model's. `crop`: `multiscale` and `resized` resize a box to it, `random` takes as many pixels
    as they are, `center` resizes the short side, as evaluation does. `scale` (shares of the frame's area) and
    `ratio` (width to height) belong to `resized`. `randaugment` and `erasing` left out are off.
    """

    size: int | None = None
    crop: Literal["multiscale", "random", "resized", "center"] = "multiscale"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: bool = False
    antialias: bool = True
    randaugment: RandAugmentSpec | None = None
    erasing: ErasingSpec | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"augment.size = {self.size} must be at least 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"augment.scale = {self.scale} must be two shares above 0, the lesser first")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"augment.ratio = {self.ratio} must be two ratios above 0, the lesser first")
        if min(self.std) <= 0:
            raise ValueError(f"augment.std = {self.std} must be above 0 in every channel")


class Augment(nn.Module):
    """The way from planes to clips: `draw` boxes and `draw_policy`, `forward` to RGB of 0..255, `normalise`, `erase`."""

    scale_C: Tensor
    shift_C: Tensor

    def __init__(self, spec: AugmentSpec) -> None:
        super().__init__()
        if spec.size is None:
            raise ValueError("augment.size is not resolved; give the model's image size")
        self.spec, self.size = spec, spec.size
        self.sequence = AugmentationSequential(
            (SeparableCrop if spec.antialias else BilinearCrop)(size=self.size),
            RandomHorizontalFlip(p=0.5),  # p only says that it is not always: batch_prob decides
            transformation_matrix_mode="skip",
        )
        scale = torch.tensor([1 / (255 * std) for std in spec.std])
        shift = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        self.register_buffer("scale_C", scale, persistent=False)
        self.register_buffer("shift_C", shift, persistent=False)

    def draw(self, size_B2: Int64[Tensor, "B 2"], rng: ClipRng, may_flip_B: Bool[Tensor, " B"]) -> Boxes:
        """A box for each clip that there are draws for: several a sample, where they are repeated, sample-major.

        All integers, equal on every device.
        """
        spec, size, repeats = self.spec, self.size, len(rng.sample_B) // len(size_B2)
        if repeats > 1:
            size_B2 = repeat(size_B2, "b x -> (b r) x", r=repeats)
            may_flip_B = repeat(may_flip_B, "b -> (b r)", r=repeats)
        if spec.crop == "multiscale":
            boxes = multiscale_boxes(size_B2, rng, size=size)
        elif spec.crop == "random":
            boxes = random_boxes(size_B2, rng, size=size)
        elif spec.crop == "resized":
            boxes = resized_boxes(size_B2, rng, scale=spec.scale, ratio=spec.ratio)
        else:
            boxes = view_boxes(size_B2, num_crops=1, size=size)
        if spec.flip:
            boxes = boxes._replace(flip_B=(integer(rng.bits(Purpose.FLIP), 2) == 1) & may_flip_B)
        return boxes

    def draw_policy(self, rng: ClipRng) -> Policy | None:
        """The operations of RandAugment for each clip; None where there are none."""
        spec = self.spec.randaugment
        return None if spec is None or spec.prob == 0 else draw_policy(spec, rng.host)

    @torch.no_grad()
    def forward(self, planes: Planes, boxes: Boxes, policy: Policy | None = None) -> Float32[Tensor, "BR 3 T S S"]:
        """RGB of 0..255, not rounded and not normalised (targets are made of it).

        R boxes a sample, sample-major, give R clips a sample.
        """
        repeats, num_frames = len(boxes.top_B) // len(planes.y_BTHW), planes.y_BTHW.shape[1]
        with _true_float32(planes.y_BTHW.device):
            rgb = planes_to_rgb(planes)
            if policy is None:
                rgb = repeat(rgb, "b ... -> (b r) ...", r=repeats) if repeats > 1 else rgb
            else:
                rgb = self._changed(rgb, planes.size_B2, policy, repeats)
            crop, flip = (name for name, _ in self.sequence.named_children())
            params = [
                ParamItem(crop, boxes._asdict()),
                ParamItem(flip, {"batch_prob": boxes.flip_B.float()}),
            ]
            image: Tensor = self.sequence(rearrange(rgb, "b c t h w -> b (c t) h w"), params=params)
            self.sequence.clear_state()
        return rearrange(image, "b (c t) h w -> b c t h w", t=num_frames)

    def _changed(self, rgb_BCTHW: Tensor, size_B2: Tensor, policy: Policy, repeats: int) -> Tensor:
        """RandAugment on whole numbers of grey, as PIL has them."""
        assert self.spec.randaugment is not None
        frames = repeat(rgb_BCTHW.round().to(torch.uint8), "b ... -> (b r) ...", r=repeats)
        size_B2 = repeat(size_B2, "b x -> (b r) x", r=repeats)
        return rand_augment(frames, size_B2, policy, self.spec.randaugment.interpolation).float()

    def normalise(self, rgb_BCTHW: Float32[Tensor, "B 3 T H W"]) -> Float32[Tensor, "B 3 T H W"]:
        """Clips as the model takes them: (rgb / 255 - mean) / std."""
        return rgb_BCTHW * _per_colour(self.scale_C) + _per_colour(self.shift_C)

    def erase(self, clips_BCTHW: Float32[Tensor, "B 3 T S S"], rng: ClipRng) -> Float32[Tensor, "B 3 T S S"]:
        """Random erasing of normalised clips, in place; nothing where it is off."""
        spec = self.spec.erasing
        if spec is None:
            return clips_BCTHW
        return erase(clips_BCTHW, rng, draw_erased(spec, rng.host, clips_BCTHW.shape[-1]))


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
