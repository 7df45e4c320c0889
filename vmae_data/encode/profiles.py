"""How frames are encoded: what each codec profile asks of ffmpeg, and which sources `copy` takes as they are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from vmae_data.encode.build_spec import Profile
from vmae_data.encode.probe import VideoInfo, scaled_size
from vmae_data.format import Colour, Rational

__all__ = ["coded_rate", "colour_of", "copies", "encoder_options", "source_colour"]

_UNTAGGED = ("unknown",)
_HD_LINES = 720
_BT601 = ("bt470bg", "smpte170m")
# MPEG-4 part 2 counts time in 16 bits.
_MPEG4_MOST_TICKS = 65535
# ffmpeg's muxer takes no packet that lasts 2^31 of its ticks.
_MP4_MOST_TICKS = 1_000_000


def coded_rate(profile: Profile, rate: Rational) -> Rational:
    """The rate at which an encoded file counts: the kept frames' own, or one that its codec can write."""
    most = _MPEG4_MOST_TICKS if profile == "mpeg4" else _MP4_MOST_TICKS
    if rate.num <= most:
        return rate
    # Irregular videos have mean rates such as 25000000/10600053; when their frames are shown stands in the facts.
    near = Fraction(rate.num, rate.den).limit_denominator(max(1, most // math.ceil(float(rate))))
    return Rational(near.numerator, near.denominator)


def encoder_options(profile: Profile, *, crf: int, qscale: int, gop: int) -> dict[str, Any]:
    """ffmpeg's options for the encoder: one thread, bit-exact."""
    common = {"threads": 1, "flags:v": "+bitexact"}
    if profile == "mpeg4":
        # No B frames: a frame then needs only the one before it, which is what makes it fast to decode.
        return {"c:v": "mpeg4", "q:v": qscale, "g": gop, "bf": 0, "mbd": "rd", **common}
    if profile == "mjpeg":
        return {"c:v": "mjpeg", "q:v": qscale, "huffman": "optimal", **common}
    return {
        "c:v": "libx264",
        "preset": "medium",
        "tune": "fastdecode",
        "crf": crf,
        "g": gop,
        "sc_threshold": 0,
        "x264-params": "cpu-independent=1",
        **common,
    }


def source_colour(info: VideoInfo) -> Colour:
    """The colours of a source. What an untagged one is taken for follows its lines, and is said."""
    assumed = not info.rgb and info.matrix in _UNTAGGED
    matrix = ("bt709" if min(info.width, info.height) >= _HD_LINES else "bt601") if assumed else info.matrix
    return Colour(matrix=matrix, full_range=info.full_range, source_matrix=matrix, assumed=assumed)


def colour_of(profile: Profile, info: VideoInfo) -> Colour:
    """The colours that an encoded file has: BT.709 limited, JPEG's own for mjpeg, the source's for a copy."""
    found = source_colour(info)
    if profile == "copy":
        known = "bt601" if found.matrix in _BT601 else found.matrix
        return Colour(matrix=known, full_range=found.full_range, source_matrix=found.matrix, assumed=found.assumed)
    if profile == "mjpeg":
        return Colour(matrix="bt601", full_range=True, source_matrix=found.source_matrix, assumed=found.assumed)
    return Colour(matrix="bt709", full_range=False, source_matrix=found.source_matrix, assumed=found.assumed)


def copies(info: VideoInfo, short_side: int) -> bool:
    """Whether a source may go into a shard as it is: H.264 in 4:2:0 of 8 bits, upright, square pixels, even
    sizes, no larger than wanted, in a matrix that the device path knows.
    """
    return (
        info.codec == "h264"
        and info.pixel_format in ("yuv420p", "yuvj420p")
        and info.rotation == 0
        and info.square
        and scaled_size(info, short_side) == (info.width, info.height)
        and colour_of("copy", info).matrix in ("bt601", "bt709")
    )
