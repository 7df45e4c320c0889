"""Row 10. Bytes or a video file, frame numbers → uint8 planes and their times. PyAV, no torch.

An encode is accepted by the build only when this decoder reads it, and training uses no other.
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
    "FrameSize",
    "decode_all",
    "decode_frames",
    "decode_some",
    "read_packets",
]

U8 = NDArray[np.uint8]

# Of a frame of a shard. Twice 8K: what is larger is no video to train on, and takes the memory of the machine.
MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
_PADDING = 64  # of coded frames, in pixels
# A table of frame sizes: its name, version and flags, one size for all or a width, and the count of frames.
_SIZE_TABLE = re.compile(rb"(?:stsz|stz2).{8}(.{4})", re.DOTALL)


class FramePlanes(NamedTuple):
    """Views of one decoded frame's planes, valid until the next frame is asked for: y (H, W), u and v (H/2, W/2)."""

    number: int
    y: U8
    u: U8
    v: U8


class FrameSize(NamedTuple):
    """Of a video's frames, in pixels."""

    height: int
    width: int


class PacketTable(NamedTuple):
    """What a reader needs to decode a member without a demuxer."""

    codec: str
    extradata: bytes
    packets: Packets


def decode_frames(data: bytes, wanted: Sequence[int], key: str, size: FrameSize | None = None) -> Iterator[FramePlanes]:
    """The wanted frames of a shard's mp4, in ascending order.

    `wanted` is strictly ascending. Frames are numbered by their time stamps, which the build made
    steady from 0. Raises SampleError when one of them doesn't come, or not in the `size` that is known of them; what
    the file claims takes no memory before it was looked at.
    """
    av.logging.set_level(None)
    position = 0
    _refuse_claims(data, key)
    room = MAX_PIXELS if size is None else (size.height + _PADDING) * (size.width + _PADDING)
    limit = {"max_pixels": str(room)}
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4", metadata_errors="replace", options=limit) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SampleError(key, "its codec has no decoder; the mp4 is damaged")
            stream.codec_context.options = limit
            # One thread: workers are the parallelism, and frame threads differ in which frames they lose.
            stream.codec_context.thread_count = 1
            if not stream.time_base or not stream.average_rate:
                raise SampleError(key, "the mp4 states no time base or rate")
            step = 1 / (stream.average_rate * stream.time_base)
            if wanted and wanted[0] > 0:
                container.seek(int(wanted[0] * step), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = _number(frame.pts, step)
                if number < wanted[position]:
                    continue
                if number > wanted[position] or frame.format.name not in ("yuv420p", "yuvj420p"):
                    break
                if size is not None and (frame.height, frame.width) != size:
                    raise SampleError(key, f"decodes to {frame.width} × {frame.height} pixels, not to {_words(size)}")
                yield FramePlanes(number, *(_plane(frame, i) for i in range(3)))
                position += 1
                if position == len(wanted):
                    return
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SampleError(key, f"does not decode ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if position < len(wanted):
        raise SampleError(key, f"frame {wanted[position]} does not decode ({position} of {len(wanted)} did)")


def _words(size: FrameSize) -> str:
    return f"{size.width} × {size.height}"


def _refuse_claims(data: bytes, key: str) -> None:
    """Raises SampleError where the boxes speak of more frames than bytes: FFmpeg makes room for as many as they say.

    Wherever in the boxes: FFmpeg takes a table of sizes in places where the norm has none.
    """
    for box in _boxes_but_data(data):
        if b"moof" in box:
            raise SampleError(key, "its mp4 is in fragments; a shard's is whole")
        for found in _SIZE_TABLE.finditer(box):
            if (count := int.from_bytes(found[1])) > len(data):
                raise SampleError(key, f"its mp4 claims {count} frames in {len(data)} bytes")


def _boxes_but_data(data: bytes) -> Iterator[bytes]:
    """The outermost boxes of an mp4, but those of the frames."""
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
    # A plane is a buffer; its lines are padded, so this is a view of the visible part.
    whole = np.frombuffer(memoryview(plane), np.uint8)
    return whole.reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _known(value: int | None) -> int:
    """Raises ValueError for a packet without a position or time."""
    if value is None:
        raise ValueError("a packet has no position or time")
    return value


class DecodedVideo(NamedTuple):
    """A whole video as planes: y (T, H, W), u and v (T, H/2, W/2)."""

    y_THW: U8
    u_THW: U8
    v_THW: U8


def decode_all(data: bytes, frames: int, key: str) -> DecodedVideo:
    """Every frame of a shard's mp4. Raises SampleError when there are fewer than `frames`."""
    return decode_some(data, range(frames), key)


def decode_some(data: bytes, wanted: Sequence[int], key: str, size: FrameSize | None = None) -> DecodedVideo:
    """The wanted frames (ascending) as planes of their own. Raises SampleError when one doesn't come."""
    copies = [tuple(plane.copy() for plane in shown[1:]) for shown in decode_frames(data, wanted, key, size)]
    y, u, v = (np.stack(planes) for planes in zip(*copies, strict=True))
    return DecodedVideo(y, u, v)


def read_packets(path: Path, key: str) -> PacketTable:
    """The packets of an encoded file, after decoding every one of them.

    Raises SampleError unless each packet gives one frame, at steady times from 0, in yuv420p.
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
            times = [_number(frame.pts, step) for frame in container.decode(stream)]
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SampleError(key, f"the encoded file does not decode ({error})") from error
    if times != list(range(len(packets))):
        raise SampleError(key, f"the encoded file has {len(packets)} packets, but {len(times)} frames decode in order")
    return PacketTable(codec, extradata, table)
