"""`vmae-train evaluate`, `reconstruct` and `report`: what a finished model is worth, and how it looks."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from vmae_data.console import Debug, Json, Quiet, Settings, StorageOptions, progress_style
from vmae_train.commands.options import Checkpoint, Device, need_torch
from vmae_train.commands.tell import tell_scores, tell_unreadable

__all__ = ["evaluate", "reconstruct", "report"]


class Merge(Enum):
    """What is averaged over the views of a video."""

    SOFTMAX = "softmax"
    LOGIT = "logit"


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(metavar="URL", help="Labelled shards.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Look at videos as this finetuning recipe does: clips, views, merge, antialias; left out: the run's."
        ),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(metavar="CLIPSxCROPS", help="Clips in time × crops in space; left out: the recipe's, else 5x3."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Source frames between a clip's frames; the same as --set clip.stride=N.")
    ] = None,
    frozen: Annotated[bool, typer.Option("--frozen", help="A control: one frame repeated, no motion.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run the checkpoint that scored best on the way, not the last.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="The mean of the weights (ema.decay), not the last.")] = False,
    merge: Annotated[
        Merge | None,
        typer.Option(help="Average the views' probabilities, or their logits; of values always the values."),
    ] = None,
    settings: Settings = None,
    out: Annotated[str | None, typer.Option(metavar="FILE|URL", help="Write the scores as JSON.")] = None,
    predictions: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Write what the model says of each video as Parquet.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Write a page: scores, confusion, every class.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Decode processes.")] = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a finetuned model; each video is decoded once for all its views."""
    need_torch()
    from vmae_train.distributed import init_distributed
    from vmae_train.evaluate import EvaluationRequest, Told, evaluate_checkpoint, write_told
    from vmae_train.evaluation.protocol import parse_views

    short = {
        "evaluate.views": f"'{parse_views(views)}'" if views else None,
        "evaluate.merge": merge.value if merge else None,
        "clip.stride": stride,
        "clip.frozen": "true" if frozen else None,
    }
    chosen = [*(settings or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    request, told = EvaluationRequest(recipe, chosen, batch, workers, best, ema), Told(out, predictions, html)
    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            places = told.places()
        found = evaluate_checkpoint(checkpoint, data, request, device=device, style=style, distributed=distributed)
        if distributed.is_main:  # before the files: what was found is not lost with a disk
            tell_scores(found.scores, quiet, as_json)
            tell_unreadable(found.scores.unreadable)
        with distributed.all_or_none():
            if distributed.is_main:
                write_told(found, places)


def reconstruct(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(metavar="URL|VIDEO", help="Shards, or one video file.")],
    out: Annotated[str, typer.Option(metavar="FILE|URL", help="A .png (frames side by side) or a .gif (moving).")],
    videos: Annotated[int, typer.Option(min=1, help="How many samples.")] = 4,
    ratio: Annotated[float | None, typer.Option(help="Share of hidden places; left out: the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds hide other places.")] = 0,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw what a pretraining model makes of hidden cubes: original, masked, reconstruction."""
    need_torch()
    from vmae_train.inference.reconstruct import reconstruct_file

    unreadable = reconstruct_file(checkpoint, data, out, videos=videos, ratio=ratio, seed=seed, device=device)
    if not quiet:
        print(out)
    tell_unreadable(unreadable)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A pretraining or finetuning run; a path or a URL.")],
    out: Annotated[str, typer.Option(metavar="FILE|URL", help="The HTML page.")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Another finetuning beside it; may be repeated.")
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one page on a run: data, curves, reconstructions, accuracy."""
    need_torch()
    from vmae_train.reports.run_page import write_report

    write_report(run, out, against=tuple(against or ()))
    if not quiet:
        print(out)
