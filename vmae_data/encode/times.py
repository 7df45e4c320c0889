"""The time stamps of the decoded frames → when each frame is displayed. Numbers only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from vmae_data.encode.ffmpeg import FfmpegRun
from vmae_data.encode.probe import VideoInfo
from vmae_data.format import Rational

__all__ = ["continuous_times", "exact_times", "first_clean_frame", "frame_times", "time_remarks", "time_stamps"]

# No codec displays a frame later than this many frames after it is decoded.
_MAX_REORDER = 16
# A frame this far from its neighbours has a wrong time stamp. Jitter of damaged files is shorter.
_OUTLIER_SECONDS = 1
# Their decoders omit frames without references. Streams with a gradual refresh have no key frame, and are clean.
_OMITS_UNCLEAN = ("h264", "hevc", "vvc")


class ContinuousTimes(NamedTuple):
    times: Sequence[int]
    restarts: int  # how often the time stamps start again
    outliers: int  # frames whose time stamp is ignored


def time_stamps(run: FfmpegRun, info: VideoInfo) -> list[int]:
    """The time stamps of the decoded frames in ticks. A frame without one is one step after the previous frame."""
    step = _step(info)
    stamps: list[int] = []
    for pts in run.pts:
        stamps.append(pts if pts is not None else (stamps[-1] if stamps else 0) + step)
    return stamps


def frame_times(run: FfmpegRun, info: VideoInfo) -> Sequence[int]:
    """When each decoded frame is displayed, in ticks."""
    return _continuous(run, info).times


def time_remarks(run: FfmpegRun, info: VideoInfo) -> list[str]:
    """Notes on time stamps that are not the times of the frames, and on frames that are left out."""
    remarks = []
    _, restarts, outliers = _continuous(run, info)
    if restarts:
        remarks.append(f"its time stamps start again {restarts} times: later frames continue from the earlier ones")
    if outliers:
        remarks.append(f"the time stamps of {outliers} frames are far from their neighbours': they are ignored")
    if unclean := first_clean_frame(run, info):
        remarks.append(f"begins with {unclean} frames that lack their references: they are left out")
    return remarks


def first_clean_frame(run: FfmpegRun, info: VideoInfo) -> int:
    """The number of the first frame that needs no frame before it; 0 if none is known."""
    return 0 if info.rules < 2 or info.codec in _OMITS_UNCLEAN else run.first_key_frame or 0


@lru_cache(maxsize=2)  # each check of a video asks for its times
def _continuous(run: FfmpegRun, info: VideoInfo) -> ContinuousTimes:
    stamps = time_stamps(run, info)
    if info.rules < 2:
        return ContinuousTimes(stamps, 0, 0)
    return continuous_times(stamps, _step(info), _OUTLIER_SECONDS * info.time_base.den / info.time_base.num)


def _step(info: VideoInfo) -> int:
    return max(1, round(float(info.frame_ticks)))


def continuous_times(stamps: Sequence[int], step: int, far: float) -> ContinuousTimes:
    """Times of time stamps that start again, as in joined files, or that are far off for a few frames.

    `step`: nominal ticks between two frames. `far`: ticks that no jitter reaches. Smaller steps back are kept: such a frame
    counts as displayed with the previous one.
    """
    times: list[int] = []
    offset = restarts = outliers = 0
    still = False
    for number, stamp in enumerate(stamps):
        time = stamp + offset
        still = bool(times) and _is_still(stamps, number, step, still)
        after = times[-1] + _last_step(times, step) if times else 0  # the time of a frame whose time stamp is wrong
        if still:
            time = after
            outliers += 1
        elif times and time < times[-1]:
            if ahead := _num_ahead(times, time, far):
                first = times[-ahead - 1]
                times[-ahead:] = [first + (time - first) * n // (ahead + 1) for n in range(1, ahead + 1)]
                outliers += ahead
            elif all(later + offset < times[-1] for later in stamps[number : number + _MAX_REORDER]):
                offset += after - time
                time = after
                restarts += 1
            elif times[-1] - time > far:
                time = after
                outliers += 1
        times.append(time)
    return ContinuousTimes(times, restarts, outliers)


def _last_step(times: Sequence[int], step: int) -> int:
    """The last step, or the nominal one if that is smaller: the nominal frame rate suffers from wrong time stamps."""
    last = times[-1] - times[-2] if len(times) > 1 else 0
    return min(last, step) if last > 0 else step


def _is_still(stamps: Sequence[int], number: int, step: int, before: bool) -> bool:
    """Whether the time stamps stand still. Muxers write the largest one again for all that are smaller."""
    most = 1 if step > _MAX_REORDER else 0  # some muxers add a tick
    if before:
        return 0 <= stamps[number] - stamps[number - 1] <= most
    steps = [after - now for now, after in pairwise(stamps[number : number + _MAX_REORDER])]
    return len(steps) >= 3 and all(0 <= one <= most for one in steps)


def _num_ahead(times: Sequence[int], time: int, far: float) -> int:
    """How many of the last frames are far ahead of both this time and the frame before them; 0 if too many."""
    ahead = next((n for n in range(1, min(_MAX_REORDER, len(times) - 1) + 1) if times[-n - 1] <= time), 0)
    return ahead if ahead and times[-ahead] - times[-ahead - 1] > far < min(times[-ahead:]) - time else 0


def exact_times(times: Sequence[int], base: Rational, frame_rate: Rational) -> tuple[list[int], Rational]:
    """The same times without the container's rounding, in ticks of a finer base.

    Matroska and FLV round times to a thousandth of a second, and a copy of such a file in mp4 still has these times.
    So a time within 1 ms, or within a tick, of a step of the nominal frame rate is that step.
    """
    second = math.lcm(base.den, frame_rate.num, 1000)
    step = second * frame_rate.den // frame_rate.num
    rounding = max(second * base.num // base.den, second // 1000)
    first = times[0] * base.num * second // base.den
    exact = []
    for time in times:
        since = time * base.num * second // base.den - first
        nearest = (2 * since + step) // (2 * step) * step
        exact.append(first + (nearest if abs(nearest - since) < rounding else since))
    return exact, Rational(1, second)
