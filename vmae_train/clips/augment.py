"""Planes of YUV 4:2:0 → augmented clips of the model's size, on the device, a batch at once.

In this order: colour conversion and RandAugment of full frames; one box per clip, resampled with PIL's bilinear filter;
a flip; random erasing of normalised clips. Kornia only applies boxes and flips; all randomness comes from the rng.
With `convert = "box"` a few clips at a time are made, and only the pixels that their boxes need are converted.
float32 throughout, even under autocast: bfloat16 coordinates are wrong by up to 0.7 px.

B batch, R clips of a sample, C colours, T frames, H rows, W columns, S the model's image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import msgspec
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int64
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip
from kornia.augmentation.container.params import ParamItem
from torch import Tensor, nn

from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.clips.boxes import (
    REGION_MARGIN,
    Boxes,
    multiscale_boxes,
    random_boxes,
    region_of,
    resized_boxes,
    view_boxes,
)
from vmae_train.clips.colour import Planes, per_colour, planes_of_region, planes_to_rgb
from vmae_train.clips.erasing import ErasingSpec, erase, sample_erasing
from vmae_train.clips.randaugment import Policy, RandAugmentSpec, rand_augment, sample_policy
from vmae_train.clips.resample import BoxCrop, resample
from vmae_train.clips.rng import ClipRng, integer

__all__ = ["Augment", "AugmentSpec"]

CLIPS_AT_ONCE = 8  # of `convert = "box"` on a GPU: enough work for a kernel, and a tenth of a usual micro-batch


class AugmentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a clip is cropped, flipped and augmented.

    `size` None: the model's. `crop`: `multiscale` and `resized` resize a box to `size`, `random` crops without
    resizing, `center` resizes the short side as evaluation does. `scale` (shares of the frame's area) and `ratio`
    (width to height) belong to `resized`. `randaugment` and `erasing` None: off.
    `convert`: `frame` makes RGB of the full frames of a batch, `box` of what the boxes need, a few clips at a time.
    """

    size: int | None = None  # pixels of the crop; none: the model's
    crop: Literal["multiscale", "random", "resized", "center"] = "multiscale"  # how the box is chosen
    scale: tuple[float, float] = (0.08, 1.0)  # shares of the frame's area, for `resized`
    ratio: tuple[float, float] = (0.75, 1.3333)  # width to height, for `resized`
    flip: bool = False  # mirror half of the clips, if the data set may flip
    antialias: bool = True  # PIL's antialiased filter; false: plain bilinear
    convert: Literal["frame", "box"] = "frame"  # what becomes RGB: full frames or boxes
    randaugment: RandAugmentSpec | None = None
    erasing: ErasingSpec | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the channels, subtracted
    std: tuple[float, float, float] = IMAGENET_STD  # of the channels, divided by

    def __post_init__(self) -> None:
        check_bounds(self, size=(1, 1 << 16))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"augment.scale = {self.scale}: expected two shares above 0 in ascending order")
        if not 0 < self.ratio[0] <= self.ratio[1] <= 1000:
            raise ValueError(f"augment.ratio = {self.ratio}: expected two ratios above 0 in ascending order")
        if not 1e-6 <= min(self.std) <= max(self.std) <= 1000 or max(map(abs, self.mean)) > 1000:
            raise ValueError(
                f"augment.mean = {self.mean}, std = {self.std}: expected numbers to 1000, std above 0, from 1e-6"
            )


