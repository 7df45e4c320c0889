"""Row 4. Which source frames are kept. Numbers only."""

from __future__ import annotations

from vmae_data.format import Rational, Regular

__all__ = ["ends_early", "kept_by_stride", "kept_rate", "select_expression"]

TRUNCATED_BELOW = 0.9


def kept_by_stride(frames: int, stride: int) -> Regular:
    """Every `stride`-th of `frames` source frames, the first included."""
    return Regular(first=0, step=stride, count=-(-frames // stride))


def select_expression(stride: int) -> str:
    """The same, as ffmpeg's select filter says it."""
    return f"not(mod(n,{stride}))"


def kept_rate(rate: Rational, stride: int) -> Rational:
    """The nominal rate of the kept frames."""
    return Rational(rate.num, rate.den * stride)


def ends_early(decoded_seconds: float, declared_seconds: float | None) -> bool:
    """Whether the last decoded frame ends before 90 % of what the container declares."""
    return declared_seconds is not None and decoded_seconds < TRUNCATED_BELOW * declared_seconds
