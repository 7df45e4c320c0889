"""A codec profile and a source → ffmpeg's encoder options and the colours of the encoded file."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from vmae_data.encode.build_spec import BuildSpec, Profile
from vmae_data.encode.probe import VideoInfo, scaled_size
from vmae_data.format import Colour, Rational

__all__ = ["can_copy", "coded_frame_rate", "encoded_colour", "encoder_options", "source_colour"]

_HD_LINES = 720
_BT601 = ("bt470bg", "smpte170m")
# MPEG-4 part 2 counts time in 16 bits.
_MPEG4_MAX_TICKS = 65535
# ffmpeg's muxer refuses a packet that lasts 2^31 of its ticks.
_MP4_MAX_TICKS = 1_000_000


def coded_frame_rate(profile: Profile, rate: Rational) -> Rational:
    """The frame rate that the encoded file states: the given one, or the nearest that its codec can write."""
    max_ticks = _MPEG4_MAX_TICKS if profile == "mpeg4" else _MP4_MAX_TICKS
    if rate.num <= max_ticks:
        return rate
    # Irregular videos have mean rates such as 25000000/10600053. The facts keep the exact times of their frames.
    nearest = Fraction(rate.num, rate.den).limit_denominator(max(1, max_ticks // math.ceil(float(rate))))
    return Rational(nearest.numerator, nearest.denominator)


def encoder_options(spec: BuildSpec) -> dict[str, Any]:
    """ffmpeg's options for the encoder: one thread, bit-exact."""
    common = {"threads": 1, "flags:v": "+bitexact"}
    if spec.profile == "mpeg4":
        # Without B frames a frame needs only the previous one, so decoding is fast.
        return {"c:v": "mpeg4", "q:v": spec.qscale, "g": spec.gop, "bf": 0, "mbd": "rd", **common}
    if spec.profile == "mjpeg":
        return {"c:v": "mjpeg", "q:v": spec.qscale, "huffman": "optimal", **common}
    exact = {"sc_threshold": 0, "x264-params": "cpu-independent=1", **common}
    return {"c:v": "libx264", "preset": "medium", "tune": "fastdecode", "crf": spec.crf, "g": spec.gop, **exact}


def source_colour(info: VideoInfo) -> Colour:
    """The colours of a source. The number of lines decides the matrix of an untagged source, marked as assumed."""
    assumed = not info.rgb and info.matrix == "unknown"
    matrix = ("bt709" if min(info.width, info.height) >= _HD_LINES else "bt601") if assumed else info.matrix
    return Colour(matrix=matrix, full_range=info.full_range, source_matrix=matrix, assumed=assumed)


def encoded_colour(profile: Profile, info: VideoInfo) -> Colour:
    """The colours of the encoded file: BT.709 limited, JPEG's own for mjpeg, the source's for copy."""
    source = source_colour(info)
    matrix, full_range = "bt709", False
    if profile == "copy":
        matrix, full_range = "bt601" if source.matrix in _BT601 else source.matrix, source.full_range
    elif profile == "mjpeg":
        matrix, full_range = "bt601", True
    return Colour(matrix=matrix, full_range=full_range, source_matrix=source.matrix, assumed=source.assumed)


def can_copy(info: VideoInfo, short_side: int) -> bool:
    """Whether a shard can hold the source's packets: H.264 in 4:2:0 with 8 bits, upright, with square pixels.

    The size must already be the scaled one, and decoding on the device must support the matrix.
    """
    return (
        info.codec == "h264"
        and info.pixel_format in ("yuv420p", "yuvj420p")
        and info.rotation == 0
        and info.square
        and scaled_size(info, short_side) == (info.width, info.height)
        and encoded_colour("copy", info).matrix in ("bt601", "bt709")
    )
