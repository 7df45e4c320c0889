"""`vmae-train evaluate`: a finetuned model and labelled shards → scores."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from vmae_data.amounts import plural
from vmae_data.console import Debug, Json, Quiet, StorageOptions, flag, option, print_json, progress_style
from vmae_data.errors import MisuseError
from vmae_train.console import (
    Best,
    Checkpoint,
    ClassNames,
    ClipRecipe,
    Device,
    Ema,
    EvaluationData,
    Settings,
    need_torch,
    print_scores,
    print_unreadable,
)

if TYPE_CHECKING:
    from vmae_train.evaluation.frozen_scores import FrozenScores

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
    knn: Annotated[
        bool, flag("--knn", "Score the features with 20 nearest neighbours instead of the head.", "score the head")
    ] = False,
    few_shot: Annotated[
        str | None,
        option("N,N,…", "Score the features with classifiers of N training videos a class.", "score the head"),
    ] = None,
    train: Annotated[
        str | None, option("URL", "Fit --knn and --few-shot on these labelled shards.", "none, and both need it")
    ] = None,
    layer: Annotated[
        int | None, option("N", "Score the features of block N, counted from 1.", "the last block", min=1)
    ] = None,
    settings: Settings = None,
    out: Annotated[str | None, option("FILE|URL", "Write the scores as JSON.", "no file")] = None,
    predictions: Annotated[
        str | None, option("FILE|URL", "Write the model's output for each video as Parquet.", "no file")
    ] = None,
    html: Annotated[
        str | None,
        option("FILE|URL", "Write an HTML page: scores, confusion matrix, every class, wrong videos.", "no file"),
    ] = None,
    batch: Annotated[int, option("N", "Evaluate N videos at a time.", min=1, max=1 << 16)] = 8,
    workers: Annotated[int, option("N", "Decode in N processes.", min=0, max=1024)] = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finetuned model on labelled shards, or the features of any model.

    Each video is decoded once for all its views. --knn and --few-shot score the encoder's features, of a pretrained or
    a finetuned model.

    Examples:
        vmae-train evaluate runs/finetune --data shards/k400-val
        vmae-train evaluate runs/finetune --data shards/val --best --html scores.html
        vmae-train evaluate k400.pth --data shards/val --class-names classes.txt
        vmae-train evaluate runs/k400 --data shards/val --train shards/train --knn
    """
    style = progress_style(quiet, as_json)
    need_torch(style)
    from vmae_data.progress import announce
    from vmae_data.storage import writable_paths
    from vmae_train.checkpoints.convert import read_class_names
    from vmae_train.distributed import init_distributed
    from vmae_train.evaluate import evaluate_checkpoint, evaluate_features, write_outputs, write_scores
    from vmae_train.evaluation.frozen_scores import parse_shots
    from vmae_train.evaluation.protocol import parse_views

    short = {
        "evaluate.views": f"'{parse_views(views)}'" if views else None,
        "evaluate.merge": merge.value if merge else None,
        "clip.stride": stride,
        "clip.frozen": "true" if frozen else None,
    }
    chosen = [*(settings or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    shots = parse_shots(few_shot) if few_shot is not None else ()
    of_head = {"--predictions": predictions, "--html": html, "--class-names": class_names, "--merge": merge}
    _check_together(knn or bool(shots), {"--train": train, "--layer": layer}, of_head)
    common: dict[str, Any] = {
        "recipe": recipe,
        "settings": chosen,
        "best": best,
        "ema": ema,
        "batch": batch,
        "workers": workers,
        "device": device,
        "style": style,
    }
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            names = read_class_names(class_names) if class_names is not None else None
            paths = writable_paths({"--out": out, "--predictions": predictions, "--html": html})
        if train is not None:
            scores = evaluate_features(
                checkpoint,
                data,
                train,
                knn=knn,
                few_shot=shots,
                layer=layer,
                distributed=distributed,
                **common,
            )
            if distributed.is_main:
                _print_frozen(scores, quiet, as_json)
                print_unreadable(scores.unreadable)
            with distributed.all_or_none():
                if distributed.is_main and "--out" in paths:
                    write_scores(scores, paths["--out"])
            return
        found = evaluate_checkpoint(checkpoint, data, class_names=names, distributed=distributed, **common)
        if distributed.is_main:  # before the files, so that a full disk does not lose the scores
            print_scores(found.scores, quiet, as_json)
            print_unreadable(found.scores.unreadable)
            if found.hint:
                print(f"hint: {found.hint}", file=sys.stderr)
        with distributed.all_or_none():
            if distributed.is_main:
                files = {name: paths.get(f"--{name}") for name in ("out", "predictions", "html")}
                if html is not None:
                    announce("drawing the page", style)
                write_outputs(found, **files)
                if html is not None and not quiet and not as_json:
                    print(html)


def _check_together(of_features: bool, needed: dict[str, Any], of_head: dict[str, Any]) -> None:
    """Raises MisuseError for options of scores of features without these, or of a head with them."""
    if of_features and needed["--train"] is None:
        raise MisuseError("--knn and --few-shot fit classifiers. Set --train URL to labelled training shards")
    others = of_head if of_features else needed
    given = [name for name, value in others.items() if value is not None]
    if given and of_features:
        raise MisuseError(f"{given[0]}: is for the scores of a head. Remove it, or --knn and --few-shot")
    if given:
        raise MisuseError(f"{given[0]}: is for the scores of features. Set --knn or --few-shot, or remove it")


def _print_frozen(scores: FrozenScores, quiet: bool, as_json: bool) -> None:
    """Print the scores of features: a line for each classifier."""
    import msgspec

    lines = []
    if scores.knn is not None:
        top5 = f", top-5 {scores.knn.top5:.2f} %" if scores.knn.top5 is not None else ""
        lines.append(f"k-NN, k = {scores.knn.k}: top-1 {scores.knn.top1:.2f} %{top5}")
    for one in scores.few_shot:
        shots = plural(one.shots, "video") + " a class"
        lines.append(f"{shots}: nearest class mean {one.nearest_mean}, logistic regression {one.logistic}")
    if scores.few_shot:
        lines.append(f"± is the standard deviation over {scores.few_shot[0].seeds} seeds")
    control = f" ({scores.control})" if scores.control else ""
    lines.append(f"{scores.videos} videos, {scores.train_videos} training videos, {scores.views} views{control}")
    if as_json:
        print_json(msgspec.to_builtins(scores))
    elif not quiet:
        print("\n".join(lines))
