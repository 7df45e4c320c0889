"""A source file → VideoInfo, read by PyAV from the container and the first decoded frame."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import NamedTuple

import av

from vmae_data.encode.container_end import declared_pictures, joined_file, truncated_box
from vmae_data.encode.picture import is_full_range, is_gray, turn_filters, unconverted_matrix
from vmae_data.errors import SourceError, VmaeError
from vmae_data.format import RULES, Rational
from vmae_data.names import path_to_text
from vmae_data.processes import limit_memory_growth

__all__ = [
    "DEMUXERS",
    "ENCRYPTED",
    "MACHINE_FAULTS",
    "MAX_PIXELS",
    "VideoInfo",
    "frame_rotation",
    "open_container",
    "probe_video",
    "scaled_size",
    "video_stream",
    "with_picture_size",
]

# Only containers of a single file: a playlist or a concatenation script could name any other file.
_DEMUXERS_UNTIL_RULES_2 = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,asf,flv,ogg,mxf"
    ",h264,hevc,ivf,nut,dv,gif,rm,wtv"
)
DEMUXERS = f"{_DEMUXERS_UNTIL_RULES_2},yuv4mpegpipe,mjpeg,jpeg_pipe,apng,obu,dirac,vvc"
# A file of one of these formats may be a lone picture. libavformat opens some raw Motion JPEG as `jpeg_pipe`.
_SINGLE_PICTURES = ("jpeg_pipe", "apng")

# A header of a few bytes may claim any size, and a decoder allocates it. The limit is twice the largest frame of the
# highest level of H.264, HEVC and AV1 (8K). A frame of this size with 8 bits in 4:2:0 takes 100 MB.
MAX_PIXELS = 8192 * 8192
# The longest side that x264 encodes. Any sample aspect may stretch a side of the displayed picture.
MAX_SIDE = 16384
ENCRYPTED = "the frames are encrypted"
# One patch of the model. A smaller picture would be mostly padding, and an even size would distort it.
MIN_SIDE = 16
# The memory that a header may make a library allocate: more than 16 reference frames of the largest size.
_MAX_BYTES = 4 << 30

# Errors that no file can cause: full or read-only disks, too many open files, a network folder that was mounted again.
MACHINE_FAULTS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN)
)
# AVColorSpace by its numbers in libavutil.
_MATRIX_NAMES = {
    0: "rgb", 1: "bt709", 2: "unknown", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c",
}  # fmt: skip
# These declare no duration. libavformat reports the time of the last packet found, also for a truncated file.
_WITHOUT_DURATION = frozenset(("mpegts", "mpeg", "ogg"))
# Nor do these. libavformat counts the frames of the file, or divides its size by that of a frame.
_COUNTED_DURATION = frozenset(("yuv4mpegpipe", "dv", "gif", "nut"))
# The pictures alone state sample aspect and rotation, so these can change midway.
_WITHOUT_SHAPE = frozenset(("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "obu", "dirac", "vvc"))
# libavformat gives every stream the one duration that these declare.
_ONE_DURATION = frozenset(("asf", "wtv"))
_MAX_ANGLE = 360  # degrees
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic


class VideoInfo(NamedTuple):
    """What a source states about itself. Sizes are those displayed: after rotation and sample aspect."""

    width: int
    height: int
    rotation: int
    frame_rate: Rational
    time_base: Rational  # seconds per tick of the time stamps
    duration: float | None  # seconds that the container declares for the video, or for all of its tracks
    start: float  # seconds before the first frame
    codec: str
    pixel_format: str
    matrix: str
    full_range: bool
    rgb: bool
    square: bool  # the pixels, before the sample aspect is applied
    remarks: tuple[str, ...] = ()  # notes on its pictures, stored in KEY.json
    coded: tuple[int, int] = (0, 0)  # width and height of a decoded picture, before sample aspect and rotation
    aspect: Fraction = Fraction(1)  # of a pixel
    turn: str = ""  # filters that turn a decoded picture upright
    limited_gray: bool = False  # gray of 16 to 235
    unconverted: str = ""  # the name of a matrix that ffmpeg's scaler refuses
    track: int = 0  # its number among the video tracks: 0:V:TRACK in ffmpeg
    duration_of_all: bool = False  # whether another track may explain the duration
    duration_by_packets: bool = False  # declared nowhere: the time of the last packet
    codec_rate: Rational | None = None  # the frame rate that the coded pictures state
    table_frames: int = 0  # that the tables of an mp4 list
    declared_frames: int = 0  # that an APNG declares
    shape_can_change: bool = False  # sample aspect or rotation, midway
    begins: float | None = None  # seconds from the container's start to the first packet; None if unknown
    rules: int = RULES  # by which these facts were read

    @property
    def frame_ticks(self) -> Fraction:
        """Ticks of `time_base` per frame of the nominal frame rate."""
        return Fraction(self.time_base.den * self.frame_rate.den, self.time_base.num * self.frame_rate.num)


def probe_video(path: bytes, rules: int = RULES) -> VideoInfo:
    """Read a source's header and its first frame that decodes.

    Raises SourceError: missing, not-a-file, empty, unreadable, no-video, undecodable, too-small, too-large. Raises
    VmaeError for a fault of this machine.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - bytes paths may not be UTF-8
    except OSError as error:
        _refuse_machine_fault(path, error)
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise SourceError(reason, error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("not-a-file", "a pipe, socket, device or folder, not a regular file")
    if status.st_size == 0:
        raise SourceError("empty", "the file has 0 bytes")
    av.logging.set_level(None)
    try:
        info = _first_usable(path, rules)
        ends = (truncated_box(path), joined_file(path) if rules >= 3 else "")
    except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
        _refuse_machine_fault(path, error)
        raise SourceError("unreadable", _error_text(error)) from error
    return info._replace(remarks=(*info.remarks, *filter(None, ends)))


def _refuse_machine_fault(path: bytes, error: Exception) -> None:
    if getattr(error, "errno", None) in MACHINE_FAULTS:
        raise VmaeError(
            f"{path_to_text(path)}: this machine can't read it ({_error_text(error)}). "
            "Mend that, then run the same command again"
        ) from error


def _first_usable(path: bytes, rules: int) -> VideoInfo:
    """The facts of the first video track that decodes, in the order of `_tracks`. If none does, the error of the first."""
    with open_container(path, rules) as container:
        if rules < 2 or (len(_video_streams(container)) == 1 and container.format.name not in _SINGLE_PICTURES):
            return _describe(container, 0, rules)
        tracks, cause = _tracks(container, rules)
    first_error: SourceError | None = None
    for track in tracks:
        with open_container(path, rules) as container:
            try:
                info = _describe(container, track, rules)
            except SourceError as error:
                if error.reason != "undecodable":
                    raise
                first_error = first_error or error
                cause = "none before it decodes"
                continue
        if cause:
            used = f"video track {track + 1} of {len(tracks)} is used, because {cause}"
            return info._replace(remarks=(*info.remarks, used))
        return info
    assert first_error is not None
    raise first_error


def _tracks(container: av.container.InputContainer, rules: int) -> tuple[list[int], str]:
    """The numbers of the video tracks in the order to try them, and why the first of these is not track 0.

    The container's default track comes first; mp4 disables others. If it is a single picture, as a thumbnail is, the
    tracks with the most frames come first.
    """
    streams = _video_streams(container)
    tracks = list(range(len(streams)))
    if rules < 3:
        return tracks, ""
    default = next((n for n in tracks if streams[n].disposition & av.stream.Disposition.default), 0)
    tracks.sort(key=lambda track: track != default)
    frames = _num_frames(container, streams, default)
    if frames[default] == 1:
        if container.format.name in _SINGLE_PICTURES:
            raise SourceError("no-video", "the file is a single picture")
        tracks.sort(key=lambda track: -frames[track])
    if tracks[0] == 0:
        return tracks, ""
    return tracks, "track 1 is a single picture" if frames[0] == 1 else "it is the container's default"


def _num_frames(
    container: av.container.InputContainer, streams: list[av.VideoStream], until_second_of: int
) -> list[int]:
    """The frames of each track, counted until the given one has a second frame."""
    indices = {stream.index: track for track, stream in enumerate(streams)}
    frames = [0] * len(streams)
    with suppress(av.FFmpegError):  # a damaged end
        for packet in container.demux(streams):
            frames[indices[packet.stream.index]] += packet.size > 0
            if frames[until_second_of] > 1:
                break
    return frames


@contextmanager
def open_container(path: bytes, rules: int = RULES) -> Iterator[av.container.InputContainer]:
    """An open container. Limits the memory that its header can make libraries allocate."""
    demuxers = DEMUXERS if rules >= 3 else _DEMUXERS_UNTIL_RULES_2
    options = {"format_whitelist": demuxers, "protocol_whitelist": "file"}
    with (
        limit_memory_growth(_MAX_BYTES),
        av.open(os.fsdecode(path), options=options, metadata_errors="replace") as container,
    ):
        yield container


def _video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams that are not cover pictures: 0:V in ffmpeg."""
    streams = container.streams.video
    videos = [one for one in streams if not one.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        found = "a cover picture, but no video stream" if streams else "no video stream"
        raise SourceError("no-video", f"the file has {found}")
    return videos


def video_stream(container: av.container.InputContainer, track: int) -> av.VideoStream:
    return _video_streams(container)[track]


def _describe(container: av.container.InputContainer, track: int, rules: int) -> VideoInfo:
    stream = video_stream(container, track)
    if stream.codec_context is None:
        raise SourceError("undecodable", "the codec of the video stream is unknown")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    frame = _first_frame(container, stream) if rules >= 2 else next(container.decode(stream), None)
    if frame is None:
        raise SourceError("undecodable", "no frame of the video stream decodes")
    aspect = stream.sample_aspect_ratio
    aspect = aspect if aspect and aspect > 0 else Fraction(1)
    width, height = _displayed_size(frame.width, frame.height, aspect, frame_rotation(frame))
    rate = _frame_rate(stream, rules)
    if not rate or rate <= 0:
        raise SourceError("undecodable", "the container states no frame rate")
    base = stream.time_base
    if not base:
        raise SourceError("undecodable", "the container states no time base")
    rgb = frame.format.is_rgb
    matrix = _MATRIX_NAMES.get(int(frame.colorspace), "unknown")
    duration, duration_of_all = _declared_duration(container, stream)
    return VideoInfo(
        width=width,
        height=height,
        rotation=frame_rotation(frame, rules),
        frame_rate=Rational(rate.numerator, rate.denominator),
        time_base=Rational(base.numerator, base.denominator),
        duration=duration,
        start=float((stream.start_time or 0) * base),
        codec=stream.codec_context.name,
        pixel_format=frame.format.name,
        matrix=matrix if not rgb else "rgb",
        full_range=is_full_range(frame),
        rgb=rgb,
        square=aspect == 1,
        remarks=tuple(_remarks(container, frame, rules)),
        coded=(frame.width, frame.height),
        aspect=aspect,
        turn=turn_filters(frame),
        limited_gray=is_gray(frame) and not is_full_range(frame),
        unconverted=unconverted_matrix(frame),
        track=track,
        duration_of_all=duration_of_all,
        duration_by_packets=container.format.name in _WITHOUT_DURATION,
        table_frames=stream.frames if container.format.name.startswith("mov,") else 0,
        declared_frames=declared_pictures(os.fsencode(container.name)) if container.format.name == "apng" else 0,
        codec_rate=_stated_rate(stream.codec_context.framerate),
        shape_can_change=container.format.name in _WITHOUT_SHAPE,
        begins=_begins(container, stream),
        rules=rules,
    )


def _begins(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.start_time is None or container.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base - Fraction(container.start_time, 1_000_000))


def _first_frame(container: av.container.InputContainer, stream: av.VideoStream) -> av.VideoFrame | None:
    """The first frame that decodes. Like ffmpeg, it skips damaged packets."""
    for packet in container.demux(stream):
        if any(data.data_type == "encryption_info" for data in packet.iter_sidedata()):
            raise SourceError("undecodable", ENCRYPTED)
        with suppress(av.FFmpegError):
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                return frame
    return None


def _frame_rate(stream: av.VideoStream, rules: int) -> Fraction | None:
    """The mean frame rate. Some demuxers, such as that of raw DV, state only their clock's rate as the mean."""
    mean, guessed = stream.average_rate, stream.guessed_rate
    if rules >= 2 and mean and guessed and stream.time_base and mean * stream.time_base == 1 and guessed < mean:
        return guessed
    return mean or guessed or stream.base_rate


def _stated_rate(rate: Fraction | None) -> Rational | None:
    return Rational(rate.numerator, rate.denominator) if rate and rate > 0 else None


def frame_rotation(frame: av.VideoFrame, rules: int = RULES) -> int:
    """Degrees counter-clockwise, 0 to 359."""
    # A matrix of zeros has no direction. PyAV makes a huge integer of its angle, NaN.
    undefined = abs(frame.rotation) > _MAX_ANGLE
    return 0 if undefined and rules >= 2 else round(frame.rotation) % 360


def with_picture_size(info: VideoInfo, width: int, height: int) -> VideoInfo:
    """The same video with decoded pictures of this size, as ffmpeg crops them. Raises SourceError."""
    displayed = _displayed_size(width, height, info.aspect, info.rotation)
    return info._replace(width=displayed[0], height=displayed[1], coded=(width, height))


def _displayed_size(coded_width: int, coded_height: int, aspect: Fraction, rotation: int) -> tuple[int, int]:
    """Width and height after sample aspect and rotation."""
    width, height = max(1, round(coded_width * aspect)), coded_height
    if rotation in (90, 270):
        width, height = height, width
    if min(width, height) < MIN_SIDE:
        raise SourceError("too-small", f"{width} × {height} pixels; the minimum side is {MIN_SIDE}")
    if max(width, height) > MAX_SIDE:
        stretched = f", stretched from {coded_width} × {coded_height}" if aspect != 1 else ""
        raise SourceError("too-large", f"{width} × {height} pixels{stretched}; the maximum side is {MAX_SIDE}")
    return width, height


def _remarks(container: av.container.InputContainer, frame: av.VideoFrame, rules: int) -> Iterator[str]:
    """What encoding to upright BT.709 in 8 bits loses, and what can't be detected.

    Shards store these texts in KEY.json: another text changes their bytes.
    """
    if container.format.name in _WITHOUT_DURATION | (_COUNTED_DURATION if rules >= 3 else frozenset()):
        yield "no declared duration, only the time of the last packet: a cut may not show"
    transfer = _HDR_TRANSFERS.get(int(frame.color_trc))
    if transfer:
        yield f"HDR ({transfer}): brightness is kept as it is coded, not mapped to SDR"
    if frame.interlaced_frame:
        yield "interlaced: scaled as it is, its fields are not taken apart"
    if any(component.is_alpha for component in frame.format.components):
        yield "has transparency: left out, so what lies behind shows"
    if frame_rotation(frame, rules) % 90:
        yield f"rotated by {frame_rotation(frame, rules)} degrees: its corners are cut"


def _declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[float | None, bool]:
    """The duration of the video stream or its DURATION tag, else the container's, unless audio determines that.

    Also whether it is the container's, so that another track may explain it.
    """
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        # libavformat counts the chunks in the file. The header's count of frames is the declared one.
        return float(stream.frames / stream.average_rate), False
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base), container.format.name in _ONE_DURATION
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]), False
    if container.duration is None:
        return None, False
    total = container.duration / 1_000_000
    audio = [float(s.duration * s.time_base) for s in container.streams.audio if s.duration and s.time_base]
    # If audio lasts as long as the container, the duration of the video remains unknown.
    return (None, False) if audio and max(audio) >= total - 0.001 else (total, True)


def scaled_size(info: VideoInfo, short_side: int) -> tuple[int, int]:
    """(width, height) with this short side: even numbers, never above the size of the source."""
    scale = min(Fraction(1), Fraction(short_side, min(info.width, info.height)))
    return _even(info.width, scale), _even(info.height, scale)


def _even(length: int, scale: Fraction) -> int:
    """The nearest even number that is not above the source's length."""
    return max(2, min(2 * round(length * scale / 2), length - length % 2))


def _error_text(error: Exception) -> str:
    """The library's message without the path, which differs between machines."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0] if str(text) else type(error).__name__
