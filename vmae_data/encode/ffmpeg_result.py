"""Row 5. What a run of ffmpeg decoded, held against what the source declares: a verdict on the source."""

from __future__ import annotations

import math
import re
import signal
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from vmae_data.encode.build_spec import Thinning
from vmae_data.encode.ffmpeg import FfmpegRun, silence_seconds
from vmae_data.encode.probe import MOST_PIXELS, VideoInfo, packet_seconds, packet_times
from vmae_data.encode.thinning import ends_early
from vmae_data.errors import SourceError, VmaeError

__all__ = ["check_output_size", "check_result", "frame_times", "remarks_on"]

DAMAGED_ABOVE = 0.1  # of the frames, lost anywhere
SLOWER_BELOW = 0.99  # of the rate asked for: containers round times, Matroska's to a thousandth of a second
_CLAIMED_SIZE = re.compile(r"Picture size (\d+)x(\d+) (?:exceeds specified max pixel count|is invalid)")
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")


def check_result(run: FfmpegRun, info: VideoInfo, source: bytes, *, keep_truncated: bool, staging: Path) -> None:
    """Exit status is no test of a source: ffmpeg ends with 0 on damaged files. Count and time are."""
    if run.stalled:
        raise SourceError("stalled", f"ffmpeg decoded nothing for {silence_seconds():g} s and was ended")
    if run.status == -signal.SIGXFSZ or any(full in word for word in run.words for full in _FULL_DISK):
        # The disk's fault, not the video's: nothing is booked, and the same build goes on later.
        raise VmaeError(f"{staging}: no room left on the disk; free some and run the same command again")
    if run.status < 0:
        raise SourceError("killed", f"ffmpeg was ended by signal {-run.status}, twice")
    if run.restarted_at is not None:
        raise SourceError(
            "size-changes", f"the picture's size changes at frame {run.restarted_at}; encode it to one size"
        )
    if not run.pts:
        check_output_size(run)
        raise SourceError("undecodable", run.reason())
    if run.status != 0:
        raise SourceError("ffmpeg-failed", run.reason())
    if not math.isclose(run.ticks * info.time_base.num, info.time_base.den, rel_tol=1e-5):
        base = f"{info.time_base.num}/{info.time_base.den}"
        raise SourceError(
            "encode-mismatch", f"ffmpeg counts {run.ticks:g} ticks a second, PyAV a time base of {base}; encode it anew"
        )
    seconds = _decoded_seconds(run, info, 1 / float(info.rate))
    if not keep_truncated and ends_early(seconds, info.duration):
        # The last frame may be shown for long, as in recordings of a screen; only its packet says so.
        seconds = _decoded_seconds(run, info, packet_seconds(source, run.pts[-1]))
    if not keep_truncated and ends_early(seconds, info.duration):
        words = f" ({run.reason()})" if run.words else ""
        raise SourceError(
            "truncated",
            f"the last of {len(run.pts)} frames ends at {seconds:.2f} of {info.duration:.2f} s{words}",
        )
    if run.words and not keep_truncated:
        _judge_losses(run, info, source)


def check_output_size(run: FfmpegRun) -> None:
    """Where nothing was decoded: a frame of more than MOST_PIXELS is refused, as it may be nothing but a claim."""
    for word in run.words:
        found = _CLAIMED_SIZE.search(word)
        if found and int(found[1]) * int(found[2]) > MOST_PIXELS:
            raise SourceError("too-large", f"{found[1]} × {found[2]} pixels; {MOST_PIXELS} are the most (8192 × 8192)")


def _judge_losses(run: FfmpegRun, info: VideoInfo, source: bytes) -> None:
    """A file may be damaged in its middle and whole at its end: then ffmpeg complained, and frames are missing."""
    shown = sorted(frame_times(run, info))
    packets = packet_times(source)
    lost = _lost_packets(packets, shown, info) if packets else 0
    if lost > DAMAGED_ABOVE * len(packets):
        raise SourceError("damaged", f"{lost} of {len(packets)} frames don't decode ({run.reason()})")
    tick = info.time_base.num / info.time_base.den
    holes, span = _time_in_holes(shown) * tick, (shown[-1] - shown[0]) * tick
    if holes > DAMAGED_ABOVE * span:
        raise SourceError("damaged", f"no frames for {holes:.2f} of {span:.2f} s ({run.reason()})")


def _lost_packets(packets: Sequence[int], shown: Sequence[int], info: VideoInfo) -> int:
    """How many packets no frame was decoded of.

    Told by time, not by count: a frame's two fields may be two packets, and some packets are never shown.
    """
    near = 0.75 * info.rate.den * info.time_base.den / (info.rate.num * info.time_base.num)

    def lost_if(shift: int) -> int:
        """The same where ffmpeg counts from `shift` on."""

        def is_lost(time: int) -> bool:
            after = bisect_left(shown, time)
            return all(abs(time - neighbour) > near for neighbour in shown[max(0, after - 1) : after + 1])

        return sum(is_lost(time - shift) for time in packets)

    # ffmpeg counts from the container's start, which PyAV doesn't; and either end may be what is lost.
    return min(map(lost_if, {0, packets[0] - shown[0], packets[-1] - shown[-1]}))


def _time_in_holes(shown: Sequence[int]) -> int:
    """Ticks that are missing in a video that is steady but for a few holes: there a demuxer lost the packets too.

    0 for a video of variable rate, which has long steps of its own.
    """
    steps = [after - before for before, after in pairwise(shown)]
    usual = median(steps) if steps else 0
    holes = [step - usual for step in steps if step > 1.5 * usual]
    return int(sum(holes)) if len(holes) <= max(2, len(steps) // 4) else 0


def _decoded_seconds(run: FfmpegRun, info: VideoInfo, last: float) -> float:
    """How long the video lasts: from its first frame, or from time 0 where it begins later.

    Containers count a declared duration from either.
    """
    times = frame_times(run, info)
    tick = info.time_base.num / info.time_base.den
    return (max(times) - min(times)) * tick + last + max(0.0, info.start)


def frame_times(run: FfmpegRun, info: VideoInfo) -> list[int]:
    """Time stamps of the decoded frames; a frame without one follows its neighbour."""
    step = max(1, round(info.time_base.den * info.rate.den / (info.time_base.num * info.rate.num)))
    times: list[int] = []
    for pts in run.pts:
        times.append(pts if pts is not None else (times[-1] if times else 0) + step)
    return times


def remarks_on(run: FfmpegRun, info: VideoInfo, thinning: Thinning) -> tuple[str, ...]:
    """What a person should know of a source that was made all the same."""
    remarks = list(info.remarks)
    if run.words:
        remarks.append(f"ffmpeg complained: {run.reason()}")
    if info.duration is None:
        remarks.append("no declared duration: truncation was not tested")
    shown = _shown_rate(run, info)
    if thinning.rate is not None and shown < SLOWER_BELOW * float(thinning.rate):
        remarks.append(f"shows {shown:.3g} frames a second, fewer than the {float(thinning.rate):g} asked for")
    return tuple(remarks)


def _shown_rate(run: FfmpegRun, info: VideoInfo) -> float:
    """Frames a second on average, by their times; of a single frame what the container says."""
    times = frame_times(run, info)
    ticks = max(times) - min(times)
    return (len(times) - 1) * info.time_base.den / (ticks * info.time_base.num) if ticks else float(info.rate)
