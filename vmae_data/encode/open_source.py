"""A video file → its description, and chosen frames of it as a build makes them before it encodes.

The only opener of videos that are no shards: builds describe their sources with it, inference reads clips with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmae_data.decode import DecodedVideo
from vmae_data.encode.build_spec import BuildSpec, Thinning
from vmae_data.encode.container_end import truncated_box
from vmae_data.encode.ffmpeg import FfmpegRun, find_ffmpeg, run_ffmpeg, silence_seconds
from vmae_data.encode.ffmpeg_arguments import decode_arguments, picture_arguments, read_arguments
from vmae_data.encode.ffmpeg_result import check_output_size, check_result, refuse_machine_fault
from vmae_data.encode.probe import ENCRYPTED, VideoInfo, probe_video, scaled_size, with_picture_size
from vmae_data.encode.steady_rate import with_steady_rate
from vmae_data.encode.thinning import choose_frames
from vmae_data.encode.times import exact_times, first_clean_frame, frame_times
from vmae_data.errors import SourceError
from vmae_data.format import RULES, Rational
from vmae_data.processes import limit_cpu_time

__all__ = [
    "OpenedSource",
    "describe_source",
    "map_pictures",
    "open_source",
    "read_pictures",
    "write_pictures",
]

_TEXT_BYTES, _TEXT_SHOWN = 512, 40


class OpenedSource(NamedTuple):
    """A video whose frames were counted by decoding all of them."""

    path: bytes
    info: VideoInfo
    times: tuple[int, ...]  # of each frame, in ticks of `info.time_base`
    first: int  # the first frame that lacks no reference

    def kept_frames(self, rate: float | None = None) -> tuple[int, ...]:
        """The frames that a build keeps at `rate` frames per second [default: of stride 1]."""
        thinning = Thinning(1)
        if rate is not None:
            exact = Fraction(repr(rate))
            thinning = Thinning(0, Rational(exact.numerator, exact.denominator))
        (cut,) = choose_frames(self.times, self.info, thinning, self.first)
        return cut.kept[0]

    def picture_size(self, short_side: int) -> tuple[int, int]:
        """Width and height of the pictures that `read_pictures` gives."""
        return scaled_size(self.info, short_side)

    def seconds(self) -> list[float]:
        """When each frame is displayed, from the first frame that a build keeps on; and when the last one ends."""
        times, base = exact_times(self.times, self.info.time_base, self.info.frame_rate)
        rate = self.info.frame_rate
        ticks = [time - times[self.first] for time in accumulate(times, max)]
        shown = [float(Fraction(time * base.num, base.den)) for time in ticks]
        return [*shown, float(Fraction(ticks[-1] * base.num, base.den) + Fraction(rate.den, rate.num))]


def describe_source(ffmpeg: str, source: bytes, names: dict[str, str], staging: Path, rules: int = RULES) -> VideoInfo:
    """Probe. If that fails, take ffmpeg's own message: people search the web for it. Raises SourceError.

    `names` replaces paths in ffmpeg's messages. Raises VmaeError for a fault of this machine.
    """
    try:
        return probe_video(source, rules)
    except SourceError as error:
        if error.reason not in ("unreadable", "undecodable", "no-video"):
            raise
        run = run_ffmpeg(read_arguments(ffmpeg, source), names)
        refuse_machine_fault(run, staging)
        check_output_size(run)
        own = error.reason == "no-video" or error.detail == ENCRYPTED
        message = run.error_text() if run.messages and not own else error.detail
        if "Format not on whitelist" in message:  # ffmpeg names the whitelist, not the format
            raise SourceError(error.reason, "the file has a format that builds don't open") from error
        with suppress(OSError):
            if text := _text_note(source):
                raise SourceError("unreadable", f"{text} ({message})") from error
            if cut := truncated_box(source):
                raise SourceError("truncated", f"{cut} ({message})") from error
        raise SourceError(error.reason, message) from error


def _text_note(path: bytes) -> str:
    """That the file is text, such as the error page of a web server, and how it begins. Empty for other files."""
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        text = file.read(_TEXT_BYTES).decode("utf-8", "replace").strip()
    lines = text.replace("\t", " ").splitlines()
    # One character may be cut at the end.
    if not lines or text.count("\ufffd") > 1 or not all(map(str.isprintable, lines)):
        return ""
    return f"the file is text, which begins {lines[0][:_TEXT_SHOWN]!r}"


def open_source(path: Path, *, in_worker: bool = False) -> OpenedSource:
    """Describe a video and decode it, to learn its frames. A damaged video has those that decode. Raises SourceError.

    `in_worker`: end this process if the first frame takes too much CPU time.
    """
    ffmpeg, source = find_ffmpeg().path, bytes(path.absolute())
    with limit_cpu_time(silence_seconds()) if in_worker else nullcontext():
        info = describe_source(ffmpeg, source, _names(source), Path(tempfile.gettempdir()))
    run = _run(decode_arguments(ffmpeg, info, source), info, source)
    if run.sizes[0].size != info.coded:  # the container crops its pictures
        info = with_picture_size(info, *run.sizes[0].size)
    info = with_steady_rate(run, info)
    return OpenedSource(source, info, tuple(frame_times(run, info)), first_clean_frame(run, info))


def read_pictures(video: OpenedSource, frames: Sequence[int], short_side: int) -> DecodedVideo:
    """The frames of these numbers (ascending, without repeats), in BT.709 and limited range. Raises SourceError.

    Their short side is `short_side`, or less if the video is smaller. They are what a build with this recipe key
    encodes, without the loss of its codec. They are mapped from a file without a name in the temporary folder, so many
    of them take no memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pictures.yuv"
        write_pictures(video, frames, short_side, target)
        return map_pictures(video, len(frames), short_side, target)


def write_pictures(video: OpenedSource, frames: Sequence[int], short_side: int, target: Path) -> None:
    """Write the frames as `read_pictures` gives them, for `map_pictures` to read. Raises SourceError."""
    spec = BuildSpec(short_side=short_side, stride=1)
    _run(picture_arguments(find_ffmpeg().path, spec, video.info, video.path, frames, target), video.info, video.path)
    width, height = video.picture_size(short_side)
    if target.stat().st_size != len(frames) * width * height * 3 // 2:
        raise SourceError("encode-mismatch", "other frames decode each time; the file is damaged")


def map_pictures(video: OpenedSource, count: int, short_side: int, target: Path) -> DecodedVideo:
    """`count` written frames. The file may be removed as soon as this returns."""
    width, height = video.picture_size(short_side)
    data = np.asarray(np.memmap(target, np.uint8, "c")).reshape(count, -1)
    y, u, v = np.split(data, [width * height, width * height * 5 // 4], axis=1)
    return DecodedVideo(y.reshape(-1, height, width), *(plane.reshape(-1, height // 2, width // 2) for plane in (u, v)))


def _run(arguments: list[str], info: VideoInfo, source: bytes) -> FfmpegRun:
    run = run_ffmpeg(arguments, _names(source))
    staging = Path(tempfile.gettempdir())
    check_result(run, info, source, thinning=Thinning(1), keep_truncated=True, may_change=True, staging=staging)
    return run


def _names(source: bytes) -> dict[str, str]:
    return {os.path.abspath(os.fsdecode(source)): "the video", os.fsdecode(source): "the video"}
