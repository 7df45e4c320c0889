"""`vmae-train gap`: two sets of shards and a checkpoint → how far apart the sets are in the encoder's features."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    argument,
    option,
    print_json,
    print_rows,
    progress_style,
)
from vmae_train.console import (
    Best,
    ClipRecipe,
    Device,
    Ema,
    Settings,
    VideoWorkers,
    need_torch,
    print_unreadable,
    with_views,
)

if TYPE_CHECKING:
    from vmae_train.evaluation.feature_gap import GapReport


def gap(
    a: Annotated[str, argument("A", "Compare these shards, a folder or URL.")],
    b: Annotated[str, argument("B", "Compare them with these shards.")],
    init: Annotated[str, option("CKPT", "Take the features of this run or checkpoint. Path or URL.")],
    samples: Annotated[int, option("N", "Compare at most N samples of each set.", min=10, max=100_000)] = 2000,
    seed: Annotated[int, option("N", "Set the random seed of samples, halves and folds.", min=0, max=2**63 - 1)] = 0,
    html: Annotated[str | None, option("FILE|URL", "Write an HTML page: numbers and a projection.", "no file")] = None,
    recipe: ClipRecipe = None,
    views: Annotated[str | None, option("CLIPSxCROPS", "Average over this many clips and crops.", "1x1")] = None,
    best: Best = False,
    ema: Ema = False,
    settings: Settings = None,
    batch: Annotated[int, option("N", "Give the model N samples at a time.", min=1, max=1 << 16)] = 8,
    workers: VideoWorkers = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the gap between two sets of shards, in an encoder's features.

    The numbers are the Fréchet distance, beside that of random halves of one set, and how often a linear classifier
    tells the sets apart. Labels are not used. An encoder that was pretrained on one domain may transfer badly to one
    that is far away.

    Examples:
        vmae-train gap shards/k400 shards/mine --init runs/k400
        vmae-train gap shards/k400 shards/ssv2 --init runs/k400 --html gap.html
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.storage import writable_paths
    from vmae_train.gap import measure_gap
    from vmae_train.inference.embed import Embedder
    from vmae_train.reports.gap_page import write_gap_page

    paths = writable_paths({"--html": html})
    embedder = Embedder(
        init,
        device,
        recipe=recipe,
        settings=with_views(settings, views, default="1x1"),
        best=best,
        ema=ema,
        batch=batch,
    )
    style = progress_style(quiet, as_json)
    report, projection = measure_gap(embedder, a, b, samples=samples, seed=seed, workers=workers, style=style)
    _print_gap(report, quiet, as_json)
    print_unreadable(report.unreadable)
    if "--html" in paths:
        write_gap_page(report, projection, paths["--html"])
        if not quiet and not as_json:
            print(paths["--html"])


def _print_gap(report: GapReport, quiet: bool, as_json: bool) -> None:
    """Print the distances between two sets as a table, what they say, and what else they come from."""
    import msgspec

    from vmae_data.pages.html import printable

    frechet, linear = report.frechet, report.separability
    if as_json:
        print_json({**msgspec.to_builtins(report), "summary": report.summary})
    elif not quiet:
        rows = {
            "Fréchet distance": f"{frechet.between:.4g} (squared; {frechet.samples} samples of each side)",
            "halves of A": f"{frechet.halves_a:.4g}",
            "halves of B": f"{frechet.halves_b:.4g}",
            "excess": f"{frechet.excess:.4g} above the mean of the halves",
            "chance": f"p = {frechet.p_value:.2g} (labels A and B dealt anew)",
            "linear classifier": f"{linear.accuracy:.1f} ± {linear.standard_error:.1f} % "
            f"(chance 50 %, {linear.folds} folds, standard error)",
            "samples": f"{report.samples} of each set",
        }
        print_rows(f"A: {report.a}, B: {report.b}", rows.items())
        print(report.summary)
    for warning in report.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
