"""The bytes of a shard's mp4 → its packet table, without a demuxer. Refuses claims that would exhaust the memory."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import SampleError
from vmae_data.format import Packets, Rational

__all__ = ["PacketTable", "check_claims", "child_boxes", "list_boxes", "packet_table", "table_rows"]

# A table of frame sizes: its name, version and flags, one size for all or a width, and the frame count.
_SIZE_TABLE = re.compile(rb"(?:stsz|stz2).{8}(.{4})", re.DOTALL)
_SAMPLE_ENTRY = 8 + 78  # a box's head, and what a video's sample entry holds before its own boxes
# Of a packet, on average: any codec needs more. The table takes hundreds of bytes for each packet.
_LEAST_BYTES = 4
_MPEG4_CODECS = {0x20: "mpeg4", 0x6C: "mjpeg"}  # object types of ISO/IEC 14496-1


class PacketTable(NamedTuple):
    """What a reader needs to decode a member without a demuxer."""

    codec: str
    extradata: bytes
    packets: Packets


def check_claims(data: bytes, key: str) -> None:
    """Raises SampleError if the boxes claim more frames than bytes: FFmpeg allocates memory for every claimed frame.

    Checks all boxes: FFmpeg accepts a table of sizes where the standard allows none.
    """
    for kind, start, end in list_boxes(data, 0, len(data)):
        if kind == b"mdat":
            continue
        box = data[start:end]
        if kind == b"moof" or b"moof" in box:
            raise SampleError(key, "its mp4 is fragmented; expected one piece")
        for match in _SIZE_TABLE.finditer(box):
            if (count := int.from_bytes(match[1])) > len(data):
                raise SampleError(key, f"its mp4 claims {count} frames in {len(data)} bytes")


def packet_table(data: bytes) -> PacketTable | None:
    """The packets of an mp4, by its own tables; None if it is not of the form that a build writes.

    That form: one track, frames at regular times, one piece of frame data.
    """
    try:
        return _packet_table(data)
    except (KeyError, ValueError, IndexError, struct.error):
        return None


def _packet_table(data: bytes) -> PacketTable | None:
    """Raises KeyError for a missing box, ValueError or struct.error for a malformed one."""
    [movie] = [span for kind, *span in list_boxes(data, 0, len(data)) if kind == b"moov"]
    [track] = [span for kind, *span in list_boxes(data, *movie) if kind == b"trak"]
    boxes = child_boxes(data, *track)
    media = child_boxes(data, *boxes[b"mdia"])
    tables = child_boxes(data, *child_boxes(data, *media[b"minf"])[b"stbl"])

    (scale,) = struct.unpack_from(">I", data, media[b"mdhd"][0] + 12)
    shift = _edit(data, *child_boxes(data, *boxes[b"edts"])[b"elst"])
    durations = table_rows(data, tables[b"stts"], 2)
    sizes = _sizes(data, tables[b"stsz"])
    count, duration = durations[0].tolist()
    if len(durations) != 1 or count != len(sizes) or not duration or not scale:
        return None
    times = np.arange(count) * duration
    offsets = _offsets(data, tables.get(b"ctts"), count)
    positions = _positions(data, tables, sizes)
    if positions is None or offsets is None or positions[-1] + sizes[-1] > len(data):
        return None
    keys = table_rows(data, tables[b"stss"], 1)[:, 0] - 1 if b"stss" in tables else np.arange(count)
    if not len(keys) or keys.min() < 0 or keys.max() >= count:
        return None
    packets = Packets(
        time_base=Rational(1, scale),
        positions=tuple(positions.tolist()),
        sizes=tuple(sizes.tolist()),
        pts=tuple((times + offsets - shift).tolist()),
        dts=tuple((times - shift).tolist()),
        keys=tuple(keys.tolist()),
    )
    return PacketTable(*_codec(data, *tables[b"stsd"]), packets)


def list_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two positions: the kind of each, where its content starts and ends."""
    while end - start >= 8:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[start + 8 : start + 16]), 16
        elif length == 0:  # up to the end
            length = end - start
        if length < head:
            return
        yield kind, start + head, min(start + length, end)
        start += length