class Augment(nn.Module):
    """Planes → clips. Call `sample_boxes`, `sample_policy`, `forward` (RGB of 0..255), `normalise`, `erase`."""

    scale_C: Tensor
    shift_C: Tensor

    def __init__(self, spec: AugmentSpec) -> None:
        super().__init__()
        if spec.size is None:
            raise ValueError("augment.size is not resolved. Give the model's image size")
        self.spec, self.size = spec, spec.size
        self.reads_boxes = True  # where the host can without waiting: on a CPU
        self._crop_region: Callable[..., Tensor] = self._crops_of_region
        self.sequence = AugmentationSequential(
            BoxCrop(size=self.size, antialias=spec.antialias),
            RandomHorizontalFlip(p=0.5),  # any p below 1: batch_prob decides
            transformation_matrix_mode="skip",
        )
        scale = torch.tensor([1 / (255 * std) for std in spec.std])
        shift = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        self.register_buffer("scale_C", scale, persistent=False)
        self.register_buffer("shift_C", shift, persistent=False)

    def compile_boxes(self, backend: str = "inductor") -> None:
        """With `convert = "box"`, make clips by one compiled function. RandAugment is not compiled."""
        self._crop_region = torch.compile(self._crops_of_region, fullgraph=True, dynamic=False, backend=backend)

    def sample_boxes(self, size_B2: Int64[Tensor, "B 2"], rng: ClipRng, may_flip_B: Bool[Tensor, " B"]) -> Boxes:
        """A box for each clip of the rng: several per sample if they are repeated, sample-major.

        All are integers, equal on every device.
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

    def sample_policy(self, rng: ClipRng) -> Policy | None:
        """The operations of RandAugment for each clip; None if it is off."""
        spec = self.spec.randaugment
        return None if spec is None or spec.prob == 0 else sample_policy(spec, rng.host)

    @torch.no_grad()
    def forward(self, planes: Planes, boxes: Boxes, policy: Policy | None = None) -> Float32[Tensor, "BR 3 T S S"]:
        """RGB of 0..255, neither rounded nor normalised (pretraining targets need it so).

        R boxes per sample, sample-major, give R clips per sample. With `convert = "box"` on a GPU they are those of
        `sample_boxes`: the size of the regions is decided by the kind of crop.
        """
        with _true_float32(planes.y_BTHW.device):
            return (self._from_boxes if self.spec.convert == "box" else self._from_frames)(planes, boxes, policy)

    def _from_frames(self, planes: Planes, boxes: Boxes, policy: Policy | None) -> Tensor:
        repeats, num_frames = len(boxes.top_B) // len(planes.y_BTHW), planes.y_BTHW.shape[1]
        rgb = planes_to_rgb(planes)
        if policy is not None:
            rgb = rgb.round().to(torch.uint8)  # integer grey levels, as in PIL
        if repeats > 1:
            rgb = repeat(rgb, "b ... -> (b r) ...", r=repeats)
        if policy is not None:
            rgb = self._rand_augment(rgb, repeat(planes.size_B2, "b x -> (b r) x", r=repeats), policy)
        crop, flip = (name for name, _ in self.sequence.named_children())
        params = [ParamItem(crop, boxes._asdict()), ParamItem(flip, {"batch_prob": boxes.flip_B.float()})]
        image: Tensor = self.sequence(rearrange(rgb, "b c t h w -> b (c t) h w"), params=params)
        self.sequence.clear_state()
        return rearrange(image, "b (c t) h w -> b c t h w", t=num_frames)

    def _from_boxes(self, planes: Planes, boxes: Boxes, policy: Policy | None) -> Tensor:
        num_samples, num_frames = planes.y_BTHW.shape[:2]
        repeats = len(boxes.top_B) // num_samples
        clips = torch.empty(
            (len(boxes.top_B), 3, num_frames, self.size, self.size), device=planes.y_BTHW.device, dtype=torch.float32
        )
        at_once = 1 if self._can_read(boxes) else CLIPS_AT_ONCE
        for first in range(0, num_samples, at_once):
            last = min(first + at_once, num_samples)
            some = Planes(*(x[first:last] for x in planes))
            for number in range(repeats):
                chosen = slice(first * repeats + number, last * repeats, repeats)
                own = policy and Policy(policy.op_BL[chosen], policy.level_BL[chosen], policy.sign_BL[chosen])
                clips[chosen] = self._crops(some, Boxes(*(x[chosen] for x in boxes)), own)
        return clips

    def _crops(self, planes: Planes, boxes: Boxes, policy: Policy | None) -> Tensor:
        if policy is None:
            start_B2, (height, width) = self._region(boxes, planes.y_BTHW.shape[2:])
            return self._crop_region(planes, boxes, start_B2, height, width)
        rgb = self._rand_augment(planes_to_rgb(planes).round().to(torch.uint8), planes.size_B2, policy)
        return self._resample(rgb, boxes)

    def _crops_of_region(self, planes: Planes, boxes: Boxes, start_B2: Tensor, height: int, width: int) -> Tensor:
        rgb = planes_to_rgb(planes_of_region(planes, start_B2, height, width))
        return self._resample(rgb, boxes.moved(start_B2))

    def _resample(self, rgb: Tensor, boxes: Boxes) -> Tensor:
        images = rearrange(rgb, "b c t h w -> b (c t) h w")
        images = resample(images, boxes, size=self.size, antialias=self.spec.antialias, flip=True)
        return rearrange(images, "b (c t) h w -> b c t h w", c=3)

    def _region(self, boxes: Boxes, padded: Sequence[int]) -> tuple[Int64[Tensor, "B 2"], list[int]]:
        """Where each frame's region starts, and the height and width of all regions."""
        start_B2, end_B2 = region_of(boxes, size=self.size)
        if self._can_read(boxes):
            extents = (end_B2 - start_B2).amax(dim=0).tolist()
        elif self.spec.crop in ("multiscale", "random"):
            side = self.size if self.spec.crop == "random" else min(padded)
            extents = [side + 2 * REGION_MARGIN + 1] * 2  # 1: the start is even
        else:
            extents = list(padded)
        extents = [min(extent + extent % 2, length) for extent, length in zip(extents, padded, strict=True)]
        starts = [
            start_B.clamp(0, (length - extent) // 2 * 2)
            for start_B, length, extent in zip(start_B2.unbind(-1), padded, extents, strict=True)
        ]
        return torch.stack(starts, dim=-1), extents

    def _can_read(self, boxes: Boxes) -> bool:
        return self.reads_boxes and boxes.top_B.device.type == "cpu"

    def _rand_augment(self, rgb: Tensor, size_B2: Tensor, policy: Policy) -> Tensor:
        assert self.spec.randaugment is not None
        return rand_augment(rgb, size_B2, policy, self.spec.randaugment.interpolation).float()

    def normalise(self, rgb_BCTHW: Float32[Tensor, "B 3 T H W"]) -> Float32[Tensor, "B 3 T H W"]:
        """Clips as the model takes them: (rgb / 255 - mean) / std."""
        return (rgb_BCTHW * per_colour(self.scale_C)).add_(per_colour(self.shift_C))

    def erase(self, clips_BCTHW: Float32[Tensor, "B 3 T S S"], rng: ClipRng) -> Float32[Tensor, "B 3 T S S"]:
        """Random erasing of normalised clips, in place; nothing if it is off."""
        spec = self.spec.erasing
        if spec is None:
            return clips_BCTHW
        return erase(clips_BCTHW, rng, sample_erasing(spec, rng.host, clips_BCTHW.shape[-1]))


@contextmanager
def _true_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32: its 10 bits cost a tenth of a grey level."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
