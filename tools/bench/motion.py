"""What motion vectors cost a decode worker: CPU time of a clip with and without them, in turns.

    python -m tools.bench.motion VIDEOS [--profile h264] [--rounds 7] [--clips 60]

Builds shards of the videos with the default recipe and the given profile. A clip is 16 kept frames from a random start,
the same ones both ways. A worker reads the range, checks its checksum, decodes the frames into a shared buffer and,
with vectors, sums them up for each cell. The masks themselves are made later: `masks` is the CPU time of a clip's mask
for both kinds, 224 pixels, patch 16.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.motion import cells_of
from vmae_data.processes import KEPT_BY_WORKERS, keep_freed_memory
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.read.shared_buffers import BufferLayout, SharedBuffers
from vmae_data.read.stream import ClipFrames, ClipRequest, DataPart, Decoder
from vmae_data.read.table import SampleView
from vmae_data.rng import Rng
from vmae_train.clips.boxes import multiscale_boxes
from vmae_train.clips.mask import Grid, MaskSpec, motion_of_patches, sample_mask
from vmae_train.clips.rng import ClipRng

FRAMES, BATCH = 16, 8
GRID = Grid(8, 14, 14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEOS")
    parser.add_argument("--profile", default="h264")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=60, help="of each round [default: %(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(KEPT_BY_WORKERS)
    with tempfile.TemporaryDirectory() as name:
        spec = BuildSpec(profile=options.profile)
        build_shards(options.videos, Path(name) / "shards", spec, style=ProgressStyle.QUIET)
        shards = Shards.open(str(Path(name) / "shards"))
        height, width = (int(side) for side in shards.size_N2.max(axis=0))
        buffers = SharedBuffers(1, BufferLayout(1, FRAMES, height, width))
        parts = [DataPart(shards.url, shards.digest, 0, _choose)]
        ways = {"without": Decoder(parts, buffers), "with": Decoder(parts, buffers, motion=True)}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way, decoder in ways.items():
                spent[way].append(_seconds(decoder, len(shards), number, options.clips))
        ratios = [own / other for own, other in zip(spent["with"][1:], spent["without"][1:], strict=True)]
        print(f"{options.profile}, {len(shards)} samples of at most {height} × {width}")
        for way, rounds in spent.items():
            milliseconds = 1000 * median(rounds[1:])  # the first round is not counted
            print(f"{way}: {milliseconds:.2f} ms of CPU a clip, {1000 / milliseconds:.1f} clips per CPU second")
        print(f"with / without: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    for kind, seconds in _mask_seconds(height, width, options.rounds).items():
        print(f"masks, {kind}: {1000 * seconds:.2f} ms of CPU a clip")


def _choose(view: SampleView, rng: Rng) -> ClipFrames:
    start = random.Random(rng.epoch).randrange(view.frames - FRAMES + 1)
    return ClipFrames(tuple(range(start, start + FRAMES)), np.arange(FRAMES)[None])


def _seconds(decoder: Decoder, samples: int, number: int, clips: int) -> float:
    """CPU seconds of a clip. Raises SystemExit for a sample that can't be read."""
    started_at = time.process_time()
    for clip in range(clips):
        [decoded] = decoder.fill(0, [ClipRequest(0, clip % samples, 0, number * clips + clip)]).clips
        if decoded.error:
            raise SystemExit(str(decoded.error))
    return (time.process_time() - started_at) / clips


def _mask_seconds(height: int, width: int, rounds: int) -> dict[str, float]:
    """CPU seconds of a clip's mask, in batches."""
    rng = ClipRng.on("cpu", seed=0, epoch=0, sample=list(range(BATCH)))
    boxes = multiscale_boxes(torch.tensor([[height, width]] * BATCH), rng, size=224)
    cells = np.random.default_rng(0).integers(0, 40, (BATCH, FRAMES, *cells_of(height, width)), np.int32)
    motion = torch.from_numpy(cells)

    def motion_mask() -> None:
        sample_mask(MaskSpec(kind="motion"), rng, GRID, motion_of_patches(motion, None, boxes, GRID))

    def tube_mask() -> None:
        sample_mask(MaskSpec(), rng, GRID)

    spent: dict[str, list[float]] = {"tube": [], "motion": []}
    for _ in range(rounds + 1):
        for kind, make in (("tube", tube_mask), ("motion", motion_mask)):
            started_at = time.process_time()
            for _ in range(10):
                make()
            spent[kind].append((time.process_time() - started_at) / 10 / BATCH)
    return {kind: median(times[1:]) for kind, times in spent.items()}


if __name__ == "__main__":
    main()
