"""A source and the frames to keep → the arguments of ffmpeg: select, scale, encode.

Every command uses one thread and bit-exact libraries. docs/format.md, section "The encode command", explains each option.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import ffmpeg_python, log_sizes, select_and_log
from vmae_data.encode.probe import DEMUXERS, MAX_PIXELS, VideoInfo, scaled_size
from vmae_data.encode.profiles import coded_frame_rate, encoded_colour, encoder_options, source_colour
from vmae_data.encode.thinning import kept_frame_rate, select_frames
from vmae_data.format import RULES

__all__ = [
    "Output",
    "copy_arguments",
    "decode_arguments",
    "describe_arguments",
    "encode_arguments",
    "picture_arguments",
    "picture_filters",
    "read_arguments",
    "trial_arguments",
]

_INPUT = {"threads": 1, "max_pixels": MAX_PIXELS, "format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
# Filters that start again when the pictures change would count frames from 0 again. So ffmpeg must not start them
# again, and not insert its own rotation, which can't take pictures of another size: `_size_filters` fits them first.
_CONSTANT_FILTERS = {"reinit_filter": 0, "noautorotate": None}
_SCALER = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
# Replaced by the paths after ffmpeg-python has compiled the arguments: it can't encode names that are not UTF-8.
_SOURCE, _TARGET = "SOURCE-PATH", "TARGET-PATH"
_MP4 = {"an": None, "sn": None, "dn": None, "map_metadata": -1, "map_chapters": -1, "fflags": "+bitexact"}
_LONGEST_ARGUMENT = 100_000  # bytes; Linux allows 128 KiB


class Output(NamedTuple):
    """One phase: a select expression for its frames, its file, and the kept frames at which new segments begin.

    With `splits` the file is a pattern that contains %04d, and every other % is doubled.
    """

    select: str
    target: str
    splits: tuple[int, ...] = ()


def encode_arguments(
    program: str,
    spec: BuildSpec,
    info: VideoInfo,
    source: bytes,
    outputs: Sequence[Output],
    scratch: Path,
    *,
    rules: int = RULES,
) -> list[str]:
    """Decode once, and encode the frames of each output. A filter too long for an argument goes to a `scratch` file."""
    streams, paths = [], {_SOURCE: _url(source)}
    given = _CONSTANT_FILTERS if rules >= 2 else None
    for number, output in enumerate(outputs):
        select = select_and_log(output.select) if number == 0 else f"select='{output.select}'"
        pictures = picture_filters(spec, info, log=number == 0) if rules >= 2 else _filters_of_rules_1(spec, info)
        options = _encode_options(spec, info, output.splits) | _filter_option(
            f"{select},{pictures}", scratch.with_name(f"{scratch.name}.{number}")
        )
        paths[f"{_TARGET}-{number}"] = f"file:{output.target}"
        streams.append(_input(info, given).output(f"{_TARGET}-{number}", **options))
    return _compile(streams, program, paths)


def _input(info: VideoInfo, more: dict[str, Any] | None = None) -> Any:
    """The source. ffmpeg must not give up when most frames are damaged: the share of lost frames decides."""
    rate = {"max_error_rate": 1} if info.rules >= 2 else {}
    return ffmpeg_python().input(_SOURCE, **_INPUT, **rate, **(more or {}))


def _encode_options(spec: BuildSpec, info: VideoInfo, splits: tuple[int, ...]) -> dict[str, Any]:
    colour = encoded_colour(spec.profile, info)
    options = {
        "map": f"0:V:{info.track}",
        **_MP4,
        "filter_threads": 1,
        "fps_mode": "passthrough",
        "enc_time_base": _time_base(spec, info),
        **encoder_options(spec),
        "colorspace": "bt709" if colour.matrix == "bt709" else "smpte170m",
        "color_range": "pc" if colour.full_range else "tv",
        "bsf:v": "setts=pts=PTS:dts=DTS:duration=1",
    }
    if not splits:
        return options | {"movflags": "+faststart", "f": "mp4"}
    return options | {
        "force_key_frames": f"expr:{select_frames(splits)}",
        "f": "segment",
        "segment_format": "mp4",
        "segment_format_options": "movflags=+faststart",
        "segment_frames": ",".join(map(str, splits)),
        "reset_timestamps": 1,
        # Without this the first segment begins at the decoding time of its first packet, not at 0.
        "avoid_negative_ts": "disabled",
    }


def _time_base(spec: BuildSpec, info: VideoInfo) -> str:
    """One kept frame, in seconds."""
    rate = coded_frame_rate(spec.profile, kept_frame_rate(info.frame_rate, spec.thinning))
    return f"{rate.den}/{rate.num}"


def picture_filters(spec: BuildSpec, info: VideoInfo, *, log: bool = True) -> str:
    """The filters from a source's frames to the encoded ones: size, colours, square pixels, one tick per frame.

    Pictures of another size or format than the first are converted to it. `log`: see `log_sizes`.
    """
    size, colour = _size_filters(spec, info, log=log), _colour_options(spec, info)
    if info.limited_gray:
        # The scaler takes all gray for full range. So it makes full range of it, which keeps the levels: limited ones.
        size += f":out_range=pc,format=yuv420p,setparams=range=tv,scale={_SCALER}"
    return f"{size}{colour},{_end_filters(spec, info)}"


def _size_filters(spec: BuildSpec, info: VideoInfo, *, log: bool) -> str:
    """Turn upright and scale. Only the scale filter takes pictures that change, so it comes first."""
    width, height = scaled_size(info, spec.short_side)
    # The encoder would write a display matrix into its stream, and readers would turn the pictures again.
    start = "sidedata=mode=delete:type=DISPLAYMATRIX"
    if info.unconverted:
        start += f",setparams=colorspace={'bt2020nc' if info.matrix == 'bt2020c' else 'unknown'}"
    if not info.turn:
        return f"{start},{_scale(width, height, log=log)}"
    return f"{start},{_scale(*info.coded, log=log)},{info.turn},{_scale(width, height)}"


def _scale(width: int, height: int, *, log: bool = False) -> str:
    return f"scale={log_sizes(width) if log else f'w={width}'}:h={height}:{_SCALER}"


def _colour_options(spec: BuildSpec, info: VideoInfo) -> str:
    """Options of the scale filter: from the source's colours, or the assumed ones, to the encoded ones.

    The scaler itself assumes BT.601, and the option would hold for a later part that states its matrix.
    """
    source, target = source_colour(info), encoded_colour(spec.profile, info)
    assumed = ":in_color_matrix=bt709" if source.assumed and source.source_matrix == "bt709" else ""
    return f"{assumed}:out_color_matrix={target.matrix}:out_range={'pc' if target.full_range else 'tv'}"


def _end_filters(spec: BuildSpec, info: VideoInfo) -> str:
    full_range = encoded_colour(spec.profile, info).full_range
    return f"format={'yuvj420p' if full_range else 'yuv420p'},setsar=1,settb={_time_base(spec, info)},setpts=N"


def _filters_of_rules_1(spec: BuildSpec, info: VideoInfo) -> str:
    """As older plans were built: ffmpeg turns the pictures, and starts the filters again when they change."""
    width, height = scaled_size(info, spec.short_side)
    return f"scale={width}:{height}:{_SCALER}{_colour_options(spec, info)},{_end_filters(spec, info)}"


def _filter_option(filters: str, file: Path) -> dict[str, Any]:
    if len(filters) < _LONGEST_ARGUMENT:
        return {"vf": filters}
    file.write_text(filters)
    return {"/filter:v": str(file)}


def copy_arguments(program: str, info: VideoInfo, source: bytes, target: str) -> list[str]:
    """Copy the packets, from time 0 on, each one frame long. Also decode them, to log which frames decode and their size."""
    stamps = f"setts=pts=PTS-STARTPTS:dts=DTS-STARTPTS:duration={int(info.frame_ticks)}"
    options = {"map": f"0:V:{info.track}", **_MP4, "c:v": "copy", "bsf:v": stamps, "movflags": "+faststart", "f": "mp4"}
    copied = _input(info).output(f"{_TARGET}-0", **options)
    return _compile([copied, _decoded(info)], program, {_SOURCE: _url(source), f"{_TARGET}-0": f"file:{target}"})


def decode_arguments(program: str, info: VideoInfo, source: bytes) -> list[str]:
    """Decode without output, to log which frames decode and their size."""
    return _compile([_decoded(info, _CONSTANT_FILTERS)], program, {_SOURCE: _url(source)})


def _decoded(info: VideoInfo, given: dict[str, Any] | None = None) -> Any:
    # Some matrices the scaler refuses, and here the colours don't matter.
    filters = f"{select_and_log('not(n)')},setparams=colorspace=unknown,scale={log_sizes(16)}:h=16"
    return _input(info, given).output("-", map=f"0:V:{info.track}", vf=filters, f="null")


def picture_arguments(
    program: str, spec: BuildSpec, info: VideoInfo, source: bytes, frames: Sequence[int], target: Path
) -> list[str]:
    """Decode, and write these frames as planes of YUV 4:2:0, with the filters of an encode of this recipe."""
    filters = f"{select_and_log(select_frames(frames))},{picture_filters(spec, info)}"
    options = {"map": f"0:V:{info.track}", "filter_threads": 1, "fps_mode": "passthrough"}
    options |= {"c:v": "rawvideo", "f": "rawvideo", **_filter_option(filters, target.with_suffix(".filter"))}
    stream = _input(info, _CONSTANT_FILTERS).output(f"{_TARGET}-0", **options)
    return _compile([stream], program, {_SOURCE: _url(source), f"{_TARGET}-0": f"file:{target}"})


def read_arguments(program: str, source: bytes) -> list[str]:
    """Decode without output, to get ffmpeg's messages about a file."""
    stream = ffmpeg_python().input(_SOURCE, **_INPUT).output("-", map="0:V:0", f="null")
    return _compile([stream], program, {_SOURCE: _url(source)})


