"""The nominal frame rate of a source whose wrong time stamps spoil the mean that its container gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import median

from vmae_data.encode.ffmpeg import FfmpegRun
from vmae_data.encode.probe import VideoInfo
from vmae_data.encode.times import far_ticks, held_runs, mended_times, time_stamps
from vmae_data.format import Rational

__all__ = ["with_steady_rate"]

# Frames closer than 1/1000 s show no frame rate: a muxer gave them a tick each.
_HIGHEST_RATE = 1000
# Below this number of ticks, frames that share a time and frames at successive ticks look alike.
_LEAST_SHARED = 16
_ASSUMED_RATE = Rational(25, 1)
_TOLERANCE = 0.05
_MAX_DENOMINATOR = 1 << 20  # ffmpeg counts with 31 bits


def with_steady_rate(run: FfmpegRun, info: VideoInfo) -> VideoInfo:
    """The same video at the rate of its mended times, if its time stamps are wrong and its nominal frame rate differs."""
    if info.rules < 3 or len(run.pts) < 2:
        return info
    stamps, base = time_stamps(run, info), info.time_base
    likely = _likely_rate(stamps, info)
    if likely == info.frame_rate:
        return info
    times, restarts, outliers = mended_times(stamps, info._replace(frame_rate=likely).frame_ticks, far_ticks(info))
    ticks = times[-1] - times[0]
    if not restarts + outliers or ticks <= 0:
        return info
    mean = Fraction((len(times) - 1) * base.den, ticks * base.num).limit_denominator(_MAX_DENOMINATOR)
    if not mean or abs(float(info.frame_rate) / float(mean) - 1) <= _TOLERANCE:
        return info
    rate = likely if likely == info.codec_rate else Rational(mean.numerator, mean.denominator)
    remark = f"its time stamps state {float(info.frame_rate):.4g} frames a second: {float(rate):.4g} is used"
    return info._replace(frame_rate=rate, remarks=(*info.remarks, remark))


def _likely_rate(stamps: Sequence[int], info: VideoInfo) -> Rational:
    """The stated frame rate that has the median step between frames, else the rate of that step."""
    second = Fraction(info.time_base.den, info.time_base.num)  # in ticks
    steps = [step for step in _median_steps(stamps) if step >= second / _HIGHEST_RATE]
    for step in steps:
        for rate in filter(None, (info.frame_rate, info.codec_rate)):
            nominal = second * rate.den / rate.num
            if nominal >= second / _HIGHEST_RATE and abs(nominal - step) <= max(Fraction(1), second / 1000):
                return rate
    if not steps:
        return info.codec_rate or _ASSUMED_RATE
    found = second / steps[0]
    return Rational(found.numerator, found.denominator)


def _median_steps(stamps: Sequence[int]) -> Iterator[Fraction]:
    """The median ticks from frame to frame: if frames at one time share the time until the next, and as they are."""
    *runs, _ = held_runs(stamps, 1)  # nothing follows the last one
    shares = [(stamps[b] - stamps[a]) / (b - a) for a, b in runs for _ in range(b - a)]
    if shares and (shared := median(shares)) > _LEAST_SHARED:
        yield Fraction(shared)
    yield Fraction(median(after - now for now, after in pairwise(stamps)))
