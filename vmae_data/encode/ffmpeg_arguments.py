"""Row 5. The ffmpeg commands: thin, then scale, then encode; one thread, every library bit-exact.

Why each option is there is written down in docs/format.md, section "The encode command".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import ffmpeg_python, telling
from vmae_data.encode.probe import DEMUXERS, MOST_PIXELS, VideoInfo, scaled_size
from vmae_data.encode.profiles import coded_rate, colour_of, encoder_options, source_colour
from vmae_data.encode.thinning import kept_rate, select_frames
from vmae_data.format import Rational

__all__ = ["Output", "copy_arguments", "encode_arguments", "picture_filters", "read_arguments"]

_INPUT = {"threads": 1, "max_pixels": MOST_PIXELS, "format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
# Put in place of the paths while ffmpeg-python compiles: it can't encode names that are not UTF-8.
_SOURCE, _TARGET = "SOURCE-PATH", "TARGET-PATH"
_MP4 = {"an": None, "sn": None, "dn": None, "map_metadata": -1, "map_chapters": -1, "fflags": "+bitexact"}
_LONGEST_ARGUMENT = 100_000  # bytes; Linux takes 128 KiB


class Output(NamedTuple):
    """One phase: which frames it keeps, as a select expression; its file; at which kept frames a segment begins.

    With `splits` the file is a pattern with %04d in it, and every other % doubled.
    """

    select: str
    target: str
    splits: tuple[int, ...] = ()


def encode_arguments(
    program: str, spec: BuildSpec, info: VideoInfo, source: bytes, outputs: Sequence[Output], scratch: Path
) -> list[str]:
    """Decode once, and encode what each output keeps. `scratch`: where a filter too long for an argument is put."""
    streams, paths = [], {_SOURCE: _url(source)}
    for number, output in enumerate(outputs):
        select = telling(output.select) if number == 0 else f"select='{output.select}'"
        options = _encode_options(spec, info, output.splits) | _filter_option(
            f"{select},{picture_filters(spec, info)}", scratch.with_name(f"{scratch.name}.{number}")
        )
        paths[f"{_TARGET}-{number}"] = f"file:{output.target}"
        streams.append(ffmpeg_python().input(_SOURCE, **_INPUT).output(f"{_TARGET}-{number}", **options))
    return _compile(streams, program, paths)


def _encode_options(spec: BuildSpec, info: VideoInfo, splits: tuple[int, ...]) -> dict[str, Any]:
    colour = colour_of(spec.profile, info)
    options = {
        "map": "0:V:0",
        **_MP4,
        "filter_threads": 1,
        "fps_mode": "passthrough",
        "enc_time_base": _tick(spec, info),
        **encoder_options(spec.profile, crf=spec.crf, qscale=spec.qscale, gop=spec.gop),
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
        # Else the first segment begins where its first packet is decoded, not at 0.
        "avoid_negative_ts": "disabled",
    }


def _tick(spec: BuildSpec, info: VideoInfo) -> str:
    rate = coded_rate(spec.profile, kept_rate(info.rate, spec.thinning))
    return f"{rate.den}/{rate.num}"


def picture_filters(spec: BuildSpec, info: VideoInfo) -> str:
    """From a source's frames to those that are encoded: size, colours, square pixels, one tick a frame."""
    width, height = scaled_size(info, spec.short_side)
    scale = f"scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
    found, wanted = source_colour(info), colour_of(spec.profile, info)
    if not info.rgb and found.assumed:
        scale += f":in_color_matrix={found.source_matrix}"
    filters = [
        f"{scale}:out_color_matrix={wanted.matrix}:out_range={'pc' if wanted.full_range else 'tv'}",
        "format=yuvj420p" if wanted.full_range else "format=yuv420p",
        "setsar=1",
        f"settb={_tick(spec, info)}",
        "setpts=N",
    ]
    return ",".join(filters)


def _filter_option(filters: str, file: Path) -> dict[str, Any]:
    if len(filters) < _LONGEST_ARGUMENT:
        return {"vf": filters}
    file.write_text(filters)
    return {"/filter:v": str(file)}


def copy_arguments(program: str, info: VideoInfo, source: bytes, target: str) -> list[str]:
    """Take the packets as they are, from time 0 on, each a frame long; decode beside it, to tell what decodes."""
    step = Rational(info.rate.den * info.time_base.den, info.rate.num * info.time_base.num)
    copied = (
        ffmpeg_python()
        .input(_SOURCE, **_INPUT)
        .output(
            f"{_TARGET}-0",
            **{
                "map": "0:V:0",
                **_MP4,
                "c:v": "copy",
                "bsf:v": f"setts=pts=PTS-STARTPTS:dts=DTS-STARTPTS:duration={step.num // step.den}",
                "movflags": "+faststart",
                "f": "mp4",
            },
        )
    )
    decoded = ffmpeg_python().input(_SOURCE, **_INPUT).output("-", map="0:V:0", vf=telling("0"), f="null")
    return _compile([copied, decoded], program, {_SOURCE: _url(source), f"{_TARGET}-0": f"file:{target}"})


def read_arguments(program: str, source: bytes) -> list[str]:
    """Decode to nowhere: for ffmpeg's own words on a file."""
    stream = ffmpeg_python().input(_SOURCE, **_INPUT).output("-", map="0:V:0", f="null")
    return _compile([stream], program, {_SOURCE: _url(source)})


def _url(path: bytes) -> str:
    # The protocol is named so that no path is taken for an option, another protocol or a pattern.
    return f"file:{os.fsdecode(os.path.abspath(path))}"


def _compile(streams: Sequence[Any], program: str, paths: dict[str, str]) -> list[str]:
    stream = streams[0] if len(streams) == 1 else ffmpeg_python().merge_outputs(*streams)
    arguments: list[str] = [paths.get(word, word) for word in stream.compile(cmd=program, overwrite_output=True)]
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+error"]
    return [arguments[0], *options, *arguments[1:]]
