"""`vmae-shard demo`, `recipes` and `doctor`: what one wants before a first build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    Settings,
    StorageOptions,
    local_argument,
    num_cores,
    print_json,
    progress_style,
    show_checks,
    show_recipes,
)

__all__ = ["demo", "doctor", "recipes"]


def demo(
    dest: Annotated[
        Path, typer.Argument(parser=local_argument, metavar="DEST", help="Where the videos go: DEST/CLASS/*.mp4.")
    ],
    videos: Annotated[int, typer.Option(min=1, help="How many videos.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other scenes.")] = 0,
    broken: Annotated[bool, typer.Option("--broken", help="Add a few damaged files.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Left out: one a core.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a small labelled motion data set: real mp4 files in which only motion tells the class."""
    from vmae_data.demo.videos import broken_count, write_demo
    from vmae_data.progress import meter

    total = videos + (broken_count() if broken else 0)
    with meter("demo videos", total, progress_style(quiet, as_json)) as shown:
        write_demo(
            dest,
            num_videos=videos,
            seed=seed,
            broken=broken,
            on_done=lambda done: shown.advance(done - shown.done),
            workers=workers or num_cores(),
        )
    if as_json:
        print_json({"dest": str(dest), "videos": videos})
    elif not quiet:
        print(f"{dest}: {videos} videos in 8 classes")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the build recipes, or show one with every value."""
    from vmae_data.encode.build_spec import BuildSpec

    show_recipes("vmae_data", name, lambda _name: BuildSpec, settings, as_json)


def doctor(
    dest: Annotated[
        str | None, typer.Argument(help="Also try this destination, a path or a URL; it is not made.")
    ] = None,
    ffmpeg: Annotated[str | None, typer.Option(help="The ffmpeg to try; left out: the one that was installed.")] = None,
    storage: StorageOptions = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what works here: ffmpeg, codecs, packages, disks. Exit with 1 when a build can't work."""
    from vmae_data.doctor.doctor import examine
    from vmae_data.storage import storage_path

    show_checks(list(examine(storage_path(dest) if dest else None, ffmpeg)), as_json)
