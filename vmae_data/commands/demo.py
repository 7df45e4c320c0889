"""`vmae-shard demo`: → small labelled videos to try everything with."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from vmae_data.commands.options import Workers
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    argument,
    flag,
    local_argument,
    num_cores,
    option,
    print_json,
    progress_style,
)

# As vmae_data.demo.scenes.Kind, whose import would import numpy for the help.
DemoKind = Enum("DemoKind", {"MOTION": "motion", "RICH": "rich"})


def demo(
    dest: Annotated[
        Path, argument("DEST", "Write the videos to DEST/CLASS/*.mp4, a local folder.", parser=local_argument)
    ],
    videos: Annotated[int, option("N", "Make N videos.", min=1, max=1_000_000)] = 800,
    seed: Annotated[int, option("N", "Set the random seed of the scenes.", min=0, max=2**64 - 1)] = 0,
    kind: Annotated[
        DemoKind,
        option(
            "motion|rich",
            "Render this kind. rich: photographs, acceleration, deformation, camera shake (pip install 'vmae\\[demo]').",
        ),
    ] = DemoKind.MOTION,
    broken: Annotated[bool, flag("--broken", "Add a few damaged files.", "intact files only")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a small labelled data set of mp4 files in 8 classes.

    Only the motion in a video shows its class.

    Examples:
        vmae-shard demo videos/demo --videos 100
        vmae-shard demo videos/rich --videos 800 --kind rich
    """
    from vmae_data.demo.scenes import Kind
    from vmae_data.demo.videos import broken_count, write_demo
    from vmae_data.progress import ProgressBar

    total = videos + (broken_count() if broken else 0)
    with ProgressBar("demo videos", total, progress_style(quiet, as_json)) as progress:
        write_demo(
            dest,
            num_videos=videos,
            seed=seed,
            broken=broken,
            on_done=lambda done: progress.advance(done - progress.done),
            workers=workers or num_cores(),
            kind=Kind(kind.value),
        )
    if as_json:
        print_json({"dest": str(dest), "videos": videos})
    elif not quiet:
        print(f"{dest}: {videos} videos in 8 classes")
