"""Mixup and CutMix of clips and their labels, within fixed groups of the global order, and the loss of soft targets.

Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019; in the batch form that VideoMAE finetunes with: one share a
group, each clip's partner is its counterpart in the reversed group.

B clips, N clips of a group, K classes, T frames, H rows, W columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vmae_data.rng import Purpose, Rng
from vmae_train.clips.rng import ClipRng

__all__ = [
    "Mixed",
    "MixupSpec",
    "Shares",
    "draw_shares",
    "mixup_clips",
    "soft_cross_entropy",
    "soft_rows",
    "soft_targets",
]


class MixupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mixup` and `cutmix` are the numbers of their Beta distributions, 0 for off.

    A group of `mix_group` samples is mixed with chance `prob`; where both are on, CutMix is taken with chance
    `switch`. `label_smoothing` holds without mixing too.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.0
    mix_group: int = 8

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"mix.{name} = {getattr(self, name)} must be above 0, or 0 for off")
        for name in ("prob", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mix.{name} = {getattr(self, name)} must lie between 0 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"mix.label_smoothing = {self.label_smoothing} must be at least 0 and below 1")
        if self.mix_group < 1:
            raise ValueError(f"mix.mix_group = {self.mix_group} must be 1 or more")

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return (self.mixup > 0 or self.cutmix > 0) and self.prob > 0


class Shares(NamedTuple):
    """How much each clip keeps of itself, and where its partner's box lies: top, left, bottom, right.

    An empty box is mixup: the whole picture is blended.
    """

    share_B: Float32[Tensor, " B"]
    box_B4: Int64[Tensor, "B 4"]


class Mixed(NamedTuple):
    clips: Float32[Tensor, "B 3 T S S"]
    share_B: Float32[Tensor, " B"]
    partner_B: Int64[Tensor, " B"]


class _GroupShare(NamedTuple):
    share: float
    box: tuple[int, int, int, int]


_UNMIXED = _GroupShare(1.0, (0, 0, 0, 0))


def draw_shares(spec: MixupSpec, rng: ClipRng, *, repeats: int, size: int) -> Shares:
    """One draw a group, that of its first clip: it hangs on no rank and no micro-batch.

    A group is `mix_group` samples with all their `repeats`. Raises ValueError unless the batch is whole groups.
    """
    num_clips = len(rng.host.sample_B)
    group = spec.mix_group * repeats
    if num_clips % group:
        raise ValueError(f"mix.mix_group = {spec.mix_group} does not divide a batch of {num_clips // repeats}")
    found = [_group_share(spec, rng.host.draw(first), size) for first in range(0, num_clips, group)]
    device = rng.sample_B.device
    share_G = torch.tensor([one.share for one in found], dtype=torch.float32).to(device, non_blocking=True)
    box_G4 = torch.tensor([one.box for one in found], dtype=torch.int64).to(device, non_blocking=True)
    return Shares(repeat(share_G, "g -> (g n)", n=group), repeat(box_G4, "g x -> (g n) x", n=group))


def _group_share(spec: MixupSpec, draw: Rng, size: int) -> _GroupShare:
    if draw.uniform(Purpose.MIX_APPLY) >= spec.prob:
        return _UNMIXED
    both = spec.mixup > 0 and spec.cutmix > 0
    cuts = draw.uniform(Purpose.MIX_SWITCH) < spec.switch if both else spec.cutmix > 0
    alpha = spec.cutmix if cuts else spec.mixup
    share = draw.beta(Purpose.MIX_SHARE, alpha, alpha)
    if not cuts:
        return _GroupShare(share, (0, 0, 0, 0))
    side = int(size * math.sqrt(1 - share))
    start = [draw.integer(Purpose.MIX_PLACE, size, i) - side // 2 for i in range(2)]
    top, left = (max(x, 0) for x in start)
    # From the centre half a side each way, as the original: an odd side loses a pixel; what leaves the picture is cut.
    bottom, right = (min(x + 2 * (side // 2), size) for x in start)
    return _GroupShare(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


@torch.no_grad()
def mixup_clips(
    clips: Float32[Tensor, "B 3 T S S"], weight_B: Float32[Tensor, " B"], shares: Shares, *, group: int
) -> Mixed:
    """Each clip with its counterpart in the reversed group of `group` clips.

    A clip whose counterpart could not be read (weight 0) stays as it is.
    """
    number_B = torch.arange(len(clips), device=clips.device)
    partner_B = rearrange(rearrange(number_B, "(g n) -> g n", n=group).flip(1), "g n -> (g n)")
    share_B = torch.where(weight_B[partner_B] > 0, shares.share_B, 1.0)
    top, left, bottom, right = (x[:, None, None] for x in shares.box_B4.unbind(-1))
    row_H1, column_W = (torch.arange(n, device=clips.device) for n in clips.shape[-2:])
    row_H1 = row_H1[:, None]
    is_partner = (row_H1 >= top) & (row_H1 < bottom) & (column_W >= left) & (column_W < right)
    is_cut = (bottom > top) & (right > left)
    kept_BHW = torch.where(is_cut, torch.where(is_partner, 0.0, 1.0), share_B[:, None, None])
    kept_BHW = torch.where(share_B[:, None, None] == 1, 1.0, kept_BHW)
    # One lerp for the batch: exact at shares of 0 and 1.
    mixed = torch.lerp(clips[partner_B], clips, kept_BHW[:, None, None])
    return Mixed(mixed, share_B, partner_B)


def soft_targets(
    label_B: Int64[Tensor, " B"], mixed: Mixed | None, *, num_classes: int, smoothing: float
) -> Float32[Tensor, "B K"]:
    """Smoothed one-hot labels, mixed as the clips are. A label below 0 (a place without a clip) counts as class 0."""
    hot_BK = F.one_hot(label_B.clamp_min(0), num_classes).float()
    smooth_BK = hot_BK * (1 - smoothing) + smoothing / num_classes
    return soft_rows(smooth_BK, mixed)


def soft_rows(target_BK: Float32[Tensor, "B K"], mixed: Mixed | None) -> Float32[Tensor, "B K"]:
    """Rows of targets, mixed as the clips are."""
    if mixed is None:
        return target_BK
    share_B1 = mixed.share_B[:, None]
    return target_BK * share_B1 + target_BK[mixed.partner_B] * (1 - share_B1)


def soft_cross_entropy(logits_BK: Float[Tensor, "B K"], target_BK: Float32[Tensor, "B K"]) -> Float32[Tensor, " B"]:
    """Cross entropy of each clip against a distribution over the classes."""
    return -(target_BK * F.log_softmax(logits_BK.float(), dim=-1)).sum(dim=-1)
