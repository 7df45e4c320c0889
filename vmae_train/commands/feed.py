"""`vmae-train feed`: a recipe and shards → clips per second that this machine delivers."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Json, Quiet, Settings, StorageOptions, option, progress_style
from vmae_data.errors import MisuseError
from vmae_train.commands.options import Data, Device, Recipe, need_torch, spec_of
from vmae_train.commands.output import print_feed, print_unreadable


def feed(
    recipe: Recipe,
    data: Data,
    seconds: Annotated[float, option("S", "Measure for S seconds.", min=1)] = 20.0,
    appetite: Annotated[
        float, option("CLIPS/S", "Report how many CPU cores feed a GPU that trains CLIPS/S clips per second.", min=1)
    ] = 1000.0,
    settings: Settings = None,
    storage: StorageOptions = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how many clips per second this machine delivers to training.

    The data loader of a recipe runs without a model. The result names the slowest stage and the CPU cores that a
    GPU needs.

    Examples:
        vmae-train feed --recipe pretrain/k400 --data shards/k400 --seconds 60
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.recipes import load_recipe
    from vmae_train.feed import feed as run

    if not appetite < 1e9:
        raise MisuseError(f"--appetite {appetite:g}: expected clips per second, such as 1000")
    spec = load_recipe("vmae_train", recipe, spec_of(recipe), settings or ())
    report = run(spec, data=data, seconds=seconds, device=device, style=progress_style(quiet, as_json))
    print_feed(report, f"{', '.join(data)} by {recipe}", appetite, quiet, as_json)
    print_unreadable(report.unreadable)
