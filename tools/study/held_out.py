"""The masked loss of a pretraining on videos that it was not trained on.

    python -m tools.study.held_out RUN --data SHARDS --out FILE [--videos 400] [--seed 0]

The mask is that of the run. The middle clip of each video is scored, at the centre. The same seed gives the same
videos and masks. Losses of runs with other masks are not comparable.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import msgspec
import torch

from vmae_data.read.dataset import Shards
from vmae_data.storage import commit_bytes
from vmae_train.inference.reconstruct import load_pretrained, mask_specs, reconstruct_shards
from vmae_train.runs.metadata import run_clip

__all__ = ["HeldOut", "held_out_loss"]


class HeldOut(msgspec.Struct, frozen=True):
    """The mean over the videos, and the number of videos."""

    loss: float
    videos: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores = held_out_loss(options.run, options.data, options.videos, options.seed)
    commit_bytes(options.out, msgspec.json.encode(scores))


def held_out_loss(run: str, data: str, videos: int, seed: int) -> HeldOut:
    """Raises SystemExit if a video cannot be read."""
    model = load_pretrained(run, "cpu")
    masks = mask_specs(run, model.geometry)
    shards = Shards.open(data)
    clips, unreadable = reconstruct_shards(
        model, shards, clip=run_clip(run), videos=min(videos, len(shards)), masks=masks, seed=seed
    )
    if unreadable:
        raise SystemExit(f"{data}: {len(unreadable)} videos cannot be read. Run `vmae-shard verify {data}`")
    return HeldOut(statistics.mean(clip.masks[0].loss for clip in clips), len(clips))


if __name__ == "__main__":
    main()
