from __future__ import annotations

import math
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from vmae_data import rng as reference
from vmae_data.rng import Purpose
from vmae_train.clips.randaugment import Op, Policy, RandAugmentSpec, rand_augment, sample_policy, strength_of
from vmae_train.clips.rng import ClipRng, HostRng

SIZES = [(36, 48), (60, 40), (48, 48)]
LEVELS = [0.0, 3.3, 7.0, 10.0]
GEOMETRIC = {Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y}
FRAMES = 3


def _frame(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A camera-like picture: slopes, edges, a plain area, and noise that is not white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    slope = 40 + 120 * x / width + 60 * np.sin(y / 5 + seed)
    image = np.stack([slope, slope[::-1] * 0.7 + 20, 200 - slope * 0.6], axis=-1)
    image[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 90)
    image[-8:, :9] = (17, 17, 17)
    return np.clip(image + random.normal(0, 6, image.shape), 3, 251).astype(np.uint8)


def _clips(device: torch.device, padded: tuple[int, int] = (64, 52)) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of different sizes, B C T H W; the padding is noise."""
    generator = torch.Generator().manual_seed(5)
    clips = torch.randint(0, 256, (len(SIZES), 3, FRAMES, *padded), generator=generator, dtype=torch.uint8)
    for b, (height, width) in enumerate(SIZES):
        for t in range(FRAMES):
            frame = torch.from_numpy(_frame(height, width, 10 * b + t))
            clips[b, :, t, :height, :width] = frame.permute(2, 0, 1)
    return clips.to(device), torch.tensor(SIZES, device=device)


def _everywhere(op: Op, level: float, sign: float) -> Policy:
    shape = (len(SIZES), 1)
    return Policy(np.full(shape, int(op)), np.full(shape, level), np.full(shape, sign))


def _pil(image: Image.Image, op: Op, level: float, sign: float, resample: Image.Resampling) -> Image.Image:
    """The operation, called as in the published policy."""
    width, height = image.size
    how = {"resample": resample, "fillcolor": (128, 128, 128)}
    grow = 1 + sign * level / 10 * 0.9

    def transform(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)

    if op is Op.SOLARIZE_ADD:
        added = int(level / 10 * 110)
        return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)
    return {
        Op.AUTO_CONTRAST: lambda: ImageOps.autocontrast(image),
        Op.EQUALIZE: lambda: ImageOps.equalize(image),
        Op.INVERT: lambda: ImageOps.invert(image),
        Op.ROTATE: lambda: image.rotate(sign * level / 10 * 30, **how),
        # No bits at all are black, as in PIL at that time; today's PIL refuses the number.
        Op.POSTERIZE: lambda: (
            ImageOps.posterize(image, 4 - int(level / 10 * 4)) if level < 10 else image.point(lambda _: 0)
        ),
        Op.SOLARIZE: lambda: ImageOps.solarize(image, 256 - int(level / 10 * 256)),
        Op.COLOR: lambda: ImageEnhance.Color(image).enhance(grow),
        Op.CONTRAST: lambda: ImageEnhance.Contrast(image).enhance(grow),
        Op.BRIGHTNESS: lambda: ImageEnhance.Brightness(image).enhance(grow),
        Op.SHARPNESS: lambda: ImageEnhance.Sharpness(image).enhance(grow),
        Op.SHEAR_X: lambda: transform(1, sign * level / 10 * 0.3, 0, 0, 1, 0),
        Op.SHEAR_Y: lambda: transform(1, 0, 0, sign * level / 10 * 0.3, 1, 0),
        Op.TRANSLATE_X: lambda: transform(1, 0, sign * level / 10 * 0.45 * width, 0, 1, 0),
        Op.TRANSLATE_Y: lambda: transform(1, 0, 0, 0, 1, sign * level / 10 * 0.45 * height),
    }[op]()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("op", list(Op))
def test_an_operation_equals_pils(op: Op, level: float, device: torch.device) -> None:
    """Colours are bit-identical; geometry differs by 1 grey level in a few pixels, where float64 and float32 truncate."""
    clips, size_B2 = _clips(device)
    for sign in (1.0, -1.0):
        for name in ("bilinear", "bicubic"):
            result = rand_augment(clips, size_B2, _everywhere(op, level, sign), name).cpu()
            for b, (height, width) in enumerate(SIZES):
                for t in range(FRAMES):
                    image = Image.fromarray(_frame(height, width, 10 * b + t))
                    expected = _pil(image, op, level, sign, Image.Resampling[name.upper()])
                    ours = result[b, :, t, :height, :width].permute(1, 2, 0).numpy().astype(int)
                    difference = np.abs(ours - np.asarray(expected).astype(int))
                    assert difference.max() <= (1 if op in GEOMETRIC else 0)
                    assert np.mean(difference > 0) < 0.03


@pytest.mark.parametrize("op", list(Op))
def test_padding_never_matters(op: Op, device: torch.device) -> None:
    clips, size_B2 = _clips(device)
    policy = _everywhere(op, 7.0, 1.0)
    result = rand_augment(clips, size_B2, policy, "bicubic")
    for b, (height, width) in enumerate(SIZES):
        single = clips[b : b + 1, :, :, :height, :width]
        one = Policy(*(x[b : b + 1] for x in policy))
        assert torch.equal(
            rand_augment(single, size_B2[b : b + 1], one, "bicubic"), result[b : b + 1, :, :, :height, :width]
        )


def test_a_batch_of_different_policies_equals_each_single_clip(device: torch.device) -> None:
    clips, size_B2 = _clips(device)
    rng = ClipRng.on(device, seed=11, epoch=0, sample=[5, 6, 7])
    spec = RandAugmentSpec(prob=1.0)
    policy = sample_policy(spec, rng.host)
    before = clips.clone()
    together = rand_augment(clips, size_B2, policy, "bilinear")
    assert torch.equal(clips, before)
    for b, (height, width) in enumerate(SIZES):
        own = (slice(b, b + 1), slice(None), slice(None), slice(height), slice(width))
        single = sample_policy(spec, HostRng(11, *(x[b : b + 1] for x in rng.host[1:])))
        assert torch.equal(rand_augment(clips[own], size_B2[b : b + 1], single, "bilinear"), together[own])


def test_all_frames_of_a_clip_get_the_same_operation(device: torch.device) -> None:
    clips, size_B2 = _clips(device)
    still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    policy = sample_policy(RandAugmentSpec(prob=1.0), ClipRng.on(device, seed=3, epoch=1, sample=[1, 2, 3]).host)
    result = rand_augment(still, size_B2, policy, "bicubic")
    for t in range(1, 4):
        assert torch.equal(result[:, :, t], result[:, :, 0])


def test_every_device_gives_the_same_operations_and_nearly_the_same_pixels(device: torch.device) -> None:
    def clips(on: torch.device) -> torch.Tensor:
        frames, size_B2 = _clips(on)
        rng = ClipRng.on(on, seed=4, epoch=0, sample=[1, 2, 3])
        return rand_augment(frames, size_B2, sample_policy(RandAugmentSpec(prob=1.0), rng.host), "bicubic").cpu()

    difference = (clips(device).int() - clips(torch.device("cpu")).int()).abs()
    assert float((difference > 0).float().mean()) < 0.01


def _policy(count: int, **keys: float) -> Policy:
    rng = ClipRng.on("cpu", seed=2, epoch=0, sample=np.arange(count, dtype=np.uint64))
    return sample_policy(msgspec.convert(keys, RandAugmentSpec), rng.host)


def test_operations_are_sampled_equally_often_and_half_of_them_applied() -> None:
    policy = _policy(15000)
    assert policy.op_BL.shape == (15000, 4)
    counts = Counter(policy.op_BL.ravel().tolist())
    assert set(counts) == {-1, *map(int, Op)}
    assert abs(counts[-1] - 30000) < 5 * math.sqrt(15000)
    assert all(abs(counts[int(op)] - 2000) < 5 * math.sqrt(2000) for op in Op)
    assert abs((policy.sign_BL == 1).mean() - 0.5) < 0.01


def test_magnitudes_are_normal_and_clipped() -> None:
    level = np.sort(_policy(5000).level_BL.ravel())
    expected = np.array([0.5 * (1 + math.erf((x - 7) / (0.5 * math.sqrt(2)))) for x in level])
    # Kolmogorov-Smirnov: the distance exceeds 1.95 / √n in one of 1000 samples.
    assert np.abs(expected - np.arange(1, len(level) + 1) / len(level)).max() < 1.95 / math.sqrt(len(level))
    wide = _policy(2000, magnitude=9.5, magnitude_std=3.0).level_BL
    assert wide.max() == 10
    assert 0.35 < (wide == 10).mean() < 0.52
    assert (_policy(10, magnitude_std=0.0).level_BL == 7).all()


def test_operations_are_those_of_the_reference_rng() -> None:
    policy = _policy(20, prob=1.0)
    for sample in range(20):
        one = reference.Rng(seed=2, epoch=0, sample=sample)
        ops = [one.integer(Purpose.RANDAUGMENT_OP, 15, i) for i in range(4)]
        assert policy.op_BL[sample].tolist() == ops


def test_strength_grows_with_the_magnitude() -> None:
    assert [strength_of(Op.POSTERIZE, v, 1.0) for v in (0.0, 2.5, 7.0, 10.0)] == [4, 3, 2, 0]
    assert [strength_of(Op.SOLARIZE, v, 1.0) for v in (0.0, 5.0, 10.0)] == [256, 128, 0]
    assert strength_of(Op.SOLARIZE_ADD, 7.0, 1.0) == 77
    assert strength_of(Op.BRIGHTNESS, 10.0, -1.0) == pytest.approx(0.1)
    assert strength_of(Op.ROTATE, 10.0, -1.0) == -30


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"layers": 0}, "layers = 0"),
        ({"magnitude": 11.0}, "magnitude = 11"),
        ({"magnitude_std": -1.0}, "magnitude_std"),
        ({"prob": 1.5}, "prob = 1.5"),
        ({"interpolation": "nearest"}, "nearest"),
    ],
)
def test_impossible_settings_are_refused_by_name(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, RandAugmentSpec)


def test_nothing_waits_for_the_device_and_no_global_generator_is_touched(device: torch.device) -> None:
    clips, size_B2 = _clips(device)
    policy = sample_policy(
        RandAugmentSpec(prob=1.0, layers=40), ClipRng.on("cpu", seed=4, epoch=0, sample=[1, 2, 3]).host
    )
    before = torch.random.get_rng_state()
    rand_augment(clips, size_B2, policy, "bicubic")
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        rand_augment(clips, size_B2, policy, "bicubic")
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.random.get_rng_state(), before)
