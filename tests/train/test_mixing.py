from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vmae_train.clips.mixup import MixupSpec, Shares, draw_shares, mixup_clips, soft_cross_entropy, soft_targets
from vmae_train.clips.rng import ClipRng

SIZE = 16
PUBLISHED = MixupSpec(mixup=0.8, cutmix=1.0, label_smoothing=0.1)


def _draws(samples: list[int], device: torch.device | str = "cpu") -> ClipRng:
    return ClipRng.on(device, seed=9, epoch=1, sample=samples)


def _clips(count: int, device: torch.device) -> torch.Tensor:
    """Clips whose every pixel is the number of the clip."""
    number = torch.arange(count, device=device, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return number.expand(-1, 3, 2, SIZE, SIZE).clone()


def _shares(spec: MixupSpec, groups: int, size: int = 224) -> Shares:
    spec = msgspec.structs.replace(spec, mix_group=1)
    return draw_shares(spec, _draws(list(range(groups))), repeats=1, size=size)


def _distance_to(cdf: np.ndarray) -> float:
    return float(np.abs(cdf - np.arange(1, len(cdf) + 1) / len(cdf)).max())


def test_mixup_shares_are_beta_numbers() -> None:
    share = np.sort(_shares(MixupSpec(mixup=0.8), 3000).share_B.numpy().astype(np.float64))
    assert abs(share.mean() - 0.5) < 5 * math.sqrt(0.096 / 3000)
    assert abs(share.var() - 0.8**2 / (1.6**2 * 2.6)) < 0.008
    grid = (np.arange(200000) + 0.5) / 200000
    density = grid**-0.2 * (1 - grid) ** -0.2
    cdf = np.interp(share, grid, np.cumsum(density) / density.sum())
    assert _distance_to(cdf) < 1.95 / math.sqrt(3000)


def test_cutmix_boxes_have_uniform_shares_before_they_are_cut_and_shares_that_fit_after() -> None:
    shares = _shares(MixupSpec(cutmix=1.0), 4000)
    top, left, bottom, right = shares.box_B4.unbind(-1)
    assert ((top >= 0) & (left >= 0) & (bottom <= 224) & (right <= 224)).all()
    kept = 1 - (bottom - top) * (right - left) / 224**2
    assert (kept - shares.share_B).abs().max() < 1e-6
    # Boxes that touch no edge have their full side, of which share = 1 - (side / size)² is uniform for all of them.
    whole = (top > 0) & (left > 0) & (bottom < 224) & (right < 224)
    assert ((bottom - top) == (right - left))[whole].all()
    # Of a box of side s = √u about a uniform centre, s - s² / 4 of each axis lies in the picture on average.
    s = np.sqrt((np.arange(100000) + 0.5) / 100000)
    assert abs(float(1 - shares.share_B.mean()) - ((s - s**2 / 4) ** 2).mean()) < 0.02


def test_half_of_the_groups_are_cut_and_prob_leaves_the_rest_unmixed() -> None:
    shares = _shares(PUBLISHED, 3000)
    is_cut = shares.box_B4.amax(dim=-1) > 0
    assert abs(float(is_cut.float().mean()) - 0.5) < 0.06
    some = _shares(msgspec.structs.replace(PUBLISHED, prob=0.3), 3000)
    assert abs(float((some.share_B < 1).float().mean()) - 0.3) < 0.05
    assert not MixupSpec().is_on
    assert not MixupSpec(mixup=0.8, prob=0.0).is_on


def test_a_clip_is_mixed_with_its_counterpart_in_the_reversed_group_only(device: torch.device) -> None:
    shares = draw_shares(MixupSpec(mixup=0.8, mix_group=4), _draws(list(range(8)), device), repeats=1, size=SIZE)
    mixed = mixup_clips(_clips(8, device), torch.ones(8, device=device), shares, group=4)
    assert mixed.partner_B.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    share = shares.share_B.cpu()
    assert len(set(share[:4].tolist())) == 1
    assert share[0] != share[4]
    own, partner = torch.arange(8.0), mixed.partner_B.cpu()
    wanted = own * share + partner * (1 - share)
    assert (mixed.clips[:, 0, 0, 0, 0].cpu() - wanted).abs().max() < 1e-5
    assert (mixed.clips == mixed.clips[:, :, :1, :1, :1]).all()


def test_cutmix_pastes_the_box_of_the_partner_in_every_frame(device: torch.device) -> None:
    box = torch.tensor([[2, 3, 9, 16]], device=device).expand(2, 4)
    shares = Shares(torch.full((2,), 1 - 7 * 13 / 256, device=device), box)
    mixed = mixup_clips(_clips(2, device), torch.ones(2, device=device), shares, group=2).clips
    wanted = torch.zeros(SIZE, SIZE)
    wanted[2:9, 3:16] = 1
    for t in range(2):
        assert torch.equal(mixed[0, 1, t].cpu(), wanted)
        assert torch.equal(mixed[1, 1, t].cpu(), 1 - wanted)


def test_a_clip_that_could_not_be_read_is_mixed_into_none(device: torch.device) -> None:
    for spec in (MixupSpec(mixup=0.8, mix_group=4), MixupSpec(cutmix=1.0, mix_group=4)):
        shares = draw_shares(spec, _draws([1, 2, 3, 4], device), repeats=1, size=SIZE)
        weight_B = torch.tensor([1.0, 0.0, 1.0, 1.0], device=device)
        clips = _clips(4, device)
        clips[1] = 1000.0
        mixed = mixup_clips(clips, weight_B, shares, group=4)
        assert torch.equal(mixed.clips[2], clips[2])
        assert float(mixed.share_B[2]) == 1
        assert mixed.clips[[0, 2, 3]].max() <= 3
        assert float(mixed.share_B[0]) < 1


def test_groups_hang_on_no_micro_batch_and_no_device(device: torch.device) -> None:
    spec = msgspec.structs.replace(PUBLISHED, mix_group=4)
    together = draw_shares(spec, _draws(list(range(12))), repeats=1, size=224)
    for first in (0, 4, 8):
        part = draw_shares(spec, _draws(list(range(first, first + 4)), device), repeats=1, size=224)
        assert torch.equal(part.share_B.cpu(), together.share_B[first : first + 4])
        assert torch.equal(part.box_B4.cpu(), together.box_B4[first : first + 4])


def test_repeated_clips_are_in_their_samples_group(device: torch.device) -> None:
    rng = _draws([5, 6, 7, 8], device).repeated(2)
    shares = draw_shares(MixupSpec(mixup=0.8, mix_group=2), rng, repeats=2, size=SIZE)
    assert len(set(shares.share_B[:4].tolist())) == 1
    mixed = mixup_clips(_clips(8, device), torch.ones(8, device=device), shares, group=4)
    assert mixed.partner_B.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_a_batch_of_broken_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="mix_group = 4 does not divide a batch of 6"):
        draw_shares(MixupSpec(mixup=0.8, mix_group=4), _draws(list(range(6))), repeats=1, size=SIZE)


