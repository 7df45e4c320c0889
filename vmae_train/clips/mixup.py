"""Clips and labels → mixup or CutMix of both, within fixed groups of the global order.

Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019. Batch form of VideoMAE's finetuning: one lambda per group, and
the partner of a clip is its counterpart in the reversed group.

B clips, N clips of a group, G groups, K classes, T frames, H rows, W columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float32, Int64
from torch import Tensor

from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose, Rng
from vmae_train.clips.rng import ClipRng

__all__ = ["Mixup", "MixupSpec", "mix_targets", "mixup_clips", "sample_mixup", "soft_targets"]

Box = tuple[int, int, int, int]
_NO_BOX: Box = (0, 0, 0, 0)


class MixupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mixup` and `cutmix` are the parameters of their Beta distributions; 0 turns them off.

    A group of `mix_group` samples is mixed with probability `prob`. If both are on, CutMix is chosen with probability
    `switch`. `label_smoothing` also applies without mixing.
    """

    mixup: float = 0.0  # parameter of the Beta distribution; 0: off
    cutmix: float = 0.0  # parameter of the Beta distribution; 0: off
    prob: float = 1.0  # that a group is mixed
    switch: float = 0.5  # share of CutMix if both are on
    label_smoothing: float = 0.0  # share of the label spread over all classes
    mix_group: int = 8  # samples mixed with each other; divides `batch` and `micro_batch`

    def __post_init__(self) -> None:
        check_bounds(self, mixup=(0, 1000), cutmix=(0, 1000), prob=(0, 1), switch=(0, 1), mix_group=(1, 1 << 16))
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"mix.label_smoothing = {self.label_smoothing}: expected 0 or more, below 1")

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return (self.mixup > 0 or self.cutmix > 0) and self.prob > 0


class Mixup(NamedTuple):
    """How each clip of a batch is mixed with the clip number `partner_B`, of which it takes 1 - `lam_B`.

    `box_B4`: the pasted box of CutMix (top, left, bottom, right); an empty box blends the complete frames (mixup).
    """

    lam_B: Float32[Tensor, " B"]
    box_B4: Int64[Tensor, "B 4"]
    partner_B: Int64[Tensor, " B"]


def sample_mixup(spec: MixupSpec, rng: ClipRng, weight_B: Float32[Tensor, " B"], *, repeats: int, size: int) -> Mixup:
    """One sample per group, from the rng of its first clip: it depends on no rank and no micro-batch.

    A group is `mix_group` samples with all their `repeats`. A clip stays as it is if its partner has weight 0 (could
    not be read). Raises ValueError if the batch is not a multiple of the group.
    """
    num_clips = len(rng.host.sample_B)
    group = spec.mix_group * repeats
    if num_clips % group:
        raise ValueError(f"mix.mix_group = {spec.mix_group} does not divide a batch of {num_clips // repeats}")
    sampled = [_sample_group(spec, rng.host.clip_rng(first), size) for first in range(0, num_clips, group)]
    device = rng.sample_B.device
    lam_G = torch.tensor([lam for lam, _ in sampled], dtype=torch.float32).to(device, non_blocking=True)
    box_G4 = torch.tensor([box for _, box in sampled], dtype=torch.int64).to(device, non_blocking=True)
    clip_B = torch.arange(num_clips, device=device)
    partner_B = rearrange(rearrange(clip_B, "(g n) -> g n", n=group).flip(1), "g n -> (g n)")
    lam_B = torch.where(weight_B[partner_B] > 0, repeat(lam_G, "g -> (g n)", n=group), 1.0)
    return Mixup(lam_B, repeat(box_G4, "g x -> (g n) x", n=group), partner_B)


def _sample_group(spec: MixupSpec, rng: Rng, size: int) -> tuple[float, Box]:
    """Lambda and box of one group."""
    if rng.uniform(Purpose.MIXUP_APPLY) >= spec.prob:
        return 1.0, _NO_BOX
    both = spec.mixup > 0 and spec.cutmix > 0
    use_cutmix = rng.uniform(Purpose.MIXUP_SWITCH) < spec.switch if both else spec.cutmix > 0
    alpha = spec.cutmix if use_cutmix else spec.mixup
    lam = rng.beta(Purpose.MIXUP_LAMBDA, alpha, alpha)
    if not use_cutmix:
        return lam, _NO_BOX
    side = int(size * math.sqrt(1 - lam))
    start = [rng.integer(Purpose.CUTMIX_POSITION, size, i) - side // 2 for i in range(2)]
    top, left = (max(x, 0) for x in start)
    # Half a side each way from the centre, as in the original: an odd side loses a pixel, and the frame clips the box.
    bottom, right = (min(x + 2 * (side // 2), size) for x in start)
    return 1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right)


@torch.no_grad()
def mixup_clips(clips: Float32[Tensor, "B 3 T S S"], mixup: Mixup) -> Float32[Tensor, "B 3 T S S"]:
    """Each clip mixed with its partner."""
    top, left, bottom, right = (x[:, None, None] for x in mixup.box_B4.unbind(-1))
    row_H1, column_W = (torch.arange(n, device=clips.device) for n in clips.shape[-2:])
    row_H1 = row_H1[:, None]
    in_box = (row_H1 >= top) & (row_H1 < bottom) & (column_W >= left) & (column_W < right)
    is_cutmix = (bottom > top) & (right > left)
    lam_B11 = mixup.lam_B[:, None, None]
    own_BHW = torch.where(is_cutmix, torch.where(in_box, 0.0, 1.0), lam_B11)
    own_BHW = torch.where(lam_B11 == 1, 1.0, own_BHW)
    # One lerp for the batch: exact at 0 and 1.
    return torch.lerp(clips[mixup.partner_B], clips, own_BHW[:, None, None])


def soft_targets(
    label_B: Int64[Tensor, " B"], mixup: Mixup | None, *, num_classes: int, smoothing: float
) -> Float32[Tensor, "B K"]:
    """Smoothed one-hot labels, mixed as the clips are. A label below 0 (a padding position) counts as class 0."""
    one_hot_BK = F.one_hot(label_B.clamp_min(0), num_classes).float()
    return mix_targets(one_hot_BK * (1 - smoothing) + smoothing / num_classes, mixup)


def mix_targets(target_BK: Float32[Tensor, "B K"], mixup: Mixup | None) -> Float32[Tensor, "B K"]:
    """Target rows, mixed as the clips are."""
    if mixup is None:
        return target_BK
    lam_B1 = mixup.lam_B[:, None]
    return target_BK * lam_B1 + target_BK[mixup.partner_B] * (1 - lam_B1)
