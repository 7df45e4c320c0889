"""`vmae-train predict`: a finetuned model and videos → a prediction for each video, or for windows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from vmae_data.progress import ProgressStyle
from vmae_data.storage import local_path, writable_paths
from vmae_train.inference.find_videos import find_videos
from vmae_train.inference.journal import check_suffix
from vmae_train.inference.predict import Prediction, Predictor
from vmae_train.inference.results_file import SUFFIXES, ResultsFile
from vmae_train.inference.run_all import describe_run, run_all
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec
from vmae_train.reports.predictions_page import write_predictions_page
from vmae_train.training.summary import print_summary

__all__ = ["Predicted", "predict_all"]


class Predicted(NamedTuple):
    """What the command found. `kept`: videos whose predictions the file had. `rows`: of the written file."""

    results: tuple[VideoResult[Prediction], ...]
    unreadable: dict[str, str]
    kept: int = 0
    rows: int | None = None


def predict_all(
    predictor: Predictor,
    arguments: Sequence[str],
    *,
    spec: WindowSpec,
    out: str | Path | None = None,
    html: str | None = None,
    workers: int = 0,
    finished: Callable[[VideoResult[Prediction]], None] = lambda result: None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> Predicted:
    """Predict all videos that the arguments name; `finished` gets each result as soon as it is made.

    With `out`, videos that the file has are not predicted again. `html`: a page of all named videos.
    Raises MisuseError if arguments, settings and file don't fit together, DataError if no video can be read.
    """
    if out is not None:
        check_suffix(local_path(out), SUFFIXES)
    page = writable_paths({"--out": out, "--html": html}).get("--html")
    found = find_videos(arguments)
    about = describe_run(predictor, found, spec)
    about["views"] += f", mean of {predictor.protocol.merge}"
    print_summary(f"predict {predictor.checkpoint}", about, quiet=style is ProgressStyle.QUIET)
    results: list[VideoResult[Prediction]] = []

    def take(result: VideoResult[Prediction]) -> None:
        results.append(result)
        finished(result)

    with ResultsFile(local_path(out), predictor, spec) if out is not None else nullcontext() as file:
        counts = run_all(
            predictor,
            found,
            spec,
            file,
            finished=take,
            pictures=page is not None,
            workers=workers,
            style=style,
        )
        if page is not None:
            paths = {video.name: video.path for video in found.videos}
            before = {result.video: result for result in file.results()} if file is not None else {}
            now = {result.video: result for result in results}
            shown = {name: before[name] for name in paths if name in before} | now
            subtitle = ", ".join(about[name] for name in ("time", "clip", "views"))
            write_predictions_page(list(shown.values()), paths, page, model=predictor.checkpoint, subtitle=subtitle)
        rows = file.write() if file is not None else None
    return Predicted(tuple(results), counts.unreadable, counts.kept, rows)
