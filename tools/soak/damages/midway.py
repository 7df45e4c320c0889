"""Pictures whose shape or colours a reader easily mistakes: they change midway, or the container states them.

Each is compared with ffmpeg's own decode, by filters that are written here by hand.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

from tools.soak.damages.clips import Bench
from tools.soak.damages.mp4_boxes import replace_mkv_colours, replace_mp4_colours
from tools.soak.damages.records import LUMA, Damage, Outcome, built
from tools.soak.damages.ts_packets import with_stream_descriptor

__all__ = ["MIDWAY"]

_H264 = "-c:v libx264 -g 8 -bf 2 -crf 10"
_HEVC = "-c:v libx265 -x265-params log-level=error:pools=1"
_MPEG2 = "-c:v mpeg2video -q:v 2"
_VP9 = "-c:v libvpx-vp9 -deadline realtime -b:v 2M"
_TAGS = "-color_range tv -colorspace bt709 -color_trc bt709 -color_primaries bt709"
_PART = 12  # frames; ffmpeg's MPEG-2 decoder loses one where the stream changes
_NO_DURATION = "no declared duration"
_STATES = "What the container states of pictures"


def joined(
    name: str,
    first: str,
    second: str,
    note: str,
    *,
    suffix: str = ".ts",
    sizes: str = "96x64 96x64",
    fast: bool = False,
) -> Damage:
    """Two clips with these options, one after the other: as bytes in TS and MPEG-PS, else by ffmpeg's concat."""

    def make(bench: Bench, path: Path) -> None:
        stem = "".join(c if c.isalnum() else "-" for c in name)
        parts = [
            bench.clip(f"{stem}-{n}{suffix}", options, size=size, frames=_PART)
            for n, (options, size) in enumerate(zip((first, second), sizes.split(), strict=True))
        ]
        if suffix in (".ts", ".mpg"):
            path.write_bytes(b"".join(part.read_bytes() for part in parts))
            return
        script = bench.folder / f"{stem}.txt"
        script.write_text("".join(f"file '{part.resolve()}'\n" for part in parts))
        bench.run("-f", "concat", "-safe", "0", "-i", str(script), "-c", "copy", str(path))

    outcome = built(note, frames=range(2 * _PART - 1, 2 * _PART + 1), size=(48, 32), right=False, luma=LUMA)
    return Damage("Pictures that change midway", name, make, (outcome,), suffix, fast=fast)


def stated(
    name: str, options: str, change: Callable[[bytes], bytes], *expected: Outcome, suffix: str, fast: bool = False
) -> Damage:
    """A clip whose container states something else than its pictures."""

    def make(bench: Bench, path: Path) -> None:
        stem = "".join(c if c.isalnum() else "-" for c in name)
        tags = "" if "colorspace" in options else _TAGS
        aspect = "" if "-vf" in options else "-vf setsar=1"  # makes room in the sample entry of an mp4
        atoms = "-movflags +write_colr" if suffix in (".mp4", ".mov") else ""
        clip = bench.clip(f"{stem}{suffix}", f"{options} {tags} {aspect} {atoms}")
        path.write_bytes(change(clip.read_bytes()))

    return Damage(_STATES, name, make, expected, suffix, fast=fast)


def _gray(name: str, options: str, *expected: Outcome, suffix: str, fast: bool = False) -> Damage:
    """Gray of limited range; the filter that tags it converts no level."""
    words = f"{options} -vf format={options.split()[-1]},setparams=range=tv"
    return stated(name, words, bytes, *expected, suffix=suffix, fast=fast)


def _clap(data: bytes) -> bytes:
    """Show 64 × 48 of 96 × 64."""
    return replace_mp4_colours(data, b"clap", struct.pack(">8I", 64, 1, 48, 1, 0, 1, 0, 1))


def _pixel_crop(data: bytes) -> bytes:
    """Show 96 × 48: without 8 lines above and below."""
    return replace_mkv_colours(data, bytes.fromhex("54bb8108 54aa8108"))


def _dolby_vision_record(profile: int, compatible: int) -> bytes:
    """A base layer that is `compatible` with nothing (0) has colours that no plain decoder shows."""
    level, has_pictures = 1, 5
    return bytes((1, 0, profile << 1, level << 3 | has_pictures, compatible << 4))


