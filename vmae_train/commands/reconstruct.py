"""`vmae-train reconstruct`: a pretraining model and videos → a picture of masked and predicted cubes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from vmae_data.console import Debug, Json, Quiet, StorageOptions, option, progress_style
from vmae_train.console import Checkpoint, Device, need_torch, print_result, print_unreadable

Mask = Enum("Mask", {"TUBE": "tube", "RANDOM": "random", "FRAME": "frame", "MOTION": "motion"})


def reconstruct(
    checkpoint: Checkpoint,
    data: Annotated[str, option("URL|VIDEO", "Read these shards, or one video file.")],
    out: Annotated[
        str, option("FILE|URL", "Write a .png with frames side by side, a moving .gif or .mp4, or an .html page.")
    ],
    videos: Annotated[int, option("N", "Show N samples.", min=1, max=1000)] = 4,
    ratio: Annotated[
        list[float] | None,
        option(
            "SHARE",
            "Mask this share of the tokens, above 0 and below 1. Repeat to compare.",
            "the run's ratio, else 0.9",
            min=0,
            max=1,
        ),
    ] = None,
    mask: Annotated[
        list[Mask] | None,
        option("tube|random|frame|motion", "Mask in this pattern. Repeat to compare.", "the run's kind, else tube"),
    ] = None,
    seed: Annotated[int, option("N", "Set the random seed of the masks.", min=0, max=2**63 - 1)] = 0,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw how a pretraining model fills masked cubes: original, masked, reconstruction, error.

    Examples:
        vmae-train reconstruct runs/k400 --data shards/k400-val --out masked.png
        vmae-train reconstruct runs/k400 --data video.mp4 --out a.mp4 --mask frame
    """
    style = progress_style(quiet, as_json)
    need_torch(style)
    from vmae_data.progress import announce
    from vmae_train.inference.reconstruct import reconstruct_file

    announce("drawing the reconstructions", style)
    kinds: list[Any] = [one.value for one in mask or ()]
    unreadable = reconstruct_file(
        checkpoint, data, out, videos=videos, ratios=ratio or (), kinds=kinds, seed=seed, device=device
    )
    print_result(quiet, as_json, {"out": out, "unreadable": unreadable}, out)
    print_unreadable(unreadable)
