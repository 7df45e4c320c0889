"""A source and the frames to keep → the arguments of ffmpeg: select, scale, encode.

Every command uses one thread and bit-exact libraries. docs/format.md, section "The encode command", explains each option.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import ffmpeg_python, select_and_log
from vmae_data.encode.probe import DEMUXERS, MAX_PIXELS, VideoInfo, scaled_size
from vmae_data.encode.profiles import coded_frame_rate, encoded_colour, encoder_options, source_colour
from vmae_data.encode.thinning import kept_frame_rate, select_frames

__all__ = ["Output", "copy_arguments", "encode_arguments", "picture_filters", "read_arguments"]

_INPUT = {"threads": 1, "max_pixels": MAX_PIXELS, "format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
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
    program: str, spec: BuildSpec, info: VideoInfo, source: bytes, outputs: Sequence[Output], scratch: Path
) -> list[str]:
    """Decode once, and encode the frames of each output. A filter too long for an argument goes to a `scratch` file."""
    streams, paths = [], {_SOURCE: _url(source)}
    for number, output in enumerate(outputs):
        select = select_and_log(output.select) if number == 0 else f"select='{output.select}'"
        options = _encode_options(spec, info, output.splits) | _filter_option(
            f"{select},{picture_filters(spec, info)}", scratch.with_name(f"{scratch.name}.{number}")
        )
        paths[f"{_TARGET}-{number}"] = f"file:{output.target}"
        streams.append(ffmpeg_python().input(_SOURCE, **_INPUT).output(f"{_TARGET}-{number}", **options))
    return _compile(streams, program, paths)


def _encode_options(spec: BuildSpec, info: VideoInfo, splits: tuple[int, ...]) -> dict[str, Any]:
    colour = encoded_colour(spec.profile, info)
    options = {
        "map": "0:V:0",
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


def picture_filters(spec: BuildSpec, info: VideoInfo) -> str:
    """The filters from a source's frames to the encoded ones: size, colours, square pixels, one tick per frame."""
    width, height = scaled_size(info, spec.short_side)
    scale = f"scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
    source, target = source_colour(info), encoded_colour(spec.profile, info)
    if not info.rgb and source.assumed:
        scale += f":in_color_matrix={source.source_matrix}"
    filters = [
        f"{scale}:out_color_matrix={target.matrix}:out_range={'pc' if target.full_range else 'tv'}",
        "format=yuvj420p" if target.full_range else "format=yuv420p",
        "setsar=1",
        f"settb={_time_base(spec, info)}",
        "setpts=N",
    ]
    return ",".join(filters)


def _filter_option(filters: str, file: Path) -> dict[str, Any]:
    if len(filters) < _LONGEST_ARGUMENT:
        return {"vf": filters}
    file.write_text(filters)
    return {"/filter:v": str(file)}


def copy_arguments(program: str, info: VideoInfo, source: bytes, target: str) -> list[str]:
    """Copy the packets, from time 0 on, each one frame long. Also decode them, to log which frames decode."""
    stamps = f"setts=pts=PTS-STARTPTS:dts=DTS-STARTPTS:duration={int(info.frame_ticks)}"
    options = {"map": "0:V:0", **_MP4, "c:v": "copy", "bsf:v": stamps, "movflags": "+faststart", "f": "mp4"}
    copied = ffmpeg_python().input(_SOURCE, **_INPUT).output(f"{_TARGET}-0", **options)
    decoded = ffmpeg_python().input(_SOURCE, **_INPUT).output("-", map="0:V:0", vf=select_and_log("0"), f="null")
    return _compile([copied, decoded], program, {_SOURCE: _url(source), f"{_TARGET}-0": f"file:{target}"})


def read_arguments(program: str, source: bytes) -> list[str]:
    """Decode without output, to get ffmpeg's messages about a file."""
    stream = ffmpeg_python().input(_SOURCE, **_INPUT).output("-", map="0:V:0", f="null")
    return _compile([stream], program, {_SOURCE: _url(source)})


def _url(path: bytes) -> str:
    # With the protocol, ffmpeg takes no path for an option, another protocol or a pattern.
    return f"file:{os.fsdecode(os.path.abspath(path))}"


def _compile(streams: Sequence[Any], program: str, paths: dict[str, str]) -> list[str]:
    stream = streams[0] if len(streams) == 1 else ffmpeg_python().merge_outputs(*streams)
    compiled: list[str] = stream.compile(cmd=program, overwrite_output=True)
    arguments = [paths.get(argument, argument) for argument in compiled]
    return [arguments[0], "-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+error", *arguments[1:]]
