"""Clips made of what their boxes need, compared with clips made of full frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import msgspec
import numpy as np
import pytest
import torch

from tools.bench import device as device_benchmark
from vmae_data.recipes import list_recipes, load_recipe
from vmae_train.clips.augment import CLIPS_AT_ONCE, Augment, AugmentSpec
from vmae_train.clips.colour import Planes
from vmae_train.clips.rng import ClipRng
from vmae_train.console import spec_of
from vmae_train.footprint import _Memory

SIZE = 32
CPU = torch.device("cpu")


def _noise(sizes: list[tuple[int, int]], padded: tuple[int, int], device: torch.device = CPU) -> Planes:
    """Noise, in the padding too. The colours of many pixels are clamped."""
    generator = torch.Generator().manual_seed(7)

    def plane(divisor: int) -> torch.Tensor:
        shape = (len(sizes), 2, *(-(-side // divisor) for side in padded))
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)

    kinds = torch.arange(len(sizes), device=device)
    return Planes(plane(1), plane(2), plane(2), torch.tensor(sizes, device=device), kinds % 2, kinds % 3 == 0)


def _clips(planes: Planes, convert: str, *, repeats: int = 1, reads_boxes: bool = True, **keys: Any) -> torch.Tensor:
    spec = msgspec.convert({"size": SIZE, "flip": True, "convert": convert, **keys}, AugmentSpec)
    device = planes.y_BTHW.device
    augment = Augment(spec).to(device)
    augment.reads_boxes = reads_boxes
    samples = np.arange(len(planes.y_BTHW), dtype=np.uint64)
    rng = ClipRng.on(device, seed=1, epoch=0, sample=samples).repeated(repeats)
    may_flip_B = torch.ones(len(samples), dtype=torch.bool, device=device)
    return augment(planes, augment.sample_boxes(planes.size_B2, rng, may_flip_B), augment.sample_policy(rng))


SIZES = [(36, 48), (48, 36), (32, 64), (40, 40), (50, 70), (70, 50), (32, 32), (64, 32), (44, 60)]
assert len(SIZES) > CLIPS_AT_ONCE


@pytest.mark.parametrize("reads_boxes", [True, False], ids=["own region", "common size"])
@pytest.mark.parametrize("padded", [(70, 70), (71, 73)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("crop", ["multiscale", "random", "resized", "center"])
def test_clips_of_boxes_are_those_of_frames(
    crop: str, antialias: bool, padded: tuple[int, int], reads_boxes: bool, device: torch.device
) -> None:
    planes = _noise(SIZES, padded, device)
    keys = {"crop": crop, "antialias": antialias, "repeats": 2}
    frames = _clips(planes, "frame", **keys)
    boxes = _clips(planes, "box", reads_boxes=reads_boxes, **keys)
    assert boxes.shape == (2 * len(SIZES), 3, 2, SIZE, SIZE)
    assert (boxes - frames).abs().max() < 0.02  # grey levels


@pytest.mark.parametrize("reads_boxes", [True, False])
def test_randaugment_of_boxes_is_that_of_frames(reads_boxes: bool, device: torch.device) -> None:
    planes, keys = _noise(SIZES, (70, 70), device), {"crop": "resized", "repeats": 2, "randaugment": {"prob": 0.8}}
    frames, boxes = _clips(planes, "frame", **keys), _clips(planes, "box", reads_boxes=reads_boxes, **keys)
    assert (boxes - frames).abs().max() < 0.02


def test_one_batch_takes_less_than_half_of_the_memory() -> None:
    """Above the clips themselves. Portrait and landscape frames together pad each other."""
    peaks = {}
    for padded in ((256, 340), (340, 340)):
        planes = _noise([(256, 340)] * 4 if padded[0] == 256 else [(256, 340), (340, 256)] * 2, padded)
        for convert in ("frame", "box"):
            with _Memory() as memory:
                _clips(planes, convert, size=224)
            peaks[convert] = memory.peak
        assert peaks["box"] < 0.5 * peaks["frame"]


def test_the_benchmark_compares_the_ways(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--clips", "2", "--rounds", "1", "--size", "32"]
    monkeypatch.setattr("sys.argv", ["device", str(demo_shards), *small])
    device_benchmark.main()
    printed = capsys.readouterr().out
    for way in ("full frames", "boxes", "Kornia VideoSequential", "PIL, RGB given"):
        assert f"  {way} " in printed
    assert printed.count("at most 0.0") == 4


@pytest.mark.parametrize("name", list_recipes("vmae_train"))
def test_official_recipes_convert_frames_as_published(name: str) -> None:
    convert = load_recipe("vmae_train", name, spec_of(name)).augment.convert
    measured_with_frames = name.endswith("-official") or "demo" in name
    assert convert == ("frame" if measured_with_frames else "box")


@pytest.mark.slow
def test_the_compiled_function_has_no_break(device: torch.device) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        _compiled_equals_plain(device)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _compiled_equals_plain(device: torch.device) -> None:
    planes = _noise(SIZES[:3], (70, 70), device)
    augment = Augment(AugmentSpec(size=SIZE, convert="box")).to(device)
    augment.reads_boxes = False
    rng = ClipRng.on(device, seed=1, epoch=0, sample=np.arange(3, dtype=np.uint64))
    boxes = augment.sample_boxes(planes.size_B2, rng, torch.ones(3, dtype=torch.bool, device=device))
    plain = augment(planes, boxes)
    augment.compile_boxes(backend="eager")  # traces it, and needs no C++ compiler
    assert torch.equal(augment(planes, boxes), plain)
