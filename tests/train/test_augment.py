from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.boxes import Boxes, view_boxes
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.resample import BoxCrop
from vmae_train.clips.rng import ClipRng

CPU = torch.device("cpu")


def _noise(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _planes(
    sizes: list[tuple[int, int]],
    device: torch.device = CPU,
    *,
    num_frames: int = 3,
    padded: tuple[int, int] | None = None,
    padding_seed: int = 99,
    matrix: list[int] | None = None,
    full_range: list[bool] | None = None,
) -> Planes:
    """Noise frames, the same for the same size; the padding is other noise."""
    height, width = padded or (max(h for h, _ in sizes), max(w for _, w in sizes))
    tensors = []
    for plane, half in ((0, False), (1, True), (2, True)):
        shape = ((height + 1) // 2, (width + 1) // 2) if half else (height, width)
        tensor = _noise(padding_seed + plane, len(sizes), num_frames, *shape)
        for b, (h, w) in enumerate(sizes):
            own = (h // 2, w // 2) if half else (h, w)
            tensor[b, :, : own[0], : own[1]] = _noise(1000 * plane + h * 7 + w, num_frames, *own)
        tensors.append(tensor.to(device))
    return Planes(
        *tensors,
        size_B2=torch.tensor(sizes, device=device),
        matrix_B=torch.tensor(matrix or [0] * len(sizes), device=device),
        full_range_B=torch.tensor(full_range or [False] * len(sizes), device=device),
    )


def _rng(samples: int, device: torch.device = CPU, *, seed: int = 1) -> ClipRng:
    return ClipRng.on(device, seed=seed, epoch=0, sample=np.arange(samples, dtype=np.uint64))


def _may_flip(samples: int, device: torch.device = CPU) -> torch.Tensor:
    return torch.ones(samples, dtype=torch.bool, device=device)


@contextmanager
def _waiting_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Colour.


def _reference_rgb(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], *, is_709: bool, full: bool
) -> NDArray[np.float64]:
    """One frame in float64: chroma by interpolation at its sites, colour by inverting RGB → YCbCr."""
    height, width = y.shape

    def upsampled(plane: NDArray[np.uint8]) -> NDArray[np.float64]:
        row_at = (np.arange(height) + 0.5) / 2 - 0.5  # between two rows of luma
        column_at = np.arange(width) / 2  # on the even columns of luma
        tall = np.stack([np.interp(row_at, np.arange(len(plane)), column) for column in plane.T], axis=1)
        return np.stack([np.interp(column_at, np.arange(plane.shape[1]), row) for row in tall])

    red, green, blue = (0.2126, 0.7152, 0.0722) if is_709 else (0.299, 0.587, 0.114)
    luma = np.array([red, green, blue])
    from_rgb = np.stack(
        [
            luma,
            (np.array([0, 0, 1]) - luma) / (2 * (1 - blue)),
            (np.array([1, 0, 0]) - luma) / (2 * (1 - red)),
        ]
    )
    luma_low, luma_span, chroma_span = (0, 255, 255) if full else (16, 219, 224)
    yuv = np.stack(
        [
            (y - float(luma_low)) / luma_span,
            (upsampled(u) - 128) / chroma_span,
            (upsampled(v) - 128) / chroma_span,
        ]
    )
    return np.clip(np.einsum("cd,dhw->chw", np.linalg.inv(from_rgb), yuv) * 255, 0, 255)


def test_colour_equals_a_float64_reference_for_both_matrices_and_ranges(device: torch.device) -> None:
    sizes = [(10, 14), (12, 8), (12, 16), (6, 16)]
    matrix, full_range = [0, 1, 0, 1], [False, False, True, True]
    planes = _planes(sizes, device, matrix=matrix, full_range=full_range)
    rgb = planes_to_rgb(planes).cpu().numpy()
    for b, (h, w) in enumerate(sizes):
        for t in range(3):
            expected = _reference_rgb(
                planes.y_BTHW[b, t, :h, :w].cpu().numpy(),
                planes.u_BTHW[b, t, : h // 2, : w // 2].cpu().numpy(),
                planes.v_BTHW[b, t, : h // 2, : w // 2].cpu().numpy(),
                is_709=matrix[b] == 1,
                full=full_range[b],
            )
            assert np.abs(rgb[b, :, t, :h, :w] - expected).max() < 1e-3


def test_an_odd_padded_size_has_chroma_rounded_up(device: torch.device) -> None:
    odd, even = _planes([(8, 10)], device, padded=(9, 11)), _planes([(8, 10)], device)
    assert torch.equal(planes_to_rgb(odd)[..., :8, :10], planes_to_rgb(even))


# Crop and resize.


def _crop(frame: NDArray[np.uint8], boxes: Boxes, size: int, device: torch.device) -> NDArray[np.float32]:
    """One frame H W C through the Kornia step, to S S C."""
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float().to(device)
    params = {name: value.to(device) for name, value in boxes._asdict().items()}
    out = BoxCrop(size=size, antialias=True)(image, params=params)
    return out[0].permute(1, 2, 0).cpu().numpy()


def _level_difference(ours: NDArray[np.float32], pil: Image.Image) -> int:
    return int(np.abs(ours.round().astype(int) - np.asarray(pil).astype(int)).max())


FRAME_SIZES = [(36, 48), (48, 36), (64, 64), (90, 50), (30, 34), (33, 33), (120, 160), (38, 72)]


@pytest.mark.parametrize("frame_size", FRAME_SIZES)
def test_a_crop_is_pils_crop_and_resize_within_one_grey_level(
    frame_size: tuple[int, int], device: torch.device
) -> None:
    frame = _noise(3, *frame_size, 3).numpy()
    augment = Augment(AugmentSpec(size=32, crop="multiscale"))
    for seed in range(5):
        boxes = augment.sample_boxes(torch.tensor([frame_size]), _rng(1, seed=seed), _may_flip(1))
        top, left, height, width = (int(x) for x in boxes[:4])
        cropped = Image.fromarray(frame).crop((left, top, left + width, top + height))
        expected = cropped.resize((32, 32), Image.Resampling.BILINEAR)
        assert _level_difference(_crop(frame, boxes, 32, device), expected) <= 1


@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("frame_size", FRAME_SIZES)
def test_a_view_is_pils_resize_and_crop_within_one_grey_level(
    frame_size: tuple[int, int], num_crops: int, device: torch.device
) -> None:
    height, width = frame_size
    frame, size = _noise(4, height, width, 3).numpy(), 32
    # The published rule: short side to `size`, the other int(size * long / short); C crops from end to end.
    resized = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    full = Image.fromarray(frame).resize(resized, Image.Resampling.BILINEAR)
    boxes = view_boxes(torch.tensor([frame_size]), num_crops=num_crops, size=size)
    assert len(boxes.top_B) == num_crops
    for crop in range(num_crops):
        spare = max(resized) - size
        start = round(spare / 2) if num_crops == 1 else int(crop * spare / (num_crops - 1))
        left, top = (0, start) if height >= width else (start, 0)
        expected = full.crop((left, top, left + size, top + size))
        one = Boxes(*(x[crop : crop + 1] for x in boxes))
        assert _level_difference(_crop(frame, one, size, device), expected) <= 1


def test_views_are_ordered_sample_by_sample() -> None:
    together = view_boxes(torch.tensor([[36, 48], [60, 40]]), num_crops=3, size=32)
    for b, size in enumerate(([36, 48], [60, 40])):
        single = view_boxes(torch.tensor([size]), num_crops=3, size=32)
        for x, y in zip(together, single, strict=True):
            assert torch.equal(x[3 * b : 3 * b + 3], y)


def test_without_antialias_resizing_is_torchs_plain_bilinear_of_the_crop(device: torch.device) -> None:
    image = _noise(5, 1, 3, 80, 100).float().to(device)
    for top, left, height, width in ((0, 0, 80, 100), (10, 7, 64, 12), (79, 0, 1, 100), (3, 60, 77, 40)):
        limits = torch.tensor([[top, left, top + height, left + width]]).float()
        box = (torch.tensor([float(x)]) for x in (top, left, height, width))
        boxes = Boxes(*box, flip_B=torch.tensor([False]), limits_B4=limits)
        params = {name: value.to(device) for name, value in boxes._asdict().items()}
        ours = BoxCrop(size=32, antialias=False)(image, params=params)
        crop = image[:, :, top : top + height, left : left + width]
        plain = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", align_corners=False)
        assert (ours - plain).abs().max() < 0.02


def test_a_random_crop_does_not_resize(device: torch.device) -> None:
    planes = _planes([(40, 48)] * 6, device)
    augment = Augment(AugmentSpec(size=32, crop="random")).to(device)
    boxes = augment.sample_boxes(planes.size_B2, _rng(6, device), _may_flip(6, device))
    rgb, clips = planes_to_rgb(planes), augment(planes, boxes)
    for b in range(6):
        top, left = int(boxes.top_B[b]), int(boxes.left_B[b])
        expected = rgb[b, :, :, top : top + 32, left : left + 32]
        assert (clips[b] - expected).abs().max() < 1e-4


def test_random_crops_reach_every_position_equally_often() -> None:
    augment = Augment(AugmentSpec(size=32, crop="random"))
    boxes = augment.sample_boxes(torch.tensor([[34, 36]]).expand(15000, 2), _rng(15000), _may_flip(15000))
    counts = Counter(zip(boxes.top_B.tolist(), boxes.left_B.tolist(), strict=True))
    assert set(counts) == {(top, left) for top in range(3) for left in range(5)}
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in counts.values())


# Boxes.


def _published_boxes(height: int, width: int, size: int) -> Counter[tuple[int, ...]]:
    """VideoMAE's MultiScaleCrop as its transforms define it: every box, as often as it is listed."""
    sizes = [int(min(height, width) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    crop_h = [size if abs(x - size) < 3 else x for x in sizes]
    boxes: Counter[tuple[int, ...]] = Counter()
    for i, h in enumerate(crop_h):
        for j, w in enumerate(crop_h):
            if abs(i - j) > 1:
                continue
            step_w, step_h = (width - w) // 4, (height - h) // 4
            for x, y in (
                *[(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2)],
                *[(2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)],
            ):
                boxes[(y * step_h, x * step_w, h, w)] += 1
    return boxes


@pytest.mark.parametrize("frame_size", [(256, 340), (340, 256), (226, 300)])
def test_multiscale_samples_the_130_published_boxes_equally_often(frame_size: tuple[int, int]) -> None:
    listed, count = _published_boxes(*frame_size, 224), 26000
    assert sum(listed.values()) == 130
    augment = Augment(AugmentSpec(size=224, crop="multiscale"))
    boxes = augment.sample_boxes(torch.tensor([frame_size]).expand(count, 2), _rng(count), _may_flip(count))
    sampled = Counter(tuple(int(x) for x in box) for box in torch.stack(boxes[:4], dim=1).tolist())
    assert set(sampled) == set(listed)
    for box, times in listed.items():
        expected = count * times / 130
        assert abs(sampled[box] - expected) < 5 * math.sqrt(expected)


def test_multiscale_sizes_truncate_as_the_published_ones_for_every_short_side() -> None:
    short = torch.arange(32, 1200)
    augment = Augment(AugmentSpec(size=16, crop="multiscale"))
    for seed in range(20):
        boxes = augment.sample_boxes(torch.stack((short, short), 1), _rng(len(short), seed=seed), _may_flip(len(short)))
        for side, height in zip(short.tolist(), boxes.height_B.tolist(), strict=True):
            assert int(height) in {int(side * scale) for scale in (1, 0.875, 0.75, 0.66)}


def test_multiscale_stays_inside_a_frame_a_pixel_smaller_than_the_model() -> None:
    size_B2 = torch.tensor([[222, 300]]).expand(500, 2)
    boxes = Augment(AugmentSpec(size=224)).sample_boxes(size_B2, _rng(500), _may_flip(500))
    assert (boxes.top_B + boxes.height_B <= 222).all()
    assert (boxes.left_B + boxes.width_B <= 300).all()


def test_a_box_depends_on_its_sample_and_not_on_the_batch(device: torch.device) -> None:
    augment = Augment(AugmentSpec(size=32, flip=True)).to(device)
    size_B2 = torch.tensor([[36, 48], [60, 40], [33, 90], [36, 48]], device=device)
    together = augment.sample_boxes(size_B2, _rng(4, device), _may_flip(4, device))
    for b in range(4):
        single = ClipRng.on(device, seed=1, epoch=0, sample=[b])
        for x, y in zip(together, augment.sample_boxes(size_B2[b : b + 1], single, _may_flip(1, device)), strict=True):
            assert torch.equal(x[b : b + 1], y)


# Flips.


def test_a_flip_mirrors_the_clip_exactly(device: torch.device) -> None:
    planes = _planes([(36, 48), (48, 40)], device)
    augment = Augment(AugmentSpec(size=32)).to(device)
    boxes = augment.sample_boxes(planes.size_B2, _rng(2, device), _may_flip(2, device))
    flipped = boxes._replace(flip_B=torch.tensor([True, False], device=device))
    plain, mirrored = augment(planes, boxes), augment(planes, flipped)
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    assert torch.equal(mirrored[1], plain[1])


def test_half_of_the_clips_that_may_flip_are_flipped_and_no_others() -> None:
    size_B2, may_flip_B = torch.tensor([[36, 48]]).expand(4000, 2), torch.arange(4000) < 2000
    flip_B = Augment(AugmentSpec(size=32, flip=True)).sample_boxes(size_B2, _rng(4000), may_flip_B).flip_B
    assert abs(int(flip_B[:2000].sum()) - 1000) < 5 * math.sqrt(500)
    assert not flip_B[2000:].any()
    assert not Augment(AugmentSpec(size=32)).sample_boxes(size_B2, _rng(4000), may_flip_B).flip_B.any()


# Planes to clips.


def test_all_frames_of_a_clip_share_their_box(device: torch.device) -> None:
    planes = _planes([(36, 48), (48, 40)], device, num_frames=1)
    still = planes._replace(
        **{name: getattr(planes, name).expand(-1, 4, -1, -1) for name in ("y_BTHW", "u_BTHW", "v_BTHW")}
    )
    augment = Augment(AugmentSpec(size=32, flip=True)).to(device)
    clips = augment(still, augment.sample_boxes(planes.size_B2, _rng(2, device), _may_flip(2, device)))
    assert clips.shape == (2, 3, 4, 32, 32)
    for t in range(1, 4):
        assert (clips[:, :, t] - clips[:, :, 0]).abs().max() < 1e-3


@pytest.mark.parametrize("crop", ["multiscale", "random", "resized", "center"])
def test_a_batch_of_mixed_sizes_equals_each_single_clip(crop: str, device: torch.device) -> None:
    sizes = [(36, 48), (48, 36), (32, 64), (40, 40)]
    augment = Augment(msgspec.convert({"size": 32, "crop": crop, "flip": True}, AugmentSpec)).to(device)
    planes = _planes(sizes, device, padded=(50, 70), matrix=[0, 1, 1, 0])
    boxes = augment.sample_boxes(planes.size_B2, _rng(4, device), _may_flip(4, device))
    together = augment(planes, boxes)
    for b, size in enumerate(sizes):
        single = _planes([size], device, matrix=[[0, 1, 1, 0][b]])
        clip = augment(single, Boxes(*(x[b : b + 1] for x in boxes)))
        assert (together[b] - clip[0]).abs().max() < 1e-3


@pytest.mark.parametrize("crop", ["multiscale", "random", "resized", "center"])
def test_padding_never_matters(crop: str, device: torch.device) -> None:
    sizes = [(36, 48), (48, 36)]
    augment = Augment(msgspec.convert({"size": 32, "crop": crop}, AugmentSpec)).to(device)
    first, second = (_planes(sizes, device, padded=(60, 60), padding_seed=seed) for seed in (5, 6))
    assert not torch.equal(first.u_BTHW, second.u_BTHW)
    boxes = augment.sample_boxes(first.size_B2, _rng(2, device), _may_flip(2, device))
    assert torch.equal(augment(first, boxes), augment(second, boxes))


def test_several_boxes_per_sample_give_as_many_clips_sample_by_sample(device: torch.device) -> None:
    planes = _planes([(36, 48), (48, 36)], device)
    augment = Augment(AugmentSpec(size=32)).to(device)
    views = view_boxes(planes.size_B2, num_crops=3, size=32)
    clips = augment(planes, views)
    assert clips.shape == (6, 3, 3, 32, 32)
    for crop in range(3):
        one = Boxes(*(x[crop::3] for x in views))
        assert (clips[crop::3] - augment(planes, one)).abs().max() < 1e-3


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_autocast_and_low_matmul_precision_change_no_pixel(precision: str, device: torch.device) -> None:
    planes = _planes([(36, 48), (48, 36)], device)
    augment = Augment(AugmentSpec(size=32, flip=True)).to(device)
    boxes = augment.sample_boxes(planes.size_B2, _rng(2, device), _may_flip(2, device))
    plain = augment(planes, boxes)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mixed = augment(planes, augment.sample_boxes(planes.size_B2, _rng(2, device), _may_flip(2, device)))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_augmenting_touches_no_global_generator_and_never_waits_for_the_device(device: torch.device) -> None:
    planes, rng, may_flip_B = _planes([(36, 48)], device), _rng(1, device), _may_flip(1, device)
    before = torch.random.get_rng_state()
    on_device = torch.cuda.get_rng_state() if device.type == "cuda" else before
    augment = Augment(AugmentSpec(size=32, flip=True)).to(device)
    augment(planes, augment.sample_boxes(planes.size_B2, rng, may_flip_B))
    with _waiting_is_an_error(device):
        augment.normalise(augment(planes, augment.sample_boxes(planes.size_B2, rng, may_flip_B)))
    assert torch.equal(torch.random.get_rng_state(), before)
    if device.type == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), on_device)


def test_clips_on_every_device_are_the_cpus(device: torch.device) -> None:
    def clips(on: torch.device) -> torch.Tensor:
        planes = _planes([(36, 48), (48, 36)], on)
        augment = Augment(AugmentSpec(size=32, flip=True)).to(on)
        boxes = augment.sample_boxes(planes.size_B2, _rng(2, on), _may_flip(2, on))
        return augment(planes, boxes).cpu()

    assert (clips(device) - clips(CPU)).abs().max() < 1e-3


def test_normalising_is_minus_mean_over_std_of_zero_to_one(device: torch.device) -> None:
    augment = Augment(AugmentSpec(size=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))).to(device)
    rgb = _noise(1, 2, 3, 4, 2, 2)
    expected = (rgb.numpy() / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1, 1))) / np.reshape(
        [0.5, 0.25, 2.0], (3, 1, 1, 1)
    )
    assert np.allclose(augment.normalise(rgb.float().to(device)).cpu().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"size": 0}, "size = 0: expected 1 to"),
        ({"size": 32, "std": [0.1, 0.0, 0.1]}, "std above 0"),
        ({"size": 32, "crop": "five"}, "crop"),
        ({"size": 32, "scale": [0.0, 1.0]}, "augment.scale"),
        ({"size": 32, "ratio": [2.0, 1.0]}, "augment.ratio"),
        ({"size": 32, "colour": True}, "colour"),
    ],
)
def test_impossible_settings_are_refused_by_name(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, AugmentSpec)
