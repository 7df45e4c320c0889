"""The bytes of a shard's mp4, frame numbers → uint8 planes. PyAV, no torch.

The build accepts an encoded file only if this decoder reads it, and training uses no other.
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags2
from numpy.typing import NDArray

from vmae_data.errors import SampleError
from vmae_data.format import Packets, Rational
from vmae_data.motion import Vectors, vectors_of
from vmae_data.mp4 import PacketTable, check_claims, packet_table

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "DecodedVideo",
    "FramePlanes",
    "PacketChoice",
    "check_key_frames",
    "choose_packets",
    "decode_all",
    "decode_frames",
    "decode_some",
    "read_packets",
]

U8 = NDArray[np.uint8]

# Limits for a frame in a shard: twice 8K. Larger claims only exhaust the memory.
MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
# Decoders check coded frames by the same limit, and mpeg4 a buffer of one padded line of pixels times 280.
_PADDING = 192
_BUFFER_LINES = 280


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


class PacketChoice(NamedTuple):
    """A packet to decode, the number of its frame, and whether that frame is wanted or only precedes wanted ones."""

    packet: int
    number: int
    wanted: bool


def decode_frames(
    data: bytes,
    numbers: Sequence[int],
    key: str,
    size: tuple[int, int] | None = None,
    vectors: list[Vectors | None] | None = None,
) -> Iterator[FramePlanes]:
    """The frames `numbers` (strictly ascending) of a shard's mp4.

    Frames are numbered by their time stamps, which the build made regular from 0. Raises SampleError if a frame does not
    decode, or not to `size` (height, width). A claim of the file allocates no memory before it is checked.
    The motion vectors of each frame are appended to the list `vectors`, if there is one.
    """
    av.logging.set_level(None)
    check_claims(data, key)
    decoded = 0
    if (table := packet_table(data)) is not None:
        for frame in _decode_packets(data, table, numbers, key, size, vectors):
            yield frame
            decoded += 1
    # FFmpeg's demuxer also reads files of other forms, and its errors state the cause.
    if decoded < len(numbers):
        yield from _decode_container(data, numbers, key, size, decoded, vectors)


def choose_packets(packets: Packets, numbers: Sequence[int]) -> list[PacketChoice]:
    """The packets from a key frame to the last that the frames `numbers` need; none if the table lacks one of them."""
    step = packets.dts[1] - packets.dts[0] if len(packets.dts) > 1 else 1
    number_of = [pts // step for pts in packets.pts]
    packet_of = {number: packet for packet, number in enumerate(number_of)}
    if not numbers or not packet_of.keys() >= set(numbers) or any(pts % step for pts in packets.pts):
        return []
    needed = [packet_of[number] for number in numbers]
    starts = [packet for packet in packets.keys if packet <= min(needed) and number_of[packet] <= numbers[0]]
    if not starts:
        return []
    wanted = set(needed)
    return [PacketChoice(n, number_of[n], n in wanted) for n in range(max(starts), max(needed) + 1)]


def _decode_packets(
    data: bytes,
    table: PacketTable,
    numbers: Sequence[int],
    key: str,
    size: tuple[int, int] | None,
    vectors: list[Vectors | None] | None,
) -> Iterator[FramePlanes]:
    """The frames `numbers` up to the first that does not decode."""
    left = deque(numbers)
    with contextlib.suppress(av.FFmpegError):
        for frame in _decoded(data, table, choose_packets(table.packets, numbers), size, vectors is not None):
            number = -1 if frame.pts is None else frame.pts
            if not left or number < left[0]:
                continue
            if number > left[0] or not _is_planar(frame):
                return
            planes = _planes(frame, left.popleft(), key, size)
            if vectors is not None:
                vectors.append(vectors_of(frame))
            yield planes


def _decoded(
    data: bytes, table: PacketTable, choices: Sequence[PacketChoice], size: tuple[int, int] | None, with_vectors: bool
) -> Iterator[av.VideoFrame]:
    # A new context for each clip: reuse saves no time for H.264, and packets could change the state of a context.
    context = av.CodecContext.create(table.codec, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.extradata, context.options, context.thread_count = table.extradata, _limit(size), 1
    if with_vectors:
        context.flags2 |= Flags2.export_mvs
    for choice in choices:
        start, length = table.packets.positions[choice.packet], table.packets.sizes[choice.packet]
        packet = av.Packet(length)  # with zeros after its end, which decoders read; a packet of given bytes has none
        packet.update(data[start : start + length])
        packet.pts = choice.number
        # A frame that no other frame needs is decoded only if it is wanted.
        context.skip_frame = "DEFAULT" if choice.wanted else "NONREF"
        yield from context.decode(packet)
    yield from context.decode(None)


def _limit(size: tuple[int, int] | None) -> dict[str, str]:
    """Options of a decoder that refuses larger frames."""
    pixels = MAX_PIXELS if size is None else (max(size[0], _BUFFER_LINES) + _PADDING) * (size[1] + _PADDING)
    return {"max_pixels": str(pixels)}


def _decode_container(
    data: bytes,
    numbers: Sequence[int],
    key: str,
    size: tuple[int, int] | None,
    decoded: int,
    vectors: list[Vectors | None] | None,
) -> Iterator[FramePlanes]:
    """The frames `numbers` but for the first `decoded`, which the caller has."""
    limit = _limit(size)
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4", metadata_errors="replace", options=limit) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SampleError(key, "its codec has no decoder; the mp4 is damaged")
            stream.codec_context.options = limit
            # One thread: workers are the parallelism, and frame threads differ in which frames they lose.
            stream.codec_context.thread_count = 1
            if vectors is not None:
                stream.codec_context.flags2 |= Flags2.export_mvs
            if not stream.time_base or not stream.average_rate:
                raise SampleError(key, "the mp4 states no time base or frame rate")
            step = 1 / (stream.average_rate * stream.time_base)
            if numbers[decoded] > 0:
                container.seek(int(numbers[decoded] * step), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = _number(frame.pts, step)
                if number < numbers[decoded]:
                    continue
                if number > numbers[decoded] or not _is_planar(frame):
                    break
                planes = _planes(frame, number, key, size)
                if vectors is not None:
                    vectors.append(vectors_of(frame))
                yield planes
                decoded += 1
                if decoded == len(numbers):
                    return
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SampleError(key, f"does not decode ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if decoded < len(numbers):
        raise SampleError(key, f"frame {numbers[decoded]} does not decode ({decoded} of {len(numbers)} did)")


def _is_planar(frame: av.VideoFrame) -> bool:
    return frame.format.name in ("yuv420p", "yuvj420p")


def _planes(frame: av.VideoFrame, number: int, key: str, size: tuple[int, int] | None) -> FramePlanes:
    """Views of a frame's planes. Raises SampleError if the frame is not of `size`."""
    if size is not None and (frame.height, frame.width) != size:
        raise SampleError(key, f"decodes to {frame.width} × {frame.height} pixels; expected {size[1]} × {size[0]}")
    return FramePlanes(number, *(_plane(plane) for plane in frame.planes))


def _number(pts: int | None, step: Fraction) -> int:
    return -1 if pts is None else round(pts / step)


def _plane(plane: av.video.plane.VideoPlane) -> U8:
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


def check_key_frames(data: bytes, packets: Packets, key: str) -> None:
    """Raises SampleError unless decoding from each key frame gives the frames that decoding from the first one gives.

    Some containers list frames as key frames at which a gradual refresh only begins.
    """
    count = len(packets.pts)
    step = packets.dts[1] - packets.dts[0] if count > 1 else 1
    starts = sorted({0, *(packets.pts[packet] // step for packet in packets.keys)})
    all_frames = decode_frames(data, range(count), key)
    for start, stop in pairwise([*starts, count]):
        # This order: the last of `all_frames` must not be taken when the part ends.
        for frame, expected in zip(decode_frames(data, range(start, stop), key), all_frames, strict=False):
            if not all(map(np.array_equal, frame[1:], expected[1:])):
                raise SampleError(key, f"frame {frame.number} differs if decoding starts at frame {start}")


def _known(value: int | None) -> int:
    """Raises ValueError for a packet without a position or time."""
    if value is None:
        raise ValueError("a packet has no position or time")
    return value
