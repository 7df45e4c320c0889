"""Masks that follow the motion vectors of the shards, with motion that is planted."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_runs import TINY_RUN, pretrain_tiny
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.boxes import Boxes
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.clips.mask import Grid, MaskSpec, batch_mask, motion_of_patches, sample_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.distributed import Distributed
from vmae_train.inference.reconstruct import reconstruct, reconstruct_file
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec
from vmae_train.training.setup import set_up_training

HEIGHT, WIDTH, SQUARE, SPEED = 64, 96, 16, 2
TOP, START = 16, 8  # where the square is in the first frame
GRID = Grid(8, 8, 8)
MOTION = MaskSpec(kind="motion", ratio=0.75)


@pytest.fixture(scope="module")
def square_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of a square that moves to the right on a still background, both of noise."""
    folder = tmp_path_factory.mktemp("motion") / "videos"
    folder.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number)
        frames = np.repeat(noise.integers(60, 120, (1, HEIGHT, WIDTH), dtype=np.uint8), 20, axis=0)
        square = noise.integers(130, 250, (SQUARE, SQUARE), dtype=np.uint8)
        for time, frame in enumerate(frames):
            left = START + SPEED * time
            frame[TOP : TOP + SQUARE, left : left + SQUARE] = square
        raw = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-")
        command = [find_ffmpeg().path, *raw, "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv420p"]
        subprocess.run([*command, folder / f"{number}.mp4"], input=frames.tobytes(), check=True, capture_output=True)
    return folder


def _build(videos: Path, name: str, **spec: object) -> Path:
    build = BuildSpec(**{"short_side": HEIGHT, "stride": 1, "samples_per_shard": 2, **spec})  # type: ignore[arg-type]
    build_shards(str(videos), videos.parent / name, build, style=ProgressStyle.QUIET)
    return videos.parent / name


@pytest.fixture(scope="module")
def square_shards(square_videos: Path) -> Path:
    return _build(square_videos, "shards")


def _load(shards: Path, workers: int = 0, samples: Sequence[int] = (0, 1, 2, 3), *, motion: bool = True) -> Batch:
    with ClipLoader(
        Shards.open(str(shards)),
        StrideSampler(16, 1),
        [Request(0, 0, tuple(samples))],
        batch=len(samples),
        frames=16,
        seed=3,
        spec=LoaderSpec(workers=workers),
        motion=motion,
    ) as loader:
        (batch,) = loader
    return batch


def _boxes(top: int, left: int, height: int, width: int, *, flip: bool, count: int = 4) -> Boxes:
    sides = [torch.full((count,), float(side)) for side in (top, left, height, width)]
    limits = torch.tensor([[top, left, top + height, left + width]] * count).float()
    return Boxes(*sides, torch.full((count,), flip), limits)


def _on_path(box: Boxes) -> Tensor:
    """The patches of GRID that the box of the first clip has on the square's whole path, without their slice."""
    top, left, height, width = (int(side[0]) for side in box[:4])
    row = (torch.arange(GRID.rows) + 0.5) * height / GRID.rows + top
    column = (torch.arange(GRID.columns) + 0.5) * width / GRID.columns + left
    column = column.flip(0) if box.flip_B[0] else column
    rows = (row > TOP) & (row < TOP + SQUARE)
    columns = (column > START) & (column < START + SQUARE + 19 * SPEED)
    return (rows[:, None] & columns).flatten()


def _is_masked(masked_BM: Tensor, grid: Grid = GRID) -> Tensor:
    return torch.zeros(len(masked_BM), grid.tokens, dtype=torch.bool).scatter(1, masked_BM, True)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 32, 64, 64), (8, 16, 32, 48)])
def test_motion_lies_on_the_path_of_a_moving_square_through_crop_and_flip(
    box: tuple[int, int, int, int], flip: bool, square_shards: Path
) -> None:
    batch, boxes = _load(square_shards), _boxes(*box, flip=flip)
    assert batch.motion_BFHW is not None
    motion = motion_of_patches(batch.motion_BFHW, None, boxes, GRID).float().mean(dim=(0, 1))
    path = _on_path(boxes)
    assert 0 < path.sum() <= GRID.patches / 2
    assert motion[path].mean() > 8 * motion[~path].mean()
    mirrored = motion_of_patches(batch.motion_BFHW, None, _boxes(*box, flip=not flip), GRID).float().mean(dim=(0, 1))
    assert torch.equal(mirrored.reshape(8, 8).flip(1), motion.reshape(8, 8))


