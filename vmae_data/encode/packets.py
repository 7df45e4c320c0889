"""The packets of a source: their times, and where the pictures change their shape."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import av

from vmae_data.encode.container_end import movie_box
from vmae_data.encode.probe import MAX_PIXELS, VideoInfo, frame_rotation, open_container, video_stream
from vmae_data.errors import SourceError
from vmae_data.mp4 import child_boxes, list_boxes, table_rows

__all__ = [
    "TimeJumps",
    "changes_of_shape",
    "hidden_packets",
    "jump_remarks",
    "packet_duration",
    "packet_ends",
    "packet_times",
    "time_jumps",
]

# ffmpeg leaves out longer jumps of the time stamps in containers that declare no duration (dts_delta_threshold). In
# others it ignores the time stamps after a jump that is longer still (dts_error_threshold).
_JUMP_SECONDS, _JUMP_HOURS = 10, 30


class TimeJumps(NamedTuple):
    """Time stamps that ffmpeg ignores. `remark`: a note on them.

    `seconds`: from the first packet to the last without them, None if there are none.
    """

    seconds: float | None
    remark: str


def packet_duration(path: bytes, track: int, pts: int | None) -> float:
    """Seconds that the container displays the packet with this time stamp; 0 if unknown."""
    try:
        with open_container(path) as container:
            stream = video_stream(container, track)
            for packet in container.demux(stream):
                if packet.pts is not None and packet.pts == pts:
                    return float((packet.duration or 0) * (stream.time_base or 0))
    except (av.FFmpegError, ValueError, OSError, MemoryError):
        pass  # a damaged end; ffmpeg has decoded the rest
    return 0.0


def packet_times(path: bytes, track: int) -> tuple[int, ...]:
    """The display times of the packets in ticks, ascending; empty if unknown.

    Some packets may not decode, so compare these times with those of the decoded frames.
    """
    try:
        with open_container(path) as container:
            packets = container.demux(video_stream(container, track))
            return tuple(sorted(p.pts for p in packets if p.size and p.pts is not None and not p.is_discard))
    except (av.FFmpegError, ValueError, OSError, MemoryError):
        return ()


def hidden_packets(path: bytes, track: int) -> int:
    """The number of packets that an edit list hides."""
    hidden = 0
    with suppress(av.FFmpegError, ValueError, OSError, MemoryError), open_container(path) as container:  # a damaged end
        for packet in container.demux(video_stream(container, track)):
            hidden += packet.is_discard
    return hidden


def packet_ends(path: bytes, track: int) -> tuple[float, float]:
    """Seconds from the container's start to the end of the last packet of the video, and of all other streams."""
    ends = [0.0, 0.0]
    with suppress(av.FFmpegError, ValueError, OSError, MemoryError), open_container(path) as container:  # a damaged end
        start, video = (container.start_time or 0) / 1_000_000, video_stream(container, track)
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                other = packet.stream.index != video.index
                ends[other] = max(ends[other], end)
    return ends[0], ends[1]


def time_jumps(path: bytes, info: VideoInfo) -> TimeJumps:
    """The jumps of the time stamps that ffmpeg does not follow, and the time stamps that it removes."""
    limit = _JUMP_SECONDS if info.duration_by_packets else _JUMP_HOURS * 3600
    jumps, removed, seconds, before = 0, 0, 0.0, None
    with suppress(av.FFmpegError, ValueError, OSError, MemoryError), open_container(path) as container:  # a damaged end
        stream = video_stream(container, info.track)
        for packet in container.demux(stream):
            removed += bool(container.format.name == "flv" and packet.size and packet.pts is packet.dts is None)
            if packet.dts is not None and stream.time_base:
                now = float(packet.dts * stream.time_base)
                step = 0.0 if before is None else now - before
                jumps += abs(step) > limit
                seconds += step if abs(step) <= limit else 0
                before = now
    if removed and not jumps:
        # The demuxer of FLV does so if a frame is displayed more than 15 minutes from when it is decoded. The declared
        # duration counts them.
        remark = f"the time stamps of {removed} frames are wrong: ffmpeg ignores them, and truncation was not tested"
        return TimeJumps(seconds, remark)
    said = f"{_JUMP_SECONDS} s {jumps} times: ffmpeg leaves the jumps out"
    if not info.duration_by_packets:
        said = f"{_JUMP_HOURS} hours {jumps} times: ffmpeg ignores the time stamps after a jump"
    return TimeJumps(seconds if jumps else None, f"its time stamps jump by more than {said}" if jumps else "")


def jump_remarks(path: bytes, info: VideoInfo, *, is_short: bool) -> Iterator[str]:
    """Notes on time stamps that ffmpeg ignores. `is_short`: the frames do not last as long as the container declares.

    The packets are read only if that or the start hints at such time stamps. Of an mp4, a table suffices.
    """
    far = _JUMP_HOURS * 3600
    if is_short or info.start > far:
        yield from filter(None, [time_jumps(path, info).remark])
    if info.table_frames and (offsets := _far_offsets(path, far)):
        yield f"the time stamps of {offsets} frames are more than {_JUMP_HOURS} hours off: ffmpeg ignores them"


def _far_offsets(path: bytes, seconds: int) -> int:
    """The frames that the tables of an mp4 display more than `seconds` from when they are decoded."""
    found = 0
    with suppress(KeyError, ValueError, struct.error, OSError, MemoryError):
        movie = movie_box(path)
        for track in (span for kind, *span in list_boxes(movie, 0, len(movie)) if kind == b"trak"):
            media = child_boxes(movie, *child_boxes(movie, *track)[b"mdia"])
            tables = child_boxes(movie, *child_boxes(movie, *media[b"minf"])[b"stbl"])
            if b"ctts" not in tables:
                continue
            header = media[b"mdhd"][0]
            (scale,) = struct.unpack_from(">I", movie, header + (20 if movie[header] else 12))  # by its version
            counts, offsets = table_rows(movie, tables[b"ctts"], 2).T
            found += int(counts[abs(offsets) > seconds * scale].sum())
    return found


def changes_of_shape(path: bytes, track: int) -> str:
    """A note if the sample aspect or the rotation changes midway. Asked only if the probe says that they can.

    ffmpeg and players give every picture the first aspect. Decodes the key frames only.
    """
    aspects: set[Fraction] = set()
    rotations: set[int] = set()
    try:
        with open_container(path) as container:
            stream = video_stream(container, track)
            aspects.add(stream.sample_aspect_ratio or Fraction(1))
            context = stream.codec_context
            context.thread_count, context.skip_frame = 1, "NONKEY"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            for packet in container.demux(stream):
                with suppress(av.InvalidDataError):
                    for frame in packet.decode():
                        aspects.add(context.sample_aspect_ratio or Fraction(1))
                        rotations.add(frame_rotation(frame))
    except (av.FFmpegError, ValueError, OSError, MemoryError, SourceError):
        pass  # a damaged end; ffmpeg has decoded the rest
    changed = ["sample aspect"] * (len(aspects) > 1) + ["rotation"] * (len(rotations) > 1)
    return f"the {' and the '.join(changed)} changes midway: all pictures have the first one's" if changed else ""
