"""A decoded frame → how its picture is turned upright, and what ffmpeg's scaler must be told of its colours."""

from __future__ import annotations

import math
import struct
from typing import Any

import av

__all__ = ["is_full_range", "is_gray", "turn_filters", "unconverted_matrix"]

# AVColorSpace: those that ffmpeg's scaler refuses.
_UNCONVERTED = {
    3: "reserved", 8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "YDzDx", 12: "chroma-derived",
    13: "chroma-derived with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # AVColorRange
# Degrees clockwise: a plain turn, and a mirrored one.
_TRANSPOSES = {90: ("transpose=clock", "transpose=cclock_flip"), 270: ("transpose=cclock", "transpose=clock_flip")}
_UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)  # a display matrix
_TURNED = {90: (0, -1, 0, 1, 0, 0, 0, 0, 1), 180: (-1, 0, 0, 0, -1, 0, 0, 0, 1), 270: (0, 1, 0, -1, 0, 0, 0, 0, 1)}


def is_gray(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith(("gray", "ya"))


def is_full_range(frame: av.VideoFrame) -> bool:
    """Whether black is 0. If a source does not say, gray is, as for ffmpeg, and YUV is not."""
    if is_gray(frame):
        return int(frame.color_range) != _LIMITED_RANGE
    return int(frame.color_range) == _FULL_RANGE or frame.format.name.startswith("yuvj")


def unconverted_matrix(frame: av.VideoFrame) -> str:
    """The name of the frame's matrix if ffmpeg's scaler refuses it, else nothing."""
    return _UNCONVERTED.get(int(frame.colorspace), "")


def turn_filters(frame: av.VideoFrame) -> str:
    """The filters that apply the display matrix, as ffmpeg's own rotation does: a turn, and mirrored pictures too."""
    matrix = _display_matrix(frame)
    lengths = math.hypot(matrix[1], matrix[4]), math.hypot(matrix[0], matrix[3])
    if 0 in lengths:
        return ""
    degrees = round(math.degrees(math.atan2(matrix[1] / lengths[0], matrix[0] / lengths[1]))) % 360  # clockwise
    if degrees in _TRANSPOSES:
        plain, mirrored = _TRANSPOSES[degrees]
        return mirrored if matrix[3] * (180 - degrees) > 0 else plain
    if degrees not in (0, 180):
        return f"rotate={degrees}*PI/180"
    return ",".join(["hflip"] * (degrees == 180 and matrix[0] < 0) + ["vflip"] * (matrix[4] < 0))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...]:
    try:
        side_data: Any = frame.side_data
        return struct.unpack("=9i", bytes(side_data["DISPLAYMATRIX"]))
    except KeyError:
        return _UPRIGHT
    except ValueError:  # the frame has side data of a kind that PyAV does not know, and PyAV lists none then
        return _TURNED.get(round(frame.rotation) % 360, _UPRIGHT)