def describe_arguments(program: str, source: bytes) -> list[str]:
    """Only open the file, so that ffmpeg describes its streams in its log."""
    arguments = read_arguments(program, source)
    return [*arguments[: arguments.index("-map")], "-loglevel", "repeat+level+info"]


def trial_arguments(program: str, spec: BuildSpec, target: str) -> list[str]:
    """Encode a black picture, to learn whether ffmpeg works on this machine."""
    black = {"f": "rawvideo", "pix_fmt": "yuv420p", "s": "64x64", "threads": 1}
    options = {"frames:v": 1, "filter_threads": 1, **encoder_options(spec), "f": "mp4"}
    stream = ffmpeg_python().input("/dev/zero", **black).output(f"{_TARGET}-0", **options)
    return _compile([stream], program, {f"{_TARGET}-0": f"file:{target}"})


def _url(path: bytes) -> str:
    # With the protocol, ffmpeg takes no path for an option, another protocol or a pattern.
    return f"file:{os.fsdecode(os.path.abspath(path))}"


def _compile(streams: Sequence[Any], program: str, paths: dict[str, str]) -> list[str]:
    stream = streams[0] if len(streams) == 1 else ffmpeg_python().merge_outputs(*streams)
    compiled: list[str] = stream.compile(cmd=program, overwrite_output=True)
    arguments = [paths.get(argument, argument) for argument in compiled]
    return [arguments[0], "-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+error", *arguments[1:]]
