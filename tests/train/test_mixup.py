from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vmae_train.clips.mixup import Mixup, MixupSpec, mixup_clips, sample_mixup, soft_targets
from vmae_train.clips.rng import ClipRng
from vmae_train.models.losses import soft_cross_entropy

SIZE = 16
PUBLISHED = MixupSpec(mixup=0.8, cutmix=1.0, label_smoothing=0.1)


def _rng(samples: list[int], device: torch.device | str = "cpu") -> ClipRng:
    return ClipRng.on(device, seed=9, epoch=1, sample=samples)


def _clips(count: int, device: torch.device) -> torch.Tensor:
    """Clips whose every pixel is the number of the clip."""
    number = torch.arange(count, device=device, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return number.expand(-1, 3, 2, SIZE, SIZE).clone()


def _sampled(spec: MixupSpec, groups: int, size: int = 224) -> Mixup:
    spec = msgspec.structs.replace(spec, mix_group=1)
    return sample_mixup(spec, _rng(list(range(groups))), torch.ones(groups), repeats=1, size=size)


def _distance_to(cdf: np.ndarray) -> float:
    return float(np.abs(cdf - np.arange(1, len(cdf) + 1) / len(cdf)).max())


def test_lambdas_of_mixup_have_a_beta_distribution() -> None:
    lam = np.sort(_sampled(MixupSpec(mixup=0.8), 3000).lam_B.numpy().astype(np.float64))
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(0.096 / 3000)
    assert abs(lam.var() - 0.8**2 / (1.6**2 * 2.6)) < 0.008
    grid = (np.arange(200000) + 0.5) / 200000
    density = grid**-0.2 * (1 - grid) ** -0.2
    cdf = np.interp(lam, grid, np.cumsum(density) / density.sum())
    assert _distance_to(cdf) < 1.95 / math.sqrt(3000)


def test_cutmix_boxes_have_uniform_areas_before_clipping_and_lambdas_that_fit_after() -> None:
    mixup = _sampled(MixupSpec(cutmix=1.0), 2000)
    top, left, bottom, right = mixup.box_B4.unbind(-1)
    assert ((top >= 0) & (left >= 0) & (bottom <= 224) & (right <= 224)).all()
    kept = 1 - (bottom - top) * (right - left) / 224**2
    assert (kept - mixup.lam_B).abs().max() < 1e-6
    # Boxes that touch no edge have their full side, and lambda = 1 - (side / size)² is uniform for all of them.
    is_full = (top > 0) & (left > 0) & (bottom < 224) & (right < 224)
    assert ((bottom - top) == (right - left))[is_full].all()
    # A box of side s = √u around a uniform centre covers s - s² / 4 of each axis of the picture on average.
    s = np.sqrt((np.arange(100000) + 0.5) / 100000)
    assert abs(float(1 - mixup.lam_B.mean()) - ((s - s**2 / 4) ** 2).mean()) < 0.02


def test_half_of_the_groups_use_cutmix_and_prob_leaves_the_rest_unmixed() -> None:
    is_cutmix = _sampled(PUBLISHED, 1000).box_B4.amax(dim=-1) > 0
    assert abs(float(is_cutmix.float().mean()) - 0.5) < 0.06
    some = _sampled(msgspec.structs.replace(PUBLISHED, prob=0.3), 1000)
    assert abs(float((some.lam_B < 1).float().mean()) - 0.3) < 0.05
    assert not MixupSpec().is_on
    assert not MixupSpec(mixup=0.8, prob=0.0).is_on


def test_a_clip_is_mixed_with_its_counterpart_in_the_reversed_group_only(device: torch.device) -> None:
    spec, weight_B = MixupSpec(mixup=0.8, mix_group=4), torch.ones(8, device=device)
    mixup = sample_mixup(spec, _rng(list(range(8)), device), weight_B, repeats=1, size=SIZE)
    clips = mixup_clips(_clips(8, device), mixup)
    assert mixup.partner_B.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    lam = mixup.lam_B.cpu()
    assert len(set(lam[:4].tolist())) == 1
    assert lam[0] != lam[4]
    own, partner = torch.arange(8.0), mixup.partner_B.cpu()
    expected = own * lam + partner * (1 - lam)
    assert (clips[:, 0, 0, 0, 0].cpu() - expected).abs().max() < 1e-5
    assert (clips == clips[:, :, :1, :1, :1]).all()


def test_cutmix_pastes_the_box_of_the_partner_in_every_frame(device: torch.device) -> None:
    box = torch.tensor([[2, 3, 9, 16]], device=device).expand(2, 4)
    lam_B, partner_B = torch.full((2,), 1 - 7 * 13 / 256, device=device), torch.tensor([1, 0], device=device)
    mixed = mixup_clips(_clips(2, device), Mixup(lam_B, box, partner_B))
    expected = torch.zeros(SIZE, SIZE)
    expected[2:9, 3:16] = 1
    for t in range(2):
        assert torch.equal(mixed[0, 1, t].cpu(), expected)
        assert torch.equal(mixed[1, 1, t].cpu(), 1 - expected)


def test_a_clip_that_could_not_be_read_is_mixed_into_none(device: torch.device) -> None:
    for spec in (MixupSpec(mixup=0.8, mix_group=4), MixupSpec(cutmix=1.0, mix_group=4)):
        weight_B = torch.tensor([1.0, 0.0, 1.0, 1.0], device=device)
        mixup = sample_mixup(spec, _rng([1, 2, 3, 4], device), weight_B, repeats=1, size=SIZE)
        clips = _clips(4, device)
        clips[1] = 1000.0
        mixed = mixup_clips(clips, mixup)
        assert torch.equal(mixed[2], clips[2])
        assert float(mixup.lam_B[2]) == 1
        assert mixed[[0, 2, 3]].max() <= 3
        assert float(mixup.lam_B[0]) < 1


def test_groups_depend_on_no_micro_batch_and_no_device(device: torch.device) -> None:
    spec = msgspec.structs.replace(PUBLISHED, mix_group=4)
    together = sample_mixup(spec, _rng(list(range(12))), torch.ones(12), repeats=1, size=224)
    for first in (0, 4, 8):
        rng = _rng(list(range(first, first + 4)), device)
        part = sample_mixup(spec, rng, torch.ones(4, device=device), repeats=1, size=224)
        assert torch.equal(part.lam_B.cpu(), together.lam_B[first : first + 4])
        assert torch.equal(part.box_B4.cpu(), together.box_B4[first : first + 4])


def test_repeated_clips_are_in_their_samples_group(device: torch.device) -> None:
    rng = _rng([5, 6, 7, 8], device).repeated(2)
    mixup = sample_mixup(MixupSpec(mixup=0.8, mix_group=2), rng, torch.ones(8, device=device), repeats=2, size=SIZE)
    assert len(set(mixup.lam_B[:4].tolist())) == 1
    assert mixup.partner_B.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_a_batch_that_is_no_multiple_of_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match="mix_group = 4 does not divide a batch of 6"):
        sample_mixup(MixupSpec(mixup=0.8, mix_group=4), _rng(list(range(6))), torch.ones(6), repeats=1, size=SIZE)


