"""`vmae-train evaluate`: a finetuned model and labelled shards → scores."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

from vmae_data.console import Debug, Json, Quiet, Settings, StorageOptions, flag, option, progress_style
from vmae_train.commands.options import (
    Best,
    Checkpoint,
    ClassNames,
    ClipRecipe,
    Device,
    Ema,
    EvaluationData,
    need_torch,
)
from vmae_train.commands.output import print_scores, print_unreadable

Merge = Enum("Merge", {"SOFTMAX": "softmax", "LOGIT": "logit"})


def evaluate(
    checkpoint: Checkpoint,
    data: EvaluationData,
    recipe: ClipRecipe = None,
    views: Annotated[
        str | None, option("CLIPSxCROPS", "Use this many clips and crops of each video.", "the recipe's, else 5x3")
    ] = None,
    stride: Annotated[
        int | None,
        option(
            "N", "Use every N-th source frame, as --set clip.stride=N.", "the recipe's stride", min=1, max=1_000_000
        ),
    ] = None,
    frozen: Annotated[
        bool, flag("--frozen", "Repeat one frame in each clip, as a control without motion.", "all frames")
    ] = False,
    best: Best = False,
    ema: Ema = False,
    class_names: ClassNames = None,
    merge: Annotated[
        Merge | None,
        option("softmax|logit", "Average probabilities or logits over views.", "the recipe's, else softmax"),
    ] = None,
    settings: Settings = None,
    out: Annotated[str | None, option("FILE|URL", "Write the scores as JSON.", "no file")] = None,
    predictions: Annotated[
        str | None, option("FILE|URL", "Write the model's output for each video as Parquet.", "no file")
    ] = None,
    html: Annotated[
        str | None, option("FILE|URL", "Write an HTML page: scores, confusion matrix, every class.", "no file")
    ] = None,
    batch: Annotated[int, option("N", "Evaluate N videos at a time.", min=1, max=1 << 16)] = 8,
    workers: Annotated[int, option("N", "Decode in N processes.", min=0, max=1024)] = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finetuned model on labelled shards.

    Each video is decoded once for all its views.

    Examples:
        vmae-train evaluate runs/finetune --data shards/k400-val
        vmae-train evaluate runs/finetune --data shards/val --best --html scores.html
        vmae-train evaluate k400.pth --data shards/val --class-names classes.txt
    """
    need_torch()
    from vmae_data.storage import writable_paths
    from vmae_train.checkpoints.convert import read_class_names
    from vmae_train.distributed import init_distributed
    from vmae_train.evaluate import evaluate_checkpoint, write_outputs
    from vmae_train.evaluation.protocol import parse_views

    short = {
        "evaluate.views": f"'{parse_views(views)}'" if views else None,
        "evaluate.merge": merge.value if merge else None,
        "clip.stride": stride,
        "clip.frozen": "true" if frozen else None,
    }
    chosen = [*(settings or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            names = read_class_names(class_names) if class_names is not None else None
            paths = writable_paths({"--out": out, "--predictions": predictions, "--html": html})
        found = evaluate_checkpoint(
            checkpoint,
            data,
            recipe=recipe,
            settings=chosen,
            best=best,
            ema=ema,
            class_names=names,
            batch=batch,
            workers=workers,
            device=device,
            style=style,
            distributed=distributed,
        )
        if distributed.is_main:  # before the files, so that a full disk does not lose the scores
            print_scores(found.scores, quiet, as_json)
            print_unreadable(found.scores.unreadable)
            if found.hint:
                print(f"hint: {found.hint}", file=sys.stderr)
        with distributed.all_or_none():
            if distributed.is_main:
                files = {name: paths.get(f"--{name}") for name in ("out", "predictions", "html")}
                write_outputs(found, **files)