def _dolby_vision(kind: bytes, profile: int, compatible: int = 0) -> Callable[[bytes], bytes]:
    """State a profile."""
    record = _dolby_vision_record(profile, compatible) + bytes(19)
    return lambda data: replace_mp4_colours(data, kind, record)


def _dolby_vision_in(name: str, profile: int, compatible: int, words: str, suffix: str, *notes: str) -> Damage:
    """HEVC whose mp4 states a profile, packed again by ffmpeg."""
    change = _dolby_vision(b"dvcC", profile, compatible)
    stem = f"dolby-{profile}-{compatible}"
    first = stated(stem, f"{_HEVC} -tag:v hvc1 -pix_fmt yuv420p10le", change, suffix=".mp4")

    def make(bench: Bench, path: Path) -> None:
        plain = bench.folder / f"{stem}-stated.mp4"
        first.make(bench, plain)
        bench.run("-i", str(plain), "-c", "copy", "-strict", "unofficial", *words.split(), str(path))
        if suffix == ".ts":  # ffmpeg's muxer leaves the record out
            path.write_bytes(with_stream_descriptor(path.read_bytes(), 0xB0, _dolby_vision_record(profile, compatible)))
        elif not re.search(b"dv[cv]C", path.read_bytes()):
            raise ValueError(f"{name}: ffmpeg left the record of Dolby Vision out")

    return Damage(_STATES, f"Dolby Vision {name}", make, tuple(map(built, notes or ("",))), suffix)


def _tags(matrix: str, pixels: str = "yuv420p", level_range: str = "tv") -> str:
    name = {"bt601": "smpte170m"}.get(matrix, matrix)
    return (
        f"-vf scale=out_color_matrix={matrix}:out_range={level_range} -pix_fmt {pixels} "
        f"-colorspace {name} -color_trc {name} -color_primaries {name} -color_range {level_range}"
    )


_BT709, _BT601, _FULL = _tags("bt709"), _tags("bt601"), _tags("bt709", level_range="pc")
_SIZE, _ASPECT = "the picture's size changes", "the sample aspect changes"
_CHANGES = (
    joined("size, H.264 in TS", _H264, _H264, _SIZE, sizes="96x64 72x96", fast=True),
    joined("size, HEVC in TS", _HEVC, _HEVC, _SIZE, sizes="96x64 192x128"),
    joined(
        "size, VP8 in WebM", "-c:v libvpx -b:v 2M", "-c:v libvpx -b:v 2M", _SIZE, suffix=".webm", sizes="96x64 48x32"
    ),
    joined("size, VP9 in Matroska", _VP9, _VP9, _SIZE, suffix=".mkv", sizes="96x64 130x66"),
    joined("size, MPEG-2 in MPEG-PS", _MPEG2, _MPEG2, _SIZE, suffix=".mpg", sizes="96x64 128x96"),
    joined("sample aspect, MPEG-2 in TS", f"{_MPEG2} -vf setsar=1", f"{_MPEG2} -vf setsar=32/27", _ASPECT, fast=True),
    joined(
        "sample aspect, MPEG-2 in MPEG-PS",
        f"{_MPEG2} -vf setsar=1",
        f"{_MPEG2} -vf setsar=32/27",
        _ASPECT,
        suffix=".mpg",
    ),
    joined("sample aspect, H.264 in TS", f"{_H264} -vf setsar=1", f"{_H264} -vf setsar=4/3", _ASPECT),
    joined("sample aspect, HEVC in TS", f"{_HEVC} -vf setsar=1", f"{_HEVC} -vf setsar=4/3", _ASPECT),
    joined("matrix, H.264 in TS", f"{_H264} {_BT709}", f"{_H264} {_BT601}", _NO_DURATION, fast=True),
    joined("range, HEVC in TS", f"{_HEVC} {_BT709}", f"{_HEVC} {_FULL}", _NO_DURATION),
    joined("bit depth, HEVC in TS", f"{_HEVC} {_BT709}", f"{_HEVC} {_tags('bt709', 'yuv420p10le')}", _NO_DURATION),
    joined("chroma, MPEG-2 in TS", f"{_MPEG2} -pix_fmt yuv420p", f"{_MPEG2} -pix_fmt yuv422p", _NO_DURATION),
    joined("range, VP9 in WebM", f"{_VP9} {_BT709}", f"{_VP9} {_FULL}", "", suffix=".webm"),
)

