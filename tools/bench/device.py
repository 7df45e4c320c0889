"""Planes of a batch → normalised clips: full frames, boxes, Kornia's VideoSequential, and PIL frame by frame.

    python -m tools.bench.device DATA [--clips 16] [--rounds 5] [--size 224] [--device cpu]

DATA is a folder of shards; its first samples are the batch, repeated as needed. Each way makes a random resized crop
with antialias, a flip and the normalisation. The ways take turns. Decoding is not counted. Kornia gets RGB of the
batch, which is part of its time; PIL gets RGB frames that were made before, as decord gives them. The last lines tell
by how much clips of boxes differ from those of full frames, in grey levels.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch
from kornia.augmentation import Normalize, RandomHorizontalFlip, RandomResizedCrop, VideoSequential
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vmae_data.read.batches import Request
from vmae_data.read.dataset import Shards
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import Planes, planes_of_views, planes_to_rgb
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.clips.rng import ClipRng

FRAMES, BOXES = 16, 4  # boxes of each sample that are compared
MIB = 1 << 20


def read_batch(data: str, clips: int, device: torch.device) -> Batch:
    shards = Shards.open(data)
    samples = tuple(number % len(shards) for number in range(clips))
    request = Request(0, 0, samples)
    spec = LoaderSpec(workers=0, ahead=1)
    with ClipLoader(
        shards, StrideSampler(FRAMES, 1), [request], batch=clips, frames=FRAMES, seed=0, spec=spec, device=device
    ) as loader:
        return next(iter(loader))


def ours(batch: Batch, size: int, **keys: Any) -> Callable[[], Tensor]:
    augment = Augment(msgspec.convert({"size": size, "flip": True, **keys}, AugmentSpec))
    augment.to(batch.planes.y_BTHW.device)

    def clips() -> Tensor:
        planes = planes_of_views(batch.planes, batch.index_BVT)
        return augment.normalise(augment(planes, augment.sample_boxes(planes.size_B2, batch.rng, batch.may_flip_B)))

    return clips


def kornia(batch: Batch, size: int) -> Callable[[], Tensor]:
    sequence = VideoSequential(
        RandomResizedCrop((size, size), align_corners=False),
        RandomHorizontalFlip(),
        Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_format="BCTHW",
    )

    def clips() -> Tensor:
        rgb = planes_to_rgb(planes_of_views(batch.planes, batch.index_BVT))
        made: Tensor = sequence(rgb.div_(255))
        return made

    return clips


def pil(frames: list[NDArray[np.uint8]], size: int) -> Callable[[], Tensor]:
    """A box for each clip, then each frame by itself, as a transform of a data set works."""
    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def clip(frames_THWC: NDArray[np.uint8]) -> Tensor:
        height, width = frames_THWC.shape[1:3]
        box_height, box_width = box_sides(rng, height, width)
        top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
        flip, crops = rng.random() < 0.5, []
        for frame in frames_THWC:
            crop = Image.fromarray(frame).crop((left, top, left + box_width, top + box_height))
            crop = crop.resize((size, size), Image.Resampling.BILINEAR)
            crops.append(np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop))
        return (torch.from_numpy(np.stack(crops)).permute(3, 0, 1, 2).float() / 255 - mean) / std

    return lambda: torch.stack([clip(one) for one in frames])


def box_sides(rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    while True:
        area, ratio = height * width * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        sides = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if sides[0] <= height and sides[1] <= width:
            return sides


def rgb_frames(planes: Planes) -> list[NDArray[np.uint8]]:
    """The frames of each sample without their padding."""
    found = []
    for number, (height, width) in enumerate(planes.size_B2.tolist()):
        one = Planes(*(x[number : number + 1] for x in planes))
        rgb = planes_to_rgb(one)[0, :, :, :height, :width].round().to(torch.uint8)
        found.append(np.ascontiguousarray(rgb.permute(1, 2, 3, 0).cpu().numpy()))
    return found


def measure(make: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds (CPU time of this process on a CPU) and MiB at the peak, above what existed before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, started_at = torch.cuda.memory_allocated(), time.perf_counter()
        make()
        torch.cuda.synchronize()
        return time.perf_counter() - started_at, (torch.cuda.max_memory_allocated() - before) / MIB
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc: else an earlier way's memory hides the growth
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before_kib, started_at = _kib("VmRSS"), time.process_time()
    make()
    return time.process_time() - started_at, (_kib("VmHWM") - before_kib) / 1024


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def differences(planes: Planes, size: int) -> None:
    """One sample at a time, with boxes of its own."""
    for crop, antialias in product(("multiscale", "resized"), (True, False)):
        most, over, total, values = 0.0, 0, 0.0, 0
        for number in range(len(planes.y_BTHW)):
            one = Planes(*(x[number : number + 1] for x in planes))
            rng = ClipRng.on(one.y_BTHW.device, seed=1, epoch=0, sample=[number]).repeated(BOXES)
            frame, box = (
                Augment(
                    msgspec.convert({"size": size, "crop": crop, "antialias": antialias, "convert": way}, AugmentSpec)
                )
                for way in ("frame", "box")
            )
            boxes = frame.sample_boxes(one.size_B2, rng, torch.ones_like(one.full_range_B))
            gap = (frame(one, boxes) - box(one, boxes)).abs()
            most, total, values = max(most, gap.max().item()), total + gap.sum().item(), values + gap.numel()
            over += int((gap > 0.01).sum())
        print(
            f"{crop}, antialias {antialias}: at most {most:.4f}, mean {total / values:.1e}, "
            f"{100 * over / values:.4f} % above 0.01"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    batch = read_batch(options.data, options.clips, device)
    planes = planes_of_views(batch.planes, batch.index_BVT)
    keys = {"crop": "resized", "antialias": True}
    ways: dict[str, Callable[[], Tensor]] = {
        "full frames": ours(batch, options.size, **keys, convert="frame"),
        "boxes": ours(batch, options.size, **keys, convert="box"),
        "full frames, multiscale": ours(batch, options.size, convert="frame"),
        "boxes, multiscale": ours(batch, options.size, convert="box"),
        "Kornia VideoSequential": kornia(batch, options.size),
        "PIL, RGB given": pil(rgb_frames(planes), options.size),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):
        for name, way in ways.items():
            results[name].append(measure(way, device))
    padded = " × ".join(map(str, planes.y_BTHW.shape[2:]))
    print(
        f"{options.clips} clips of {FRAMES} frames, padded to {padded} → {options.size}, {device}, {options.threads} "
        f"threads, torch {torch.__version__}"
    )
    for name, rounds in results.items():
        seconds = median(one for one, _ in rounds[1:])  # the first round warms up
        mib = median(one for _, one in rounds[1:])
        print(f"  {name:24} {1000 * seconds / options.clips:8.1f} ms a clip {mib / options.clips:8.1f} MiB a clip")
    differences(Planes(*(x[: len(set(batch.request.samples))] for x in planes)), options.size)


if __name__ == "__main__":
    main()
