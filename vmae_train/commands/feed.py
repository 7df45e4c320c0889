"""`vmae-train feed`: a recipe and shards → clips per second that this machine delivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    option,
    print_json,
    print_rows,
    progress_style,
)
from vmae_data.errors import MisuseError
from vmae_train.console import Data, Device, Recipe, Settings, need_torch, print_unreadable, spec_of

if TYPE_CHECKING:
    from vmae_train.feed import FeedReport


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
    _print_feed(report, f"{', '.join(data)} by {recipe}", appetite, quiet, as_json)
    print_unreadable(report.unreadable)


def _print_feed(report: FeedReport, title: str, appetite: float, quiet: bool, as_json: bool) -> None:
    """Print how many clips per second the loader delivers, and what limits it."""
    import msgspec

    cores = report.cores_for(appetite)
    if as_json:
        print_json({**msgspec.to_builtins(report), "appetite": appetite, "cores_needed": cores})
        return
    if quiet:
        return
    rate, cpu_ms = report.clips_per_second, 1000 * report.cpu_seconds_a_clip
    cache = "" if report.cache_hits is None else f", {report.cache_hits:.0%} of the samples from the cache"
    rows = {
        "clips/s": f"at most {report.training_clips_per_second:.1f} in a training",
        "loader": f"{rate:.1f} clips/s ({report.clips} in {report.seconds:.1f} s, {report.workers} workers)",
        "first batch": f"after {report.first_batch_seconds:.2f} s",
        **{
            stage.name: f"{1000 * stage.seconds_a_clip:.2f} ms per clip, busy {stage.busy:.0%}"
            for stage in report.stages
        },
        "limits": report.limits,
        "read": f"{report.read_mb:.1f} MB, {report.read_mb_per_second:.1f} MB/s{cache}",
        "cores": f"{report.cores_used:.2f} used; {cores:.1f} needed for {appetite:g} clips/s "
        f"({cpu_ms:.2f} ms of CPU time per clip)",
    }
    print_rows(title, rows.items())