_GRAY_LUMA = "setparams=range=pc,format=gray,scale=WxH:flags=bicubic"  # no change of levels
_CLAP = built(size=(42, 32), right=False, luma=LUMA)
_CROP = built(size=(64, 32), right=False, luma=LUMA)
_STATED = (
    _gray(
        "gray of limited range, FFV1 with 12 bits", "-c:v ffv1 -pix_fmt gray12le", built(luma=_GRAY_LUMA), suffix=".mkv"
    ),
    _gray(
        "gray of limited range, HEVC with 10 bits", f"{_HEVC} -pix_fmt gray10le", built(luma=_GRAY_LUMA), suffix=".mov"
    ),
    _gray(
        "gray of limited range, AV1",
        "-c:v libaom-av1 -cpu-used 8 -crf 10 -pix_fmt gray",
        built(luma=_GRAY_LUMA),
        suffix=".mp4",
    ),
    _gray(
        "gray of limited range, uncompressed",
        "-c:v rawvideo -pix_fmt gray",
        built(luma=_GRAY_LUMA),
        suffix=".mkv",
        fast=True,
    ),
    _gray(
        "gray of limited range, alpha",
        "-c:v ffv1 -pix_fmt ya8",
        built("has transparency", luma=_GRAY_LUMA),
        suffix=".mkv",
    ),
    stated("crop, H.264 in mp4", _H264, _clap, _CLAP, suffix=".mp4", fast=True),
    stated("crop, HEVC in mp4", f"{_HEVC} -tag:v hvc1", _clap, _CLAP, suffix=".mp4"),
    stated("crop, MPEG-4 part 2 in mp4", "-c:v mpeg4 -q:v 2", _clap, _CLAP, suffix=".mp4"),
    stated("crop, VP9 in WebM", _VP9, _pixel_crop, _CROP, suffix=".webm"),
    stated("crop, FFV1 in Matroska", "-c:v ffv1", _pixel_crop, _CROP, suffix=".mkv"),
    stated(
        "Dolby Vision 5, HEVC in mp4",
        f"{_HEVC} -tag:v hvc1 -pix_fmt yuv420p10le",
        _dolby_vision(b"dvcC", 5),
        built("Dolby Vision, profile 5"),
        suffix=".mp4",
        fast=True,
    ),
    stated(
        "Dolby Vision 8 with a base, HEVC in mp4",
        f"{_HEVC} -tag:v hvc1 -pix_fmt yuv420p10le",
        _dolby_vision(b"dvcC", 8, compatible=1),
        built(),
        suffix=".mp4",
    ),
    stated(
        "Dolby Vision 10 without a base, AV1 in mp4",
        "-c:v libaom-av1 -cpu-used 8 -crf 10",
        _dolby_vision(b"dvvC", 10),
        built("Dolby Vision, profile 10"),
        suffix=".mp4",
    ),
    _dolby_vision_in("5, HEVC in Matroska", 5, 0, "", ".mkv", "Dolby Vision, profile 5"),
    _dolby_vision_in("5, HEVC in TS", 5, 0, "", ".ts", "Dolby Vision, profile 5"),
    _dolby_vision_in(
        "5, HEVC in fragments", 5, 0, "-movflags frag_keyframe+empty_moov", ".mp4", "Dolby Vision, profile 5"
    ),
    _dolby_vision_in("7 without a base, HEVC in mp4 named mov", 7, 0, "-f mp4", ".mov", "Dolby Vision, profile 7"),
    _dolby_vision_in("7 with a base, HEVC in Matroska", 7, 6, "", ".mkv"),
    _dolby_vision_in("8.1, HEVC in Matroska", 8, 1, "", ".mkv"),
    _dolby_vision_in("8.2, HEVC in TS", 8, 2, "", ".ts", _NO_DURATION),
    _dolby_vision_in("8.4, HEVC in mp4 named mov", 8, 4, "-f mp4", ".mov"),
    *(
        stated(
            f"{matrix}, FFV1",
            f"-c:v ffv1 -vf format=yuv420p,setparams=colorspace={matrix}",
            bytes,
            built("not converted", luma=f"setparams=colorspace={taken_for},{LUMA}"),
            suffix=".mkv",
        )
        for matrix, taken_for in (("ictcp", "unknown"), ("ycgco", "unknown"), ("bt2020c", "bt2020nc"))
    ),
)
MIDWAY = (*_CHANGES, *_STATED)
