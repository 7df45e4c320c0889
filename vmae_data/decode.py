"""The bytes of a shard's mp4, frame numbers → uint8 planes. PyAV, no torch.

The build accepts an encoded file only if this decoder reads it, and training uses no other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import SampleError
from vmae_data.format import Packets, Rational

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "DecodedVideo",
    "FramePlanes",
    "decode_all",
    "decode_frames",
    "decode_some",
    "read_packets",
]

U8 = NDArray[np.uint8]

# Limits for a frame in a shard: twice 8K. Larger claims only exhaust the memory.
MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
_PADDING = 64  # of coded frames, in pixels
# A table of frame sizes: its name, version and flags, one size for all or a width, and the frame count.
_SIZE_TABLE = re.compile(rb"(?:stsz|stz2).{8}(.{4})", re.DOTALL)


class FramePlanes(NamedTuple):
    """Views of one decoded frame's planes, valid until the next frame is decoded: y (H, W), u and v (H/2, W/2)."""

    number: int
    y: U8
    u: U8
    v: U8


class DecodedVideo(NamedTuple):
    """Decoded frames as planes: y (T, H, W), u and v (T, H/2, W/2)."""

    y_THW: U8
    u_THW: U8
    v_THW: U8


class PacketTable(NamedTuple):
    """What a reader needs to decode a member without a demuxer."""

    codec: str
    extradata: bytes
    packets: Packets


def decode_frames(
    data: bytes, numbers: Sequence[int], key: str, size: tuple[int, int] | None = None
) -> Iterator[FramePlanes]:
    """The frames `numbers` (strictly ascending) of a shard's mp4.

    Frames are numbered by their time stamps, which the build made regular from 0. Raises SampleError if a frame does not
    decode, or not to `size` (height, width). A claim of the file allocates no memory before it is checked.
    """
    av.logging.set_level(None)
    decoded = 0
    _check_claims(data, key)
    pixels = MAX_PIXELS if size is None else (size[0] + _PADDING) * (size[1] + _PADDING)
    limit = {"max_pixels": str(pixels)}
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4", metadata_errors="replace", options=limit) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SampleError(key, "its codec has no decoder; the mp4 is damaged")
            stream.codec_context.options = limit
            # One thread: workers are the parallelism, and frame threads differ in which frames they lose.
            stream.codec_context.thread_count = 1
            if not stream.time_base or not stream.average_rate:
                raise SampleError(key, "the mp4 states no time base or frame rate")
            step = 1 / (stream.average_rate * stream.time_base)
            if numbers and numbers[0] > 0:
                container.seek(int(numbers[0] * step), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = _number(frame.pts, step)
                if number < numbers[decoded]:
                    continue
                if number > numbers[decoded] or frame.format.name not in ("yuv420p", "yuvj420p"):
                    break
                if size is not None and (frame.height, frame.width) != size:
                    raise SampleError(
                        key, f"decodes to {frame.width} × {frame.height} pixels; expected {size[1]} × {size[0]}"
                    )
                yield FramePlanes(number, *(_plane(frame, i) for i in range(3)))
                decoded += 1
                if decoded == len(numbers):
                    return
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SampleError(key, f"does not decode ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if decoded < len(numbers):
        raise SampleError(key, f"frame {numbers[decoded]} does not decode ({decoded} of {len(numbers)} did)")


def _check_claims(data: bytes, key: str) -> None:
    """Raises SampleError if the boxes claim more frames than bytes: FFmpeg allocates memory for every claimed frame.

    Checks all boxes: FFmpeg accepts a table of sizes where the standard allows none.
    """
    for box in _metadata_boxes(data):
        if b"moof" in box:
            raise SampleError(key, "its mp4 is fragmented; expected one piece")
        for match in _SIZE_TABLE.finditer(box):
            if (count := int.from_bytes(match[1])) > len(data):
                raise SampleError(key, f"its mp4 claims {count} frames in {len(data)} bytes")


def _metadata_boxes(data: bytes) -> Iterator[bytes]:
    """The top-level boxes of an mp4, except those with frame data."""
    start = 0
    while len(data) - start >= 8:
        length, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[start + 8 : start + 16]), 16
        elif length == 0:  # up to the end
            length = len(data) - start
        if length < head:
            return
        if kind != b"mdat":
            yield data[start : start + length]
        start += length


def _number(pts: int | None, step: Fraction) -> int:
    return -1 if pts is None else round(pts / step)


def _plane(frame: av.VideoFrame, i: int) -> U8:
    plane = frame.planes[i]
    # The lines of the buffer are padded; return a view of the visible part.
    lines = np.frombuffer(memoryview(plane), np.uint8)
    return lines.reshape(-1, plane.line_size)[: plane.height, : plane.width]


def decode_all(data: bytes, frames: int, key: str) -> DecodedVideo:
    """Every frame of a shard's mp4. Raises SampleError if it has fewer than `frames`."""
    return decode_some(data, range(frames), key)


def decode_some(data: bytes, numbers: Sequence[int], key: str, size: tuple[int, int] | None = None) -> DecodedVideo:
    """Copies of the frames that `decode_frames` yields."""
    copies = [tuple(plane.copy() for plane in frame[1:]) for frame in decode_frames(data, numbers, key, size)]
    y, u, v = (np.stack(planes) for planes in zip(*copies, strict=True))
    return DecodedVideo(y, u, v)


def read_packets(path: Path, key: str) -> PacketTable:
    """The packets of an encoded file, after decoding all of them.

    Raises SampleError unless each packet gives one frame in yuv420p, at regular times from 0.
    """
    av.logging.set_level(None)
    try:
        with av.open(str(path), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            base = stream.time_base or Fraction(1)
            table = Packets(
                time_base=Rational(base.numerator, base.denominator),
                positions=tuple(_known(packet.pos) for packet in packets),
                sizes=tuple(packet.size for packet in packets),
                pts=tuple(_known(packet.pts) for packet in packets),
                dts=tuple(_known(packet.dts) for packet in packets),
                keys=tuple(n for n, packet in enumerate(packets) if packet.is_keyframe),
            )
            codec, extradata = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
        with av.open(str(path), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            step = 1 / ((stream.average_rate or Fraction(1)) * base)
            numbers = [_number(frame.pts, step) for frame in container.decode(stream)]
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SampleError(key, f"the encoded file does not decode ({error})") from error
    if numbers != list(range(len(packets))):
        raise SampleError(
            key, f"the encoded file has {len(packets)} packets, but {len(numbers)} frames decode in order"
        )
    return PacketTable(codec, extradata, table)


def _known(value: int | None) -> int:
    """Raises ValueError for a packet without a position or time."""
    if value is None:
        raise ValueError("a packet has no position or time")
    return value