def test_targets_are_smoothed_before_they_are_mixed(device: torch.device) -> None:
    label_B = torch.tensor([0, 2, 1, -1], device=device)
    mixup = Mixup(
        lam_B=torch.tensor([1.0, 0.7, 0.7, 0.7], device=device),  # the partner of the first could not be read
        box_B4=torch.zeros((4, 4), dtype=torch.int64, device=device),
        partner_B=torch.tensor([3, 2, 1, 0], device=device),
    )
    target_BK = soft_targets(label_B, mixup, num_classes=5, smoothing=0.1).cpu()
    off, on = 0.1 / 5, 0.9 + 0.1 / 5
    assert target_BK[1].tolist() == pytest.approx([off, 0.7 * off + 0.3 * on, 0.7 * on + 0.3 * off, off, off])
    assert target_BK[0].tolist() == pytest.approx([on, off, off, off, off])
    assert target_BK.sum(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_without_mixing_the_loss_is_cross_entropy_with_label_smoothing(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 7, generator=generator).to(device)
    label_B = torch.tensor([0, 6, 3, 3, 1, 2], device=device)
    for smoothing in (0.0, 0.1):
        target_BK = soft_targets(label_B, None, num_classes=7, smoothing=smoothing)
        expected = F.cross_entropy(logits, label_B, reduction="none", label_smoothing=smoothing)
        assert (soft_cross_entropy(logits, target_BK) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mixup": -1.0}, "mixup = -1.0: expected 0 to"),
        ({"prob": 2.0}, "prob = 2.0: expected 0 to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1"),
        ({"mix_group": 0}, "mix_group = 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, MixupSpec)
