from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from vmae_train.clips.erasing import ErasingSpec, erase, sample_erasing
from vmae_train.clips.rng import ClipRng

SIZE = 32


def _rng(samples: int, device: torch.device | str = "cpu", *, first: int = 0) -> ClipRng:
    return ClipRng.on(device, seed=6, epoch=2, sample=np.arange(first, first + samples, dtype=np.uint64))


def _erased(samples: int, device: torch.device, *, first: int = 0, frames: int = 4) -> torch.Tensor:
    rng = _rng(samples, device, first=first)
    clips = torch.full((samples, 3, frames, SIZE, SIZE), 7.0, device=device)
    return erase(clips, rng, sample_erasing(ErasingSpec(prob=1.0), rng.host, SIZE))


def test_one_clip_in_four_is_erased() -> None:
    boxes = sample_erasing(ErasingSpec(), _rng(8000).host, 224)
    assert abs(len(boxes.index_N) - 2000) < 5 * math.sqrt(1500)
    assert len(sample_erasing(ErasingSpec(prob=0.0), _rng(100).host, 224).index_N) == 0


def test_boxes_have_the_published_areas_and_ratios_and_are_inside_the_frame() -> None:
    box = sample_erasing(ErasingSpec(prob=1.0), _rng(6000).host, 224)
    assert len(box.index_N) == 6000
    assert (box.top_N >= 0).all() and (box.top_N + box.height_N <= 224).all()
    assert (box.left_N >= 0).all() and (box.left_N + box.width_N <= 224).all()
    area = np.sort(box.height_N * box.width_N / 224**2)
    assert area[0] > 0.018 and area[-1] < 0.345  # sides are whole pixels
    # Boxes taller or wider than the frame are sampled again: areas are uniform except near the upper end.
    expected = (area - 0.02) / (1 / 3 - 0.02)
    assert np.abs(expected - np.arange(1, 6001) / 6000).max() < 0.03
    ratio = np.log(box.height_N / box.width_N)
    assert abs(ratio.mean()) < 5 * 0.7 / math.sqrt(6000)
    assert abs(ratio).max() < math.log(1 / 0.3) + 0.1


def test_a_box_is_the_same_in_all_frames_and_its_noise_is_not(device: torch.device) -> None:
    clips = _erased(6, device)
    is_noise = clips != 7.0
    assert is_noise.any(dim=(1, 2, 3, 4)).all()
    for t in range(1, 4):
        assert torch.equal(is_noise[:, :, t], is_noise[:, :, 0])
        inside = is_noise[:, :, 0]
        assert (clips[:, :, t] == clips[:, :, 0])[inside].float().mean() < 0.01
    assert (clips[:, 0] == clips[:, 1])[is_noise[:, 0]].float().mean() < 0.01


def test_exactly_the_sampled_box_is_filled(device: torch.device) -> None:
    box = sample_erasing(ErasingSpec(prob=1.0), _rng(6).host, SIZE)
    is_noise = (_erased(6, device) != 7.0).cpu()
    for n in range(6):
        expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        expected[box.top_N[n] : box.top_N[n] + box.height_N[n], box.left_N[n] : box.left_N[n] + box.width_N[n]] = True
        assert torch.equal(is_noise[n, 1, 2], expected)


def test_noise_is_standard_normal(device: torch.device) -> None:
    clips = _erased(40, device)
    noise = np.sort(clips[clips != 7.0].cpu().numpy().astype(np.float64))
    count = len(noise)
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    expected = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in noise])
    assert np.abs(expected - np.arange(1, count + 1) / count).max() < 1.95 / math.sqrt(count)


def test_a_clips_noise_depends_on_its_sample_and_not_on_the_batch_or_the_device(device: torch.device) -> None:
    together = _erased(5, device)
    for b in range(5):
        assert torch.equal(_erased(1, torch.device("cpu"), first=b)[0], together[b].cpu())


def test_clips_that_are_not_erased_stay_as_they_are(device: torch.device) -> None:
    rng = _rng(20, device)
    boxes = sample_erasing(ErasingSpec(), rng.host, SIZE)
    clips = erase(torch.full((20, 3, 2, SIZE, SIZE), 7.0, device=device), rng, boxes)
    changed = (clips != 7.0).any(dim=(1, 2, 3, 4)).cpu().numpy()
    assert 0 < changed.sum() < 20
    assert np.array_equal(np.flatnonzero(changed), boxes.index_N)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"prob": -0.1}, "prob = -0.1"),
        ({"area": [0.3, 0.1]}, "area"),
        ({"ratio": [0.0, 1.0]}, "ratio"),
        ({"count": 2}, "count"),
    ],
)
def test_impossible_settings_are_refused_by_name(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, ErasingSpec)
