"""`vmae-train predict`: a finetuned model and videos → a prediction for each video, or for windows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmae_data.amounts import plural
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.storage import local_path, writable_paths
from vmae_train.inference.find_videos import FoundVideos, find_videos
from vmae_train.inference.predict import Predictor, VideoResult
from vmae_train.inference.results_file import ResultsFile, check_suffix
from vmae_train.inference.windows import WindowSpec
from vmae_train.reports.predictions_page import write_predictions_page
from vmae_train.training.summary import print_summary

__all__ = ["Predicted", "predict_all"]


class Predicted(NamedTuple):
    """What the command found. `kept`: videos whose predictions the file had. `rows`: of the written file."""

    results: tuple[VideoResult, ...]
    unreadable: dict[str, str]
    kept: int = 0
    rows: int | None = None


def predict_all(
    predictor: Predictor,
    arguments: Sequence[str],
    *,
    spec: WindowSpec,
    out: str | None = None,
    html: str | None = None,
    workers: int = 0,
    finished: Callable[[VideoResult], None] = lambda result: None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> Predicted:
    """Predict all videos that the arguments name; `finished` gets each result as soon as it is made.

    With `out`, videos that the file has are not predicted again. `html`: a page of all named videos.
    Raises MisuseError if arguments, settings and file don't fit together, DataError if no video can be read.
    """
    spec.check()
    if out is not None:
        check_suffix(local_path(out))
    page = writable_paths({"--out": out, "--html": html}).get("--html")
    found = find_videos(arguments)
    if found.shards and spec.seconds is not None:
        raise MisuseError(f"{found.shards[0]}: shards can't be predicted by windows. Name the source videos")
    print_summary(f"predict {predictor.checkpoint}", _rows(predictor, found, spec), quiet=style is ProgressStyle.QUIET)
    file = ResultsFile(local_path(out), predictor, spec) if out is not None else None
    versions = {video.name: video.version() for video in found.videos} if file is not None else {}
    missing = [v for v in found.videos if file is None or not file.holds(v.name, versions[v.name])]
    results: list[VideoResult] = []
    kept = len(found.videos) - len(missing)
    with ProgressBar("videos predicted", len(found.videos), style, start=kept) as progress:
        unstated = () if predictor.is_stated else (predictor.origin,)
        for warning in (*unstated, *found.warnings):
            progress.print_note(warning, label="warning")
        for note in found.notes:
            progress.print_note(note)

        def take(result: VideoResult, version: str) -> None:
            if file is not None and result.error is None:
                file.add(result, version)
            results.append(result)
            finished(result)

        own = workers if len(missing) > 1 else 0  # one video is decoded sooner than a process starts
        for result in predictor.predict_videos(missing, spec, pictures=page is not None, workers=own):
            take(result, versions.get(result.video, ""))
            progress.advance()
    for url in found.shards:
        shards = Shards.open(url)
        for result in predictor.predict_shards(shards, workers=workers, style=style):
            take(result, shards.digest)
    unreadable = {result.video: result.error for result in results if result.error is not None}
    if results and len(unreadable) == len(results) and not kept:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(unreadable.items())[:3])
        raise DataError(f"none of {len(results)} videos can be read ({listed}). Name video files, folders or listings")
    if page is not None:
        paths = {video.name: video.path for video in found.videos}
        before = {result.video: result for result in file.results()} if file is not None else {}
        shown = {name: before[name] for name in paths if name in before} | {result.video: result for result in results}
        write_predictions_page(
            list(shown.values()),
            paths,
            page,
            model=predictor.checkpoint,
            subtitle=", ".join(_rows(predictor, found, spec)[name] for name in ("predict", "clip", "views")),
        )
    return Predicted(tuple(results), unreadable, kept, file.write() if file is not None else None)


def _rows(predictor: Predictor, found: FoundVideos, spec: WindowSpec) -> dict[str, str]:
    """The protocol, for the table at the start."""
    geometry, protocol, clip = predictor.model.geometry, predictor.protocol, predictor.clip
    spacing = f"stride {clip.stride} source frames" if clip.rate is None else f"{clip.rate:g} frames a second"
    spacing = {"stride": spacing, "dense": f"spread over {geometry.num_frames} × {spacing}"}.get(
        clip.sampler, "one of each equal segment of a window"
    )
    windows = "the whole video"
    if spec.seconds is not None:
        windows = f"windows of {spec.seconds:g} s, one each {spec.stride or spec.seconds:g} s"
    return {
        "data": ", ".join([plural(len(found.videos), "video")] * bool(found.videos) + list(found.shards)),
        "predict": windows,
        "clip": f"{geometry.num_frames} frames, {spacing}",
        "views": f"{protocol.views} (clips × crops), mean of {protocol.merge}",
        "resize": f"short side to {predictor.short_side} px as a build does, then to {geometry.image_size} px, "
        f"antialias {'on' if protocol.antialias else 'off'}",
        "settings": predictor.origin,
        "device": str(predictor.device),
    }
