"""How crops from YUV planes differ from the published RGB crops, and what each augmentation costs.

    python -m tools.bench.augment gap VIDEO...
    python -m tools.bench.augment cost VIDEO [--clips 4] [--device cpu]

`gap` compares 16 frames of each video in 20 random boxes of MultiScaleCrop. The published way converts to RGB with
ffmpeg, then crops and resizes with PIL, bilinear. Differences are in grey levels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.erasing import ErasingSpec
from vmae_train.clips.mixup import MixupSpec, mixup_clips, sample_mixup
from vmae_train.clips.randaugment import Op, Policy, RandAugmentSpec, rand_augment, sample_policy
from vmae_train.clips.rng import ClipRng

SIZE, FRAMES, BOXES = 224, 16, 20
BT709_FROM_LINES = 720


def gap(video: Path) -> None:
    clip = read_real_clip(video, num_frames=FRAMES, first=5)
    rgb = planes_to_rgb(clip.planes)[0].permute(1, 2, 3, 0).numpy()
    difference = np.abs(rgb - clip.rgb_THWC)
    print(f"{video.name}: RGB of the full frame {_summary(difference)}")
    for antialias in (True, False):
        augment = Augment(AugmentSpec(size=SIZE, antialias=antialias))
        differences = []
        for sample in range(BOXES):
            rng = ClipRng.on("cpu", seed=0, epoch=0, sample=[sample])
            boxes = augment.sample_boxes(clip.planes.size_B2, rng, torch.tensor([False]))
            ours = augment(clip.planes, boxes)[0].permute(1, 2, 3, 0).numpy()
            top, left, height, width = (int(x) for x in boxes[:4])
            for t in range(0, FRAMES, 5):
                crop = Image.fromarray(clip.rgb_THWC[t]).crop((left, top, left + width, top + height))
                differences.append(np.abs(ours[t] - np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))))
        print(f"  crops {'with' if antialias else 'without'} antialias {_summary(np.concatenate(differences))}")


def _summary(difference: np.ndarray) -> str:
    high = np.quantile(difference, 0.99)
    return f"mean {difference.mean():.3f}, 99 % below {high:.2f}, at most {difference.max():.1f}"


def cost(video: Path, num_clips: int, device: str) -> None:
    one = read_real_clip(video, num_frames=FRAMES, first=5).planes
    planes = Planes(*(x.repeat(num_clips, *[1] * (x.ndim - 1)).to(device) for x in one))
    rng = ClipRng.on(device, seed=0, epoch=0, sample=np.arange(num_clips, dtype=np.uint64))
    may_flip_B = torch.ones(num_clips, dtype=torch.bool, device=device)

    def crop(**keys: object) -> Callable[[], object]:
        augment = Augment(AugmentSpec(size=SIZE, **keys)).to(device)  # type: ignore[arg-type]
        return lambda: augment(
            planes, augment.sample_boxes(planes.size_B2, rng, may_flip_B), augment.sample_policy(rng)
        )

    frames = planes_to_rgb(planes).round().to(torch.uint8)
    clips = torch.randn(num_clips, 3, FRAMES, SIZE, SIZE, device=device)
    mixing = MixupSpec(mixup=0.8, cutmix=1.0, mix_group=num_clips)
    erasing = Augment(AugmentSpec(size=SIZE, erasing=ErasingSpec(prob=1.0))).to(device)
    height, width = planes.size_B2[0].tolist()
    print(
        f"{num_clips} clips of {FRAMES} × {height} × {width}, {device}, {torch.get_num_threads()} CPU threads; ms a clip, CPU time on a CPU"
    )
    steps: dict[str, Callable[[], object]] = {
        "colour": lambda: planes_to_rgb(planes),
        "colour, multiscale crop, flip": crop(flip=True),
        "the same without antialias": crop(flip=True, antialias=False),
        "colour, resized crop without antialias, flip": crop(flip=True, crop="resized", antialias=False),
        "the same with RandAugment, bicubic": crop(
            flip=True, crop="resized", antialias=False, randaugment=RandAugmentSpec()
        ),
        "RandAugment's random choices": lambda: sample_policy(RandAugmentSpec(), rng.host),
        "erasing, every clip": lambda: erasing.erase(clips, rng),
        "mixup or CutMix": lambda: mixup_clips(
            clips, sample_mixup(mixing, rng, may_flip_B.float(), repeats=1, size=SIZE)
        ),
    }
    for op in Op:
        shape = (num_clips, 1)
        policy = Policy(np.full(shape, int(op)), np.full(shape, 7.0), np.full(shape, 1.0))
        steps[f"RandAugment {op.name}"] = lambda policy=policy: rand_augment(frames, planes.size_B2, policy, "bicubic")
    for name, step in steps.items():
        print(f"  {name:48} {_milliseconds(step, device) / num_clips:8.2f}")


def _milliseconds(step: Callable[[], object], device: str) -> float:
    """On a CPU the time of this process, so that other programs do not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(6):
        started_at = clock()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - started_at))
    return median(times[1:])


class RealClip(NamedTuple):
    """A clip of a real video as planes, and as RGB by ffmpeg's converter (T, H, W, 3), as decord gives it."""

    planes: Planes
    rgb_THWC: NDArray[np.uint8]


def read_real_clip(path: Path, *, num_frames: int, first: int) -> RealClip:
    """Frames `first`, `first + 1` … of a video that is stored as yuv420p, limited range. Raises SystemExit otherwise."""
    with av.open(str(path)) as container:
        frames = list(islice(container.decode(video=0), first, first + num_frames))
    names = {frame.format.name for frame in frames}
    if len(frames) < num_frames or names != {"yuv420p"}:
        raise SystemExit(f"{path}: {len(frames)} frames of {', '.join(names)}; expected {num_frames} of yuv420p")
    height, width = frames[0].height // 2 * 2, frames[0].width // 2 * 2
    is_709 = frames[0].colorspace == 1 or (frames[0].colorspace == 2 and height >= BT709_FROM_LINES)
    planes = [np.stack([_plane(frame, i) for frame in frames])[None] for i in range(3)]
    rgb = np.stack([frame.to_ndarray(format="rgb24")[:height, :width] for frame in frames])
    return RealClip(
        Planes(
            torch.from_numpy(planes[0][..., :height, :width].copy()),
            torch.from_numpy(planes[1][..., : height // 2, : width // 2].copy()),
            torch.from_numpy(planes[2][..., : height // 2, : width // 2].copy()),
            size_B2=torch.tensor([[height, width]]),
            matrix_B=torch.tensor([int(is_709)]),
            full_range_B=torch.tensor([False]),
        ),
        rgb,
    )


def _plane(frame: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    plane = frame.planes[i]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gap", "cost"))
    parser.add_argument("video", type=Path, nargs="+")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for video in options.video:
        gap(video) if options.what == "gap" else cost(video, options.clips, options.device)


if __name__ == "__main__":
    main()
