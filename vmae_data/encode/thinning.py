"""Row 4. Which source frames are kept, in which segment and phase. Numbers only."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

from vmae_data.encode.build_spec import Thinning
from vmae_data.format import Rational

__all__ = ["SegmentCut", "cut_video", "ends_early", "kept_rate", "select_by_stride", "select_frames"]

TRUNCATED_BELOW = 0.9
_MASK_BITS = 48  # a double holds them exactly


class SegmentCut(NamedTuple):
    """A part of a video, in source frames [start, stop), and the frames that each phase keeps of it."""

    start: int
    stop: int
    kept: tuple[tuple[int, ...], ...]


def cut_video(times: Sequence[int], base: Rational, rate: Rational, thinning: Thinning) -> tuple[SegmentCut, ...]:
    """The segments of a video whose frames are shown at `times` (ticks of `base` seconds); `rate` is its nominal one.

    One segment, unless `longest_seconds` is given: then from the first to the last frame that a phase keeps of a segment
    it is no longer than that, by `times`. Steady videos are cut by number, into parts of equal length but for one
    frame; others by time. A phase without a frame in a segment takes the segment's first.
    """
    phases = [_phase(times, base, rate, thinning, phase) for phase in range(thinning.phases)]
    if thinning.longest_seconds is None:
        return _at(phases, (), len(times))
    second = Fraction(base.den, base.num)  # in ticks
    longest = Fraction(repr(thinning.longest_seconds)) * second
    source_step, step = (second * one.den / one.num for one in (rate, kept_rate(rate, thinning)))
    shown = _shown(times)
    cuts = _at(phases, _starts_by_number(phases[0], rate, thinning), len(times))
    if _longest_span(cuts, shown) <= longest and _are_even(cuts, shown, step, step + 2 * source_step):
        return cuts
    return _at(phases, _starts_by_time(phases, shown, longest), len(times))


def _at(phases: Sequence[tuple[int, ...]], starts: Iterable[int], total: int) -> tuple[SegmentCut, ...]:
    """The segments that begin at frame 0 and at each of `starts`: the same for every phase."""
    return tuple(
        SegmentCut(
            start, stop, tuple(kept[bisect_left(kept, start) : bisect_left(kept, stop)] or (start,) for kept in phases)
        )
        for start, stop in pairwise((0, *starts, total))
    )


def _starts_by_number(kept: tuple[int, ...], rate: Rational, thinning: Thinning) -> list[int]:
    """Where the segments of a steady video begin: the fewest of `longest_seconds`, equal but for one kept frame."""
    assert thinning.longest_seconds is not None
    most = max(1, int(thinning.longest_seconds * float(kept_rate(rate, thinning))))
    parts = -(-len(kept) // most)
    return [kept[len(kept) * part // parts] for part in range(1, parts)]


def _starts_by_time(phases: Sequence[tuple[int, ...]], shown: Sequence[int], longest: Fraction) -> Iterator[int]:
    """Equal spans of time, as few as are short enough; one in which nothing is shown is no segment."""
    kept = sorted(set().union(*phases))
    first, whole = shown[kept[0]], shown[kept[-1]] - shown[kept[0]]
    parts = max(1, math.ceil(whole / longest))
    part = 0
    for frame in kept:
        own = min(parts - 1, (shown[frame] - first) * parts // max(1, whole))
        if own > part:
            part = own
            yield frame


def _longest_span(cuts: Sequence[SegmentCut], shown: Sequence[int]) -> int:
    """Ticks from the first to the last frame that a phase keeps of a segment."""
    return max(shown[kept[-1]] - shown[kept[0]] for cut in cuts for kept in cut.kept)


def _are_even(cuts: Sequence[SegmentCut], shown: Sequence[int], step: Fraction, most: Fraction) -> bool:
    """Whether each segment lasts as long as the others, but for `most` ticks; the last frame is shown for `step`."""
    begins = [*(Fraction(shown[cut.kept[0][0]]) for cut in cuts), shown[cuts[-1].kept[0][-1]] + step]
    usual = (begins[-1] - begins[0]) / len(cuts)
    return all(abs(after - before - usual) <= most for before, after in pairwise(begins))


def _shown(times: Sequence[int]) -> list[int]:
    """Damaged files have stamps that step back: such a frame counts as shown with the one before it."""
    return list(accumulate(times, max))


def _phase(times: Sequence[int], base: Rational, rate: Rational, thinning: Thinning, phase: int) -> tuple[int, ...]:
    if thinning.rate is None:
        first = min(phase * thinning.stride // thinning.phases, len(times) - 1)
        return tuple(range(first, len(times), thinning.stride))
    return _by_rate(times, base, rate, thinning.rate, Fraction(phase, thinning.phases))


def _by_rate(
    times: Sequence[int], base: Rational, rate: Rational, wanted: Rational, offset: Fraction
) -> tuple[int, ...]:
    """The last frame shown by each tick (offset + j) / wanted from the first frame on; no frame twice.

    The last frame is shown for one frame of the nominal rate.
    """
    # Whole units of time, `second` of them a second: exact, and fast enough for hours of video.
    second = math.lcm(base.den, rate.num, wanted.num * offset.denominator)
    tick = second * wanted.den // wanted.num
    shown = [time * base.num * second // base.den for time in _shown(times)]
    shown.append(shown[-1] + second * rate.den // rate.num)
    origin = shown[0] + tick * offset.numerator // offset.denominator

    def tick_within(begins: int, ends: int) -> bool:
        number = max(0, -((origin - begins) // tick))  # of the first tick at `begins` or later
        return origin + number * tick < ends

    kept = tuple(number for number, (begins, ends) in enumerate(pairwise(shown)) if tick_within(begins, ends))
    return kept or (0,)


def kept_rate(rate: Rational, thinning: Thinning) -> Rational:
    """The nominal rate of the kept frames of a source with this nominal rate."""
    return thinning.rate or Rational(rate.num, rate.den * thinning.stride)


def select_by_stride(stride: int) -> str:
    """Every `stride`-th frame, as an expression of ffmpeg's select filter."""
    return f"not(mod(n,{stride}))"


def select_frames(kept: Sequence[int]) -> str:
    """Just these frames (ascending), as an expression of ffmpeg's select filter.

    A frame's bit in a mask, the masks in a binary tree: some 40 bytes for 48 frames, however they lie. A plain
    sum of eq(n,…) is refused from 100 terms on: ffmpeg counts each as a level deeper.
    """
    masks = [0] * (kept[-1] // _MASK_BITS + 1)
    for number in kept:
        masks[number // _MASK_BITS] |= 1 << number % _MASK_BITS
    return _tree(masks, 0)


def _tree(masks: Sequence[int], first: int) -> str:
    if len(masks) == 1:
        return f"mod(floor({masks[0]}/pow(2,n-{first * _MASK_BITS})),2)" if masks[0] else "0"
    middle = len(masks) // 2
    left, right = _tree(masks[:middle], first), _tree(masks[middle:], first + middle)
    return f"if(lt(n,{(first + middle) * _MASK_BITS}),{left},{right})" if (left, right) != ("0", "0") else "0"


def ends_early(decoded_seconds: float, declared_seconds: float | None) -> bool:
    """Whether the last decoded frame ends before 90 % of what the container declares."""
    return declared_seconds is not None and decoded_seconds < TRUNCATED_BELOW * declared_seconds
