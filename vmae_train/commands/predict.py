"""`vmae-train predict`: a finetuned model and videos → classes and their probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vmae_data.amounts import plural
from vmae_data.console import Debug, Json, Quiet, StorageOptions, option, path_option, progress_style
from vmae_train.console import (
    Best,
    Checkpoint,
    ClassNames,
    ClipRecipe,
    Device,
    Ema,
    Settings,
    VideoBatch,
    Videos,
    VideoWorkers,
    need_torch,
    print_unreadable,
    with_views,
)

if TYPE_CHECKING:
    from vmae_train.inference.predict import Prediction
    from vmae_train.predict import Predicted

BAR = 24  # characters of a probability of 1


def predict(
    checkpoint: Checkpoint,
    videos: Videos,
    window: Annotated[
        float | None, option("SECONDS", "Predict each window of this length.", "the whole video as one")
    ] = None,
    stride: Annotated[float | None, option("SECONDS", "Start a window each SECONDS.", "the length of a window")] = None,
    top: Annotated[int, option("N", "Print the N most probable classes.", min=1, max=1_000_000)] = 3,
    recipe: ClipRecipe = None,
    views: Annotated[
        str | None, option("CLIPSxCROPS", "Use this many clips and crops of each window.", "the recipe's, else 5x3")
    ] = None,
    best: Best = False,
    ema: Ema = False,
    class_names: ClassNames = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        path_option("FILE", "Write a .csv, .parquet or .jsonl file. Keep the predictions that it has.", "print them"),
    ] = None,
    html: Annotated[
        str | None, option("FILE|URL", "Write an HTML page with players and the classes over time.", "no file")
    ] = None,
    batch: VideoBatch = 8,
    workers: VideoWorkers = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict the classes of videos with a finetuned model.

    Clips are sampled and resized as the checkpoint's own evaluation does. A video that can't be read is named at the
    end, and the others are predicted.

    Examples:
        vmae-train predict runs/finetune video.mp4
        vmae-train predict runs/finetune long.mkv --window 10 --out windows.csv
        vmae-train predict k400.pth videos --class-names names.txt --html a.html
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.console import print_json
    from vmae_train.checkpoints.convert import read_class_names
    from vmae_train.inference.predict import Predictor
    from vmae_train.inference.results_file import json_row
    from vmae_train.inference.video_runner import VideoResult
    from vmae_train.inference.windows import WindowSpec
    from vmae_train.predict import predict_all

    predictor = Predictor(
        checkpoint,
        device,
        recipe=recipe,
        settings=with_views(settings, views),
        best=best,
        ema=ema,
        class_names=read_class_names(class_names) if class_names is not None else None,
        batch=batch,
    )

    def print_rows(result: VideoResult[Prediction]) -> None:
        for prediction in result.rows:
            print_json(json_row(prediction))
        if result.error is not None:
            print_json({"video": result.video, "error": result.error})

    predicted = predict_all(
        predictor,
        videos,
        spec=WindowSpec(window, stride),
        out=out,
        html=html,
        workers=workers,
        finished=print_rows if as_json else lambda result: None,
        style=progress_style(quiet, as_json),
    )
    if not as_json and not (quiet and out is not None):
        _print_predicted(predicted, out, top)
        if html is not None and not quiet:
            print(html)
    print_unreadable(predicted.unreadable)


def _print_predicted(predicted: Predicted, out: Path | None, top: int) -> None:
    """Print the classes of each video or window with bars; or, if a file was written, how much it holds."""
    from vmae_data.pages.html import printable

    if out is not None:
        done = len(predicted.results) - len(predicted.unreadable)
        print(
            f"{out}: {plural(predicted.rows or 0, 'row')}. {plural(done, 'video')} predicted, {predicted.kept} kept from before"
        )
        return
    for result in predicted.results:
        if result.error is None:
            print(printable(result.video))
        for prediction in result.rows:
            print("\n".join(_prediction_lines(prediction, top)))


def _prediction_lines(prediction: Prediction, top: int) -> list[str]:
    from vmae_data.pages.html import printable
    from vmae_data.read.dataset import LabelKind

    span = ""
    if prediction.start is not None and prediction.end is not None:
        span = f"{prediction.start:.2f} to {prediction.end:.2f} s"
    pairs = [(printable(name), value) for name, value in prediction.top(top)]
    width = max(len(name) for name, _ in pairs)
    lines = []
    for number, (name, value) in enumerate(pairs):
        text = f"{value:.4g}"
        if prediction.kind is not LabelKind.VALUES:
            text = f"{value:6.1%}  {'█' * round(BAR * value)}"
        lines.append(f"  {span if number == 0 else '':{len(span)}}  {name:{width}}  {text}".rstrip())
    return lines
