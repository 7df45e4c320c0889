"""Random resized crops; the other boxes are tested where they are applied, in test_augment.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vmae_data import rng as reference
from vmae_data.rng import Purpose
from vmae_train.clips.boxes import RESIZED_ATTEMPTS, Boxes, resized_boxes
from vmae_train.clips.rng import ClipRng

SCALE, RATIO = (0.08, 1.0), (0.75, 1.3333)


def _rng(samples: int, device: torch.device | str = "cpu") -> ClipRng:
    return ClipRng.on(device, seed=8, epoch=3, sample=np.arange(samples, dtype=np.uint64))


def _boxes(size: tuple[int, int], count: int, **keys: tuple[float, float]) -> Boxes:
    size_B2 = torch.tensor([size]).expand(count, 2)
    return resized_boxes(size_B2, _rng(count), scale=keys.get("scale", SCALE), ratio=keys.get("ratio", RATIO))


def test_boxes_are_those_of_the_published_loop_over_the_reference_rng(device: torch.device) -> None:
    """Clip by clip, in plain numbers, with the fallback to the centre."""
    sizes = [(256, 340), (340, 256), (240, 240), (120, 300), (300, 100)] * 8
    boxes = resized_boxes(torch.tensor(sizes, device=device), _rng(len(sizes), device), scale=SCALE, ratio=RATIO)
    for b, (height, width) in enumerate(sizes):
        rng = reference.Rng(seed=8, epoch=3, sample=b)
        for attempt in range(RESIZED_ATTEMPTS):
            area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * rng.uniform(Purpose.CROP_AREA, attempt))
            low, high = math.log(RATIO[0]), math.log(RATIO[1])
            ratio = math.exp(low + (high - low) * rng.uniform(Purpose.CROP_RATIO, attempt))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = rng.integer(Purpose.CROP_POSITION, height - h + 1, 0)
                left = rng.integer(Purpose.CROP_POSITION, width - w + 1, 1)
                break
        else:
            w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
            top, left = (height - h) // 2, (width - w) // 2
        assert [float(x[b]) for x in boxes[:4]] == [top, left, h, w]


def test_areas_are_uniform_and_ratios_uniform_in_their_logarithm() -> None:
    """On a square frame with small areas no attempt fails, so the distributions are exact."""
    count = 5000
    boxes = _boxes((1000, 1000), count, scale=(0.08, 0.5))
    for values, low, high in (
        (boxes.height_B * boxes.width_B / 1000**2, 0.08, 0.5),
        ((boxes.width_B / boxes.height_B).log(), math.log(RATIO[0]), math.log(RATIO[1])),
    ):
        cdf = (np.sort(values.double().numpy()) - low) / (high - low)
        assert np.abs(cdf - np.arange(1, count + 1) / count).max() < 1.95 / math.sqrt(count)


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (64, 154)])
def test_boxes_are_inside_the_frame_and_keep_their_bounds(size: tuple[int, int]) -> None:
    boxes = _boxes(size, 4000)
    assert (boxes.top_B >= 0).all() and (boxes.top_B + boxes.height_B <= size[0]).all()
    assert (boxes.left_B >= 0).all() and (boxes.left_B + boxes.width_B <= size[1]).all()
    assert (boxes.height_B * boxes.width_B >= 0.075 * size[0] * size[1]).all()
    ratio = boxes.width_B / boxes.height_B
    assert (ratio > 0.75 * 0.95).all() and (ratio < 1.3333 * 1.05).all()
    assert torch.equal(boxes.limits_B4[:, 0], boxes.top_B)
    assert torch.equal(boxes.limits_B4[:, 3], boxes.left_B + boxes.width_B)


def test_a_frame_that_no_box_fits_is_cropped_at_its_centre() -> None:
    boxes = _boxes((50, 400), 20, scale=(0.9, 1.0))
    assert set(boxes.height_B.tolist()) == {50.0}
    assert set(boxes.width_B.tolist()) == {float(round(50 * 1.3333))}
    assert set(boxes.left_B.tolist()) == {float((400 - round(50 * 1.3333)) // 2)}


def test_repeats_sample_their_own_boxes_and_the_first_is_the_plain_one() -> None:
    size_B2 = torch.tensor([[256, 340], [240, 240]])
    plain = resized_boxes(size_B2, _rng(2), scale=SCALE, ratio=RATIO)
    twice = resized_boxes(size_B2.repeat_interleave(2, 0), _rng(2).repeated(2), scale=SCALE, ratio=RATIO)
    for one, two in zip(plain[:4], twice[:4], strict=True):
        assert torch.equal(two[::2], one)
    assert not torch.equal(twice.height_B[1::2], plain.height_B)