def test_targets_are_smoothed_first_and_mixed_then(device: torch.device) -> None:
    label_B = torch.tensor([0, 2, 1, -1], device=device)
    shares = Shares(
        torch.tensor([0.7, 0.7, 0.7, 0.7], device=device), torch.zeros((4, 4), dtype=torch.int64, device=device)
    )
    weight_B = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device)
    mixed = mixup_clips(_clips(4, device), weight_B, shares, group=4)
    target_BK = soft_targets(label_B, mixed, num_classes=5, smoothing=0.1).cpu()
    off, on = 0.1 / 5, 0.9 + 0.1 / 5
    assert target_BK[1].tolist() == pytest.approx([off, 0.7 * off + 0.3 * on, 0.7 * on + 0.3 * off, off, off])
    assert target_BK[0].tolist() == pytest.approx([on, off, off, off, off])  # its partner could not be read
    assert target_BK.sum(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_without_mixing_the_loss_is_cross_entropy_with_label_smoothing(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 7, generator=generator).to(device)
    label_B = torch.tensor([0, 6, 3, 3, 1, 2], device=device)
    for smoothing in (0.0, 0.1):
        target_BK = soft_targets(label_B, None, num_classes=7, smoothing=smoothing)
        wanted = F.cross_entropy(logits, label_B, reduction="none", label_smoothing=smoothing)
        assert (soft_cross_entropy(logits, target_BK) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mixup": -1.0}, "mix.mixup = -1"),
        ({"prob": 2.0}, "mix.prob = 2"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1"),
        ({"mix_group": 0}, "mix_group = 0"),
    ],
)
def test_mixing_that_cannot_be_is_refused_by_name(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, MixupSpec)
