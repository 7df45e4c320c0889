"""Frames to clips, and clips and masks that a model refuses."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.tiny_models import CLASSES, TINY, tiny_clips, tiny_mask, tiny_model
from vmae_train.clips.boxes import view_boxes
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel


def test_preprocess_gives_normalised_clips(device: torch.device) -> None:
    model = tiny_model(device)
    frames = torch.randint(0, 256, (2, 16, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    frames = frames.to(torch.uint8)
    expected = (frames.numpy() / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    clips = model.preprocess(frames)
    assert clips.device.type == device.type
    assert np.allclose(clips.cpu().numpy(), expected.transpose(0, 4, 1, 2, 3), atol=1e-5)


def test_preprocess_resizes_the_short_side_and_crops_the_centre() -> None:
    frames = torch.zeros(1, 16, 64, 96, 3, dtype=torch.uint8)
    frames[:, :, :, 16:80] = 255  # the central square of 64
    clips = PretrainModel(TINY).preprocess(frames)
    assert clips.shape == (1, 3, 16, 32, 32)
    inside = clips[..., 2:-2]
    assert torch.allclose(inside, inside.amax(dim=(2, 3, 4), keepdim=True).expand_as(inside))


@pytest.mark.parametrize(("width", "left"), [(34, 1), (35, 2), (37, 2), (39, 4)])
def test_half_a_pixel_of_a_centre_crop_is_rounded_to_even_as_published(
    width: int, left: int, device: torch.device
) -> None:
    assert left == round((width - 32) / 2.0)  # VideoMAE's CenterCrop
    frames = torch.arange(width, dtype=torch.uint8).expand(1, 16, 32, 3, width).transpose(3, 4).contiguous()
    model = tiny_model(device)
    clips = model.preprocess(frames) * model.std_C[:, None, None, None] + model.mean_C[:, None, None, None]
    assert (clips[0, 0, 0, 0] * 255).round().tolist() == list(range(left, left + 32))
    assert view_boxes(torch.tensor([[32, width]], device=device), num_crops=1, size=32).left_B.tolist() == [left]


def test_preprocess_refuses_another_number_of_frames() -> None:
    with pytest.raises(ValueError, match="8 frames given; a clip has 16"):
        PretrainModel(TINY).preprocess(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (torch.rand(1, 16, 32, 32, 3), "float32 of shape (1, 16, 32, 32, 3)"),
        (torch.zeros(16, 32, 32, 3, dtype=torch.uint8), "uint8 of shape (16, 32, 32, 3)"),
        (torch.zeros(1, 16, 3, 32, 32, dtype=torch.uint8), "uint8 of shape (1, 16, 3, 32, 32)"),
        (torch.zeros(1, 16, 32, 32, 3, dtype=torch.int64), "int64 of shape"),
    ],
)
def test_preprocess_refuses_what_is_not_rgb_frames_of_bytes(frames: torch.Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)):
        PretrainModel(TINY, seed=None).preprocess(frames)


def test_preprocess_refuses_frames_that_the_resize_would_make_huge() -> None:
    text = (
        "frames of 1 × 100000 pixels (H × W) would be 32 × 3200000 with a short side of 32; "
        "the limit of a side is 16384. Crop them first"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        PretrainModel(TINY, seed=None).preprocess(torch.zeros(1, 16, 1, 100_000, 3, dtype=torch.uint8))
    widest = torch.zeros(1, 16, 1, 512, 3, dtype=torch.uint8)
    assert PretrainModel(TINY, seed=None).preprocess(widest).shape == (1, 3, 16, 32, 32)


CLIP = (3, 16, 32, 32)


@pytest.mark.parametrize(
    ("clips", "found"),
    [
        (torch.zeros(2, *CLIP, dtype=torch.uint8), "uint8 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(2, *CLIP, dtype=torch.float64), "float64 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(2, *CLIP, dtype=torch.float16), "float16 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(*CLIP), "float32 of shape (3, 16, 32, 32) on cpu"),
        (torch.zeros(2, 16, 32, 32, 3), "float32 of shape (2, 16, 32, 32, 3) on cpu"),
        (torch.zeros(2, 16, 3, 32, 32), "float32 of shape (2, 16, 3, 32, 32) on cpu"),
        (torch.zeros(2, 3, 8, 32, 32), "float32 of shape (2, 3, 8, 32, 32) on cpu"),
        (torch.zeros(2, 3, 16, 64, 32), "float32 of shape (2, 3, 16, 64, 32) on cpu"),
        (torch.zeros(2, *CLIP, device="meta"), "float32 of shape (2, 3, 16, 32, 32) on meta"),
        (torch.zeros(()), "float32 of shape () on cpu"),
    ],
)
def test_clips_of_another_type_or_other_axes_are_refused_in_one_line(clips: torch.Tensor, found: str) -> None:
    text = (
        f"clips are {found}; expected a tensor of float32 with the axes B 3 16 32 32 on cpu, as `preprocess` gives it"
    )
    pretrained, classifier = tiny_model(torch.device("cpu")), Classifier(TINY, CLASSES)
    mask = tiny_mask(torch.device("cpu"))
    for call in (
        pretrained.features,
        classifier.features,
        classifier,
        lambda clips: pretrained(clips, mask),
        lambda clips: pretrained.loss(clips, mask),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            call(clips)


def test_autocast_takes_clips_of_half_precision() -> None:
    model, clips = Classifier(TINY, CLASSES).eval(), tiny_clips(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(clips.bfloat16()), model(clips.bfloat16().float()))
        with pytest.raises(ValueError, match="float64"):
            model(clips.double())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tokens: tokens[:1], "mask.visible_BV is int64 of shape (1, 32) on cpu"),
        (lambda tokens: tokens[0], "mask.visible_BV is int64 of shape (32,) on cpu"),
        (lambda tokens: tokens.int(), "mask.visible_BV is int32 of shape (2, 32) on cpu"),
    ],
)
def test_a_mask_of_another_type_or_other_axes_is_refused_in_one_line(
    change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    model, mask = tiny_model(torch.device("cpu")), tiny_mask(torch.device("cpu"))
    text = f"{found}; expected int64 with the axes B = 2 and tokens on cpu"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        model(tiny_clips(torch.device("cpu")), mask._replace(visible_BV=change(mask.visible_BV)))


def test_preprocess_without_antialias_is_torchs_plain_bilinear() -> None:
    frames = torch.randint(0, 256, (1, 16, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = PretrainModel(TINY, seed=None)
    plain = torch.nn.functional.interpolate(frames[0].permute(0, 3, 1, 2).float(), (32, 32), mode="bilinear")
    clips = model.preprocess(frames, antialias=False) * model.std_C[:, None, None, None]
    rgb = (clips + model.mean_C[:, None, None, None])[0].transpose(0, 1) * 255
    assert torch.allclose(rgb, plain, atol=1e-2)
    assert not torch.allclose(model.preprocess(frames), model.preprocess(frames, antialias=False), atol=1e-2)
