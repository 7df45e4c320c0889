"""All videos that a command names → their results, in order: progress, the journal, broken videos."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vmae_data.amounts import plural
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_train.inference.find_videos import FoundVideos
from vmae_train.inference.journal import Journal
from vmae_train.inference.video_runner import VideoResult, VideoRunner
from vmae_train.inference.windows import WindowSpec

__all__ = ["RunCounts", "describe_run", "run_all"]

Row = TypeVar("Row")


class RunCounts(NamedTuple):
    """`done`: videos of this run. `kept`: those that the journal had."""

    done: int
    kept: int
    unreadable: dict[str, str]


def run_all(
    runner: VideoRunner[Row],
    found: FoundVideos,
    spec: WindowSpec,
    journal: Journal[Row] | None,
    *,
    finished: Callable[[VideoResult[Row]], None],
    pictures: bool = False,
    workers: int = 0,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> RunCounts:
    """Run the model on the videos that the journal lacks. `finished` gets each result as soon as it is made.

    Raises DataError if no video can be read.
    """
    versions = {video.name: video.version() for video in found.videos} if journal is not None else {}
    missing = [v for v in found.videos if journal is None or not journal.holds(v.name, versions[v.name])]
    kept, done = len(found.videos) - len(missing), 0
    unreadable: dict[str, str] = {}

    def take(result: VideoResult[Row], version: str) -> None:
        nonlocal done
        if result.error is not None:
            unreadable[result.video] = result.error
        else:
            done += 1
            if journal is not None:
                journal.add_result(result, "partial" if result.partial else version)
        finished(result)

    with ProgressBar("videos", len(found.videos), style, start=kept) as progress:
        unstated = () if runner.is_stated else (f"clips are chosen {runner.origin}",)
        guesses = () if runner.guess is None else (runner.guess,)
        for warning in (*unstated, *guesses):
            progress.print_note(warning, label="warning")
        for warning in found.warnings:  # no other line names what these lost
            if style is ProgressStyle.QUIET:
                print(f"warning: {warning}", file=sys.stderr)
            progress.print_note(warning, label="warning")
        for note in found.notes:
            progress.print_note(note)
        own = workers if len(missing) > 1 else 0  # one video is decoded sooner than a process starts
        for result in runner.run_videos(missing, spec, pictures=pictures, workers=own):
            take(result, versions.get(result.video, ""))
            progress.advance(status=f"{runner.clips / progress.seconds():.3g} clips/s")
    for url in found.shards:
        shards = Shards.open(url)
        held = journal.names(shards.digest) if journal is not None else set()
        kept += sum(name.startswith(f"{url}/") for name in held)
        for result in runner.run_shards(shards, kept=held, workers=workers, style=style):
            take(result, shards.digest)
    if unreadable and not done and not kept:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(unreadable.items())[:3])
        raise DataError(f"no video can be read, of {len(unreadable)} ({listed}). Name video files, folders or listings")
    return RunCounts(done, kept, unreadable)


def describe_run(runner: VideoRunner[Row], found: FoundVideos, spec: WindowSpec) -> dict[str, str]:
    """Videos and protocol, for the table at the start. Raises MisuseError for windows that can't be made."""
    spec.check(runner.model.geometry.num_frames, named="--{} {}")
    if found.shards and spec.is_several:
        raise MisuseError(f"{found.shards[0]}: shards have no windows. Name the source videos")
    geometry, protocol, clip = runner.model.geometry, runner.protocol, runner.clip
    spacing = f"stride {clip.stride} source frames" if clip.rate is None else f"{clip.rate:g} frames a second"
    spacing = {"stride": spacing, "dense": f"spread over {geometry.num_frames} × {spacing}"}.get(
        clip.sampler, "one of each equal segment of a window"
    )
    windows, views = "the whole video", str(protocol.views)
    if spec.seconds is not None:
        windows = f"windows of {spec.seconds:g} s, one each {spec.stride or spec.seconds:g} s"
    elif spec.frames is not None:
        windows = f"windows of {spec.frames} source frames, one each {spec.frame_stride}"
        spacing, views = f"stride {spec.frames // geometry.num_frames} source frames", f"1x{protocol.views.crops}"
    return {
        "data": ", ".join([plural(len(found.videos), "video")] * bool(found.videos) + list(found.shards)),
        "time": windows,
        "clip": f"{geometry.num_frames} frames, {spacing}",
        "views": f"{views} (clips × crops)",
        "resize": f"short side to {runner.short_side} px, then to {geometry.image_size} px, "
        f"antialias {'on' if protocol.antialias else 'off'}",
        "settings": runner.origin,
        "device": str(runner.device),
    }