def child_boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    return {kind: (start, end) for kind, start, end in list_boxes(data, start, end)}


def table_rows(data: bytes, span: tuple[int, int], columns: int) -> NDArray[np.int64]:
    """A table with a count and rows of signed numbers. Raises ValueError if it is cut."""
    start, end = span
    (count,) = struct.unpack_from(">I", data, start + 4)
    if count * columns * 4 > end - start - 8:
        raise ValueError("a table is longer than its box")
    return np.frombuffer(data, ">i4", count * columns, start + 8).astype(np.int64).reshape(count, columns)


def _edit(data: bytes, start: int, _end: int) -> int:
    """The media time at which the only edit starts. Raises ValueError for other edits."""
    head, count, _, time, rate = struct.unpack_from(">IIIiI", data, start)
    if (head, count, rate) != (0, 1, 1 << 16) or time < 0:
        raise ValueError("expected one edit at normal speed")
    return int(time)


def _sizes(data: bytes, span: tuple[int, int]) -> NDArray[np.int64]:
    """Bytes of each packet. Raises ValueError for more packets of one size than the bytes can hold."""
    same, count = struct.unpack_from(">II", data, span[0] + 4)
    if not same:
        return table_rows(data, (span[0] + 4, span[1]), 1)[:, 0]
    if count * _LEAST_BYTES > len(data):
        raise ValueError("more packets than the bytes can hold")
    return np.full(count, same, np.int64)


def _offsets(data: bytes, span: tuple[int, int] | None, count: int) -> NDArray[np.int64] | None:
    """From decoding to presentation, a packet each."""
    if span is None:
        return np.zeros(count, np.int64)
    rows = table_rows(data, span, 2)
    if rows[:, 0].min() < 0 or rows[:, 0].sum() != count:
        return None
    return np.repeat(rows[:, 1], rows[:, 0])


def _positions(data: bytes, tables: dict[bytes, tuple[int, int]], sizes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Where each packet starts; None unless the packets follow each other."""
    chunks = table_rows(data, tables[b"stco"], 1)[:, 0]
    runs = table_rows(data, tables[b"stsc"], 3)
    lengths = np.diff(runs[:, 0], append=len(chunks) + 1)
    if runs[0, 0] != 1 or lengths.min() < 1 or runs[:, 1].min() < 1 or sizes.min() < 1:
        return None
    per_chunk = np.repeat(runs[:, 1], lengths)
    if per_chunk.sum() != len(sizes) or chunks[0] < 0:
        return None
    positions = chunks[0] + np.cumsum(sizes) - sizes
    follow = bool(np.array_equal(positions[np.cumsum(per_chunk) - per_chunk], chunks))
    return positions if follow else None


def _codec(data: bytes, start: int, _end: int) -> tuple[str, bytes]:
    """FFmpeg's name of the decoder, and its extradata. Raises KeyError for codecs that no build writes."""
    [(kind, first, last)] = list_boxes(data, start + 8, _end)
    boxes = child_boxes(data, first + _SAMPLE_ENTRY - 8, last)
    if kind == b"avc1":
        return "h264", data[slice(*boxes[b"avcC"])]
    if kind != b"mp4v":
        raise KeyError(kind)
    start, end = boxes[b"esds"]
    tag, start, end = _descriptor(data, start + 4)
    if tag != 3 or data[start + 2]:  # of a stream, without optional fields
        raise ValueError("expected a stream descriptor")
    tag, start, end = _descriptor(data, start + 3)
    codec = _MPEG4_CODECS[data[start]]
    if start + 13 >= end:
        return codec, b""
    tag, start, end = _descriptor(data, start + 13)
    return codec, data[start:end]


def _descriptor(data: bytes, start: int) -> tuple[int, int, int]:
    """A descriptor of ISO/IEC 14496-1: its tag, where its content starts and ends."""
    tag, position, length, more = data[start], start + 1, 0, True
    while more and position <= start + 4:
        length = length << 7 | data[position] & 0x7F
        more = data[position] >= 0x80
        position += 1
    return tag, position, position + length
