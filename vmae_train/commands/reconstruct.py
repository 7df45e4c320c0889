"""`vmae-train reconstruct`: a pretraining model and videos → a picture of masked and predicted cubes."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Quiet, StorageOptions, option
from vmae_train.commands.options import Checkpoint, Device, need_torch
from vmae_train.commands.output import print_unreadable


def reconstruct(
    checkpoint: Checkpoint,
    data: Annotated[str, option("URL|VIDEO", "Read these shards, or one video file.")],
    out: Annotated[str, option("FILE|URL", "Write a .png with the frames side by side, or an animated .gif.")],
    videos: Annotated[int, option("N", "Show N samples.", min=1, max=1000)] = 4,
    ratio: Annotated[
        float | None, option("SHARE", "Mask this share of the tokens.", "the run's ratio, else 0.9", min=0, max=1)
    ] = None,
    seed: Annotated[int, option("N", "Set the random seed of the masks.", min=0, max=2**63 - 1)] = 0,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw how a pretraining model fills masked cubes: original, masked, reconstruction.

    Examples:
        vmae-train reconstruct runs/k400 --data shards/k400-val --out masked.png
        vmae-train reconstruct runs/k400 --data video.mp4 --out mask.gif --ratio 0.75
    """
    need_torch()
    from vmae_train.inference.reconstruct import reconstruct_file

    unreadable = reconstruct_file(checkpoint, data, out, videos=videos, ratio=ratio, seed=seed, device=device)
    if not quiet:
        print(out)
    print_unreadable(unreadable)
