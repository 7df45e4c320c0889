"""The time stamps of the decoded frames → when each frame is displayed. Numbers only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from vmae_data.encode.ffmpeg import FfmpegRun
from vmae_data.encode.probe import VideoInfo
from vmae_data.format import Rational

__all__ = [
    "continuous_times",
    "exact_times",
    "far_ticks",
    "first_clean_frame",
    "frame_times",
    "held_runs",
    "mended_times",
    "time_remarks",
    "time_stamps",
]

# No codec displays a frame later than this many frames after it is decoded.
_MAX_REORDER = 16
# A frame this far from its neighbours has a wrong time stamp. Jitter of damaged files is shorter.
_OUTLIER_SECONDS = 1
# A first or last frame this many times further from all others has a wrong time stamp, if those are close together.
_LONE_FACTOR = 600
# After a time stamp that is too large, muxers hold their clock. Fewer frames at one time may be jitter.
_MIN_HELD = 4
# So many frames in a row with the times of earlier frames begin again. Fewer may be jitter.
_MIN_AGAIN = 8
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
    if info.rules < 3:
        return continuous_times(stamps, _step(info), far_ticks(info))
    return mended_times(stamps, info.frame_ticks, far_ticks(info))


def _step(info: VideoInfo) -> int:
    return max(1, round(float(info.frame_ticks)))


def far_ticks(info: VideoInfo) -> float:
    """Ticks that no jitter reaches."""
    return _OUTLIER_SECONDS * info.time_base.den / info.time_base.num


def mended_times(stamps: Sequence[int], exact_step: Fraction, far: float) -> ContinuousTimes:
    """As `continuous_times`, but also ignores a wrong time stamp of the first or last frame, and clocks that are held."""
    step = max(1, round(exact_step))
    if all(_largest_still(step) < after - now <= far for now, after in pairwise(stamps)):
        return ContinuousTimes(list(stamps), 0, 0)
    stamps, held = _release_clock(stamps, exact_step, far)
    enough = len(stamps) > _MAX_REORDER
    ahead = enough and stamps[0] - max(stamps[1:3]) > far
    behind = enough and min(stamps[-3:-1]) - stamps[-1] > far
    inner = stamps[ahead : len(stamps) - behind]
    continuous, restarts, outliers = continuous_times(inner, step, far, short_restarts=True)
    times = list(continuous)
    if ahead:
        times.insert(0, times[0] - step)
        times = [time + max(0, -times[0]) for time in times]  # the container counts from the wrong time stamp
    if behind:
        times.append(times[-1] + _last_step(times, step))
    steps = [after - now for now, after in pairwise(times)]
    early = enough and steps[0] > _LONE_FACTOR * far and max(steps[1:]) <= far
    late = enough and steps[-1] > _LONE_FACTOR * far and max(steps[:-1]) <= far
    if early:
        times[0] = times[1] - step
    if late:
        times[-1] = times[-2] + _last_step(times[:-1], step)
    return ContinuousTimes(times, restarts, outliers + held + sum((ahead, behind, early, late)))


def _release_clock(stamps: Sequence[int], step: Fraction, far: float) -> tuple[list[int], int]:
    """The time stamps without held clocks, and how many were wrong.

    Jumps into a held clock are undone. Held frames share the time until the next frame, if that is where it belongs.
    Else they get the nominal step, but a few frames count as held only after a jump or at the end.
    """
    released: list[int] = []
    offset = wrong = 0
    for start, stop in held_runs(stamps, _largest_still(round(step))):
        count, time = stop - start, stamps[start] + offset
        jump = time - released[-1] - round(step) if released else 0
        jump = jump if count >= _MIN_HELD and jump > far else 0
        later = [(stamps[stop] + one - time + jump, one) for one in (offset, offset - jump) if stop < len(stamps)]
        fits = next(((span, one) for span, one in later if abs(span - count * step) * 4 <= step), None)
        if count >= _MIN_HELD and (fits or jump or count >= _MAX_REORDER or stop == len(stamps)):
            span, offset = fits or (count * step, offset - jump)
            released += [time - jump + round(Fraction(span * number, count)) for number in range(count)]
            wrong += count if jump else count - 1
        else:
            released += [stamp + offset for stamp in stamps[start:stop]]
    return released, wrong


def held_runs(stamps: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of frames whose time stamps rise by at most `most`."""
    moves = (n for n in range(1, len(stamps)) if not 0 <= stamps[n] - stamps[n - 1] <= most)
    return pairwise((0, *moves, len(stamps)) if stamps else ())


def continuous_times(stamps: Sequence[int], step: int, far: float, *, short_restarts: bool = False) -> ContinuousTimes:
    """Times of time stamps that start again, as in joined files, or that are far off for a few frames.

    `step`: nominal ticks between two frames. `far`: ticks that no jitter reaches. Smaller steps back are kept: such a frame
    counts as displayed with the previous one. With `short_restarts` a recording of less than `far` may start again too.
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
            elif all(later + offset < times[-1] for later in stamps[number : number + _MAX_REORDER]) or (
                short_restarts and _begins_again(times, stamps[number : number + _MIN_AGAIN], offset, step)
            ):
                offset += after - time
                time = after
                restarts += 1
            elif times[-1] - time > far:
                time = after
                outliers += 1
        times.append(time)
    return ContinuousTimes(times, restarts, outliers)


def _begins_again(times: Sequence[int], stamps: Sequence[int], offset: int, step: int) -> bool:
    """Whether steady time stamps begin again at times that earlier frames have. Frames in a wrong order fill a gap."""
    if len(stamps) < _MIN_HELD or not all(0 < after - now <= 2 * step for now, after in pairwise(stamps)):
        return False
    first = stamps[0] + offset
    passed = (times[-1] - first) // step + 1  # nominal frames
    shown = sum(2 * (time - first) >= -step for time in times[-passed - _MAX_REORDER :])
    return shown >= max(_MIN_AGAIN, 3 * passed // 4)


def _last_step(times: Sequence[int], step: int) -> int:
    """The last step, or the nominal one if that is smaller: the nominal frame rate suffers from wrong time stamps."""
    last = times[-1] - times[-2] if len(times) > 1 else 0
    return min(last, step) if last > 0 else step


def _is_still(stamps: Sequence[int], number: int, step: int, before: bool) -> bool:
    """Whether the time stamps stand still. Muxers write the largest one again for all that are smaller."""
    most = _largest_still(step)
    if before:
        return 0 <= stamps[number] - stamps[number - 1] <= most
    steps = [after - now for now, after in pairwise(stamps[number : number + _MAX_REORDER])]
    return len(steps) >= 3 and all(0 <= one <= most for one in steps)


def _largest_still(step: int) -> int:
    """The largest step of time stamps that stand still: some muxers add a tick."""
    return 1 if step > _MAX_REORDER else 0


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
