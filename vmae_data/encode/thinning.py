"""Frame times and a recipe → the source frames that each segment and phase keeps. Numbers only, no I/O."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

from vmae_data.encode.build_spec import Thinning
from vmae_data.encode.probe import VideoInfo
from vmae_data.encode.times import exact_times
from vmae_data.format import Rational

__all__ = ["SegmentCut", "choose_frames", "cut_video", "kept_frame_rate", "select_by_stride", "select_frames"]

_MASK_BITS = 48  # a double holds them exactly


class SegmentCut(NamedTuple):
    """A segment, source frames [start, stop), and the frames of it that each phase keeps."""

    start: int
    stop: int
    kept: tuple[tuple[int, ...], ...]

    def after(self, count: int) -> SegmentCut:
        """The same segment of a video that begins `count` frames earlier."""
        kept = tuple(tuple(frame + count for frame in phase) for phase in self.kept)
        return SegmentCut(self.start + count, self.stop + count, kept) if count else self


def choose_frames(times: Sequence[int], info: VideoInfo, thinning: Thinning, first: int = 0) -> tuple[SegmentCut, ...]:
    """The frames to keep of a video whose frames are displayed at these times. Those before `first` are left out."""
    chosen, base = times[first:], info.time_base
    if info.rules >= 2:
        chosen, base = exact_times(chosen, base, info.frame_rate)
    return tuple(cut.after(first) for cut in cut_video(chosen, base, info.frame_rate, thinning))


def cut_video(times: Sequence[int], base: Rational, frame_rate: Rational, thinning: Thinning) -> tuple[SegmentCut, ...]:
    """The segments of a video. `times`: when each frame is displayed, in ticks of `base` seconds.

    A video is one segment unless `longest_seconds` is set. Then each phase's first and last kept frame of a segment are
    at most that far apart. Steady videos are cut by frame number, into segments of equal length except for one
    frame. Other videos are cut by time. A phase without a frame in a segment keeps the segment's first frame.
    """
    phases = [_kept_frames(times, base, frame_rate, thinning, phase) for phase in range(thinning.phases)]
    if thinning.longest_seconds is None:
        return _cut_at((), phases, len(times))
    second = Fraction(base.den, base.num)  # in ticks
    longest = Fraction(repr(thinning.longest_seconds)) * second
    source_step, step = (second * rate.den / rate.num for rate in (frame_rate, kept_frame_rate(frame_rate, thinning)))
    display_times = _without_steps_back(times)
    cuts = _cut_at(_starts_by_number(phases[0], frame_rate, thinning), phases, len(times))
    if _longest_span(cuts, display_times) <= longest and _are_even(cuts, display_times, step, step + 2 * source_step):
        return cuts
    return _cut_at(_starts_by_time(phases, display_times, longest), phases, len(times))


def _kept_frames(
    times: Sequence[int], base: Rational, frame_rate: Rational, thinning: Thinning, phase: int
) -> tuple[int, ...]:
    if thinning.rate is None:
        first = min(phase * thinning.stride // thinning.phases, len(times) - 1)
        return tuple(range(first, len(times), thinning.stride))
    return _kept_by_rate(times, base, frame_rate, thinning.rate, Fraction(phase, thinning.phases))


def _kept_by_rate(
    times: Sequence[int], base: Rational, frame_rate: Rational, kept_rate: Rational, offset: Fraction
) -> tuple[int, ...]:
    """The last frame displayed by each tick (offset + j) / kept_rate after the first frame. No frame twice.

    The last frame is displayed for one frame of the nominal frame rate.
    """
    # Integer units of time, `second` per second: exact, and fast enough for hours of video.
    second = math.lcm(base.den, frame_rate.num, kept_rate.num * offset.denominator)
    tick = second * kept_rate.den // kept_rate.num
    starts = [time * base.num * second // base.den for time in _without_steps_back(times)]
    starts.append(starts[-1] + second * frame_rate.den // frame_rate.num)
    origin = starts[0] + tick * offset.numerator // offset.denominator

    def has_tick(start: int, stop: int) -> bool:
        number = max(0, -((origin - start) // tick))  # the first tick at or after `start`
        return origin + number * tick < stop

    kept = tuple(number for number, (start, stop) in enumerate(pairwise(starts)) if has_tick(start, stop))
    return kept or (0,)


def _without_steps_back(times: Sequence[int]) -> list[int]:
    """Time stamps of damaged files may step back: such a frame counts as displayed with the previous one."""
    return list(accumulate(times, max))


def _cut_at(starts: Iterable[int], phases: Sequence[tuple[int, ...]], num_frames: int) -> tuple[SegmentCut, ...]:
    """The segments that begin at frame 0 and at each of `starts`, the same for every phase."""
    return tuple(
        SegmentCut(
            start, stop, tuple(kept[bisect_left(kept, start) : bisect_left(kept, stop)] or (start,) for kept in phases)
        )
        for start, stop in pairwise((0, *starts, num_frames))
    )


def _starts_by_number(kept: tuple[int, ...], frame_rate: Rational, thinning: Thinning) -> list[int]:
    """The starts of the fewest segments of at most `longest_seconds`, equal except for one kept frame."""
    assert thinning.longest_seconds is not None
    max_frames = max(1, int(thinning.longest_seconds * float(kept_frame_rate(frame_rate, thinning))))
    segments = -(-len(kept) // max_frames)
    return [kept[len(kept) * segment // segments] for segment in range(1, segments)]


def _starts_by_time(phases: Sequence[tuple[int, ...]], times: Sequence[int], longest: Fraction) -> Iterator[int]:
    """The starts of the fewest equal spans of at most `longest` ticks. A span without a frame is no segment."""
    kept = sorted(set().union(*phases))
    first, total = times[kept[0]], times[kept[-1]] - times[kept[0]]
    segments = max(1, math.ceil(total / longest))
    segment = 0
    for frame in kept:
        number = min(segments - 1, (times[frame] - first) * segments // max(1, total))
        if number > segment:
            segment = number
            yield frame


def _longest_span(cuts: Sequence[SegmentCut], times: Sequence[int]) -> int:
    """The most ticks between the first and the last frame that a phase keeps of a segment."""
    return max(times[kept[-1]] - times[kept[0]] for cut in cuts for kept in cut.kept)


def _are_even(cuts: Sequence[SegmentCut], times: Sequence[int], step: Fraction, tolerance: Fraction) -> bool:
    """Whether all segments are equally long, within `tolerance` ticks. The last frame is displayed for `step`."""
    starts = [*(Fraction(times[cut.kept[0][0]]) for cut in cuts), times[cuts[-1].kept[0][-1]] + step]
    mean = (starts[-1] - starts[0]) / len(cuts)
    return all(abs(after - before - mean) <= tolerance for before, after in pairwise(starts))


def kept_frame_rate(frame_rate: Rational, thinning: Thinning) -> Rational:
    """The nominal frame rate of the kept frames of a source with this nominal frame rate."""
    return thinning.rate or Rational(frame_rate.num, frame_rate.den * thinning.stride)


def select_by_stride(stride: int) -> str:
    """Every `stride`-th frame, as an expression of ffmpeg's select filter."""
    return f"not(mod(n,{stride}))"


def select_frames(kept: Sequence[int]) -> str:
    """Exactly these frames (ascending), as an expression of ffmpeg's select filter.

    Each frame is a bit of a mask, and the masks form a binary tree: about 40 bytes for 48 frames in any pattern.
    ffmpeg refuses a sum of 100 or more terms eq(n,…): it counts each term as one level deeper.
    """
    masks = [0] * (kept[-1] // _MASK_BITS + 1)
    for number in kept:
        masks[number // _MASK_BITS] |= 1 << number % _MASK_BITS
    return _mask_tree(masks, 0)


def _mask_tree(masks: Sequence[int], first: int) -> str:
    if len(masks) == 1:
        return f"mod(floor({masks[0]}/pow(2,n-{first * _MASK_BITS})),2)" if masks[0] else "0"
    middle = len(masks) // 2
    left, right = _mask_tree(masks[:middle], first), _mask_tree(masks[middle:], first + middle)
    return f"if(lt(n,{(first + middle) * _MASK_BITS}),{left},{right})" if (left, right) != ("0", "0") else "0"