def test_the_length_of_the_vectors_is_the_speed_of_the_square(square_videos: Path) -> None:
    """In MPEG-4 of this project each frame is predicted from the one before it."""
    motion_BFHW = _load(_build(square_videos, "shards-mpeg4", profile="mpeg4", qscale=1)).motion_BFHW
    assert motion_BFHW is not None
    assert motion_BFHW.shape == (4, 16, HEIGHT // 8, WIDTH // 8)
    moving = motion_BFHW[motion_BFHW > 0]
    assert float(moving.float().median()) == 4 * SPEED


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_moving_patches_are_masked_at_the_rate_of_their_weight(weight: float, device: torch.device) -> None:
    """E / w of a patch is below t with the probability 1 - exp(-w t), and t follows from the ratio."""
    samples, patches, moving, ratio = 400, 196, 20, 0.5
    motion = torch.zeros(samples, 2, patches, dtype=torch.int64, device=device)
    motion[..., :moving] = 12
    rng = ClipRng.on(device, seed=1, epoch=0, sample=list(range(samples)))
    spec = MaskSpec(kind="motion", ratio=ratio, motion_weight=weight)
    grid = Grid(2, 14, 14)
    is_masked = _is_masked(sample_mask(spec, rng, grid, motion).masked_BM.cpu(), grid).reshape(samples, 2, patches)
    own = 1 + weight * patches / moving
    low, high = 0.0, 10.0
    for _ in range(60):
        t = (low + high) / 2
        masked = moving * (1 - np.exp(-own * t)) + (patches - moving) * (1 - np.exp(-t))
        low, high = (t, high) if masked < ratio * patches else (low, t)
    assert float(is_masked[..., :moving].float().mean()) == pytest.approx(1 - np.exp(-own * t), abs=0.01)
    assert float(is_masked[..., moving:].float().mean()) == pytest.approx(1 - np.exp(-t), abs=0.01)


def test_every_slice_has_its_count_and_the_mask_is_a_tube_where_nothing_moves(device: torch.device) -> None:
    rng = ClipRng.on(device, seed=7, epoch=2, sample=list(range(6)))
    motion = torch.randint(0, 90, (6, 8, 64), generator=torch.Generator().manual_seed(0)).to(device)
    motion[0] = 0
    motion[1] = 5
    mask = sample_mask(MOTION, rng, GRID, motion)
    assert (mask.masked_BM.reshape(6, 8, 48) // 64 == torch.arange(8, device=device)[:, None]).all()
    both = torch.cat((mask.visible_BV, mask.masked_BM), dim=1).sort(dim=1).values.cpu()
    assert torch.equal(both, torch.arange(GRID.tokens).expand(6, -1))
    tube = sample_mask(MaskSpec(ratio=0.75), rng, GRID)
    assert torch.equal(mask.masked_BM[:2], tube.masked_BM[:2])
    assert not (mask.masked_BM[2:] == tube.masked_BM[2:]).all(dim=1).any()
    on_cpu = sample_mask(MOTION, ClipRng.of(rng.host, "cpu"), GRID, motion.cpu())
    assert torch.equal(mask.masked_BM.cpu(), on_cpu.masked_BM)


def test_masks_and_frames_are_the_same_with_any_number_of_workers_and_without_motion(square_shards: Path) -> None:
    augment = Augment(AugmentSpec(size=32, crop="multiscale", flip=True))
    samples = (2, PADDING, 0, 3, 1)
    masks, plain = [], _load(square_shards, 1, samples, motion=False)
    assert plain.motion_BFHW is None
    for workers in (0, 1, 3):
        batch = _load(square_shards, workers, samples)
        boxes = augment.sample_boxes(batch.planes.size_B2, batch.rng, batch.may_flip_B)
        masks.append(batch_mask(MOTION, batch.rng, GRID, batch, boxes).masked_BM)
        assert all(torch.equal(own, other) for own, other in zip(batch.planes, plain.planes, strict=True))
        assert torch.equal(masks[0], masks[-1])
        assert batch.motion_BFHW is not None and not batch.motion_BFHW[1].any()
    # A sample's mask depends on nothing else of its batch.
    alone = _load(square_shards, 0, (0,))
    boxes = augment.sample_boxes(alone.planes.size_B2, alone.rng, alone.may_flip_B)
    assert torch.equal(batch_mask(MOTION, alone.rng, GRID, alone, boxes).masked_BM[0], masks[0][2])


def test_repeats_and_views_take_the_motion_of_their_sample_and_frames() -> None:
    motion = torch.zeros(2, 4, 4, 4, dtype=torch.int32)
    motion[1, 3, :2, :2] = 1  # the upper left of the last decoded frame
    boxes = _boxes(0, 0, 32, 32, flip=False, count=4)
    index = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 3, 3]]])
    patches = motion_of_patches(motion, index, boxes, Grid(2, 2, 2))
    assert patches[:2].sum() == 0
    assert patches[2:].tolist() == [[[0] * 4, [2 * 16, 0, 0, 0]]] * 2


def test_a_run_with_motion_masks_resumes_exactly_and_its_reconstruction_has_them(
    demo_shards: Path, tmp_path: Path
) -> None:
    settings = ("mask.kind=motion", "train.repeats=2", "checkpoint.every_steps=2")
    pretrain_tiny(demo_shards, tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000004")
    pretrain_tiny(demo_shards, tmp_path / "resumed", *settings, "loader.workers=2")
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "resumed")
    assert len(_losses(tmp_path / "whole")) == 4
    out = tmp_path / "masked.png"
    assert reconstruct_file(str(tmp_path / "whole"), str(demo_shards), out, videos=2, seed=0, device="cpu") == {}
    assert out.stat().st_size > 0


def _losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


@pytest.mark.parametrize(("spec", "found"), [({"profile": "mjpeg"}, "profile = mjpeg"), ({"gop": 1}, "gop = 1")])
def test_shards_without_vectors_are_refused_before_the_run(
    spec: dict[str, object], found: str, square_videos: Path
) -> None:
    shards = _build(square_videos, f"shards-{found[:3]}", **spec)
    settings = [*TINY_RUN, "mask.kind=motion"]
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings)
    with pytest.raises(MisuseError, match=rf"mask.kind = motion: .* was built with {found}"):
        set_up_training(recipe, [str(shards)], Distributed())


def test_clips_without_vectors_have_no_motion_masks() -> None:
    rng = ClipRng.on("cpu", seed=0, epoch=0, sample=[0])
    with pytest.raises(ValueError, match="the motion of these clips is not known"):
        sample_mask(MOTION, rng, GRID)
    model = PretrainModel(ModelSpec(size="tiny", decoder_depth=1).geometry(), seed=0)
    with pytest.raises(MisuseError, match="needs the motion vectors of shards"):
        reconstruct(model, torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8), mask="motion", ratio=0.75)
    with pytest.raises(ValueError, match="motion_weight = -1"):
        MaskSpec(kind="motion", motion_weight=-1)
