"""Sources whose headers are false: their cost is bounded, and they are built or refused with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tools.soak.damages.clips import Bench
from tools.soak.damages.mp4_boxes import find_box, patched
from tools.soak.damages.records import Damage, Outcome, built, failed

__all__ = ["FALSE_HEADERS"]

_GROUP = "False headers"
_LARGEST = 0xFFFFFFFF


def false_header(
    name: str,
    change: Callable[[bytes], bytes],
    *expected: Outcome,
    clip: str = "claim.mp4",
    options: str = "",
    fast: bool = False,
) -> Damage:
    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(change(bench.clip(clip, options).read_bytes()))

    return Damage(_GROUP, name, make, expected, Path(clip).suffix, fast=fast)


def _patch(box: str, offset: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    return lambda data: patched(data, box, offset, form, *values)


def _nested(_data: bytes) -> bytes:
    """Boxes in boxes, 100,000 deep."""
    deep = 100_000
    return b"".join(
        struct.pack(">I4s", 8 * (deep - level), b"moov" if level == 0 else b"trak") for level in range(deep)
    )


def _at(mark: bytes, offset: int, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = data.index(mark) + offset
        return data[:start] + new + data[start + len(new) :]

    return change


def _one_size(count: int) -> Callable[[bytes], bytes]:
    """`count` samples of one byte each, all in one chunk."""

    def change(data: bytes) -> bytes:
        data = patched(data, "stsz", 4, ">II", 1, count)
        data = patched(data, "stts", 4, ">III", 1, count, 1)
        return patched(data, "stsc", 4, ">IIII", 1, 1, count, 1)

    return change


def _endless_moov(data: bytes) -> bytes:
    start = find_box(data, "moov").start
    return data[:start] + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + data[start + 8 :]


_MJPEG = "-c:v mjpeg -pix_fmt yuvj420p"
_GIF = "-c:v gif -pix_fmt pal8 -f gif -vf format=rgb24,format=pal8"
_MPEG4 = "-c:v mpeg4 -q:v 2"
_JPEG_SIZE = b"\xff\xc0\x00\x11\x08"  # start of a frame header; height and width follow
_WORD = 0xFFFF
FALSE_HEADERS: tuple[Damage, ...] = (
    false_header("100 h in the movie's header", _patch("mvhd", 16, ">I", 360_000_000), built(), fast=True),
    false_header("100 h in the track's header", _patch("mdhd", 16, ">I", 2**31 - 1), built(), fast=True),
    false_header(
        "100 h in a Matroska header", _at(b"\x44\x89\x88", 3, struct.pack(">d", 3.6e8)), built(), clip="claim.mkv"
    ),
    false_header(
        "frames that last 46 h each",
        _patch("stts", 12, ">I", 2**31 - 1),
        failed("ffmpeg-failed", "duration"),
        clip="claim-hole.mp4",
        options="-bf 0 -movflags +faststart",
    ),
    false_header("10^9 frames in the table of times", _patch("stts", 8, ">I", 10**9), built()),
    *(
        false_header(f"2^32 - 1 entries of {box}", _patch(box, 4, ">I", _LARGEST), failed("unreadable"))
        for box in ("stts", "ctts", "stsc", "stss", "stsd", "dref")
    ),
    false_header("2^32 - 1 entries of stco", _patch("stco", 4, ">I", _LARGEST), built()),
    false_header("2^32 - 1 edits", _patch("elst", 4, ">I", _LARGEST), built()),
    false_header("10^9 frames in the table of sizes", _patch("stsz", 8, ">I", 10**9), failed("unreadable"), fast=True),
    false_header("2^32 - 1 frames of one byte", _one_size(_LARGEST), failed("undecodable"), fast=True),
    false_header("10^9 frames of one byte", _one_size(10**9), failed("undecodable")),
    false_header("10^8 frames of one byte", _one_size(10**8), failed("undecodable")),
    false_header(
        "65535 × 65535 in the sample description, not in the parameter sets",
        _patch("stsd", 40, ">HH", _WORD, _WORD),
        built("65535x65535 is invalid", size=(72, 32)),
    ),
    false_header(
        "65535 × 65535 in the sample description, not in the JPEG",
        _patch("stsd", 40, ">HH", _WORD, _WORD),
        built("65535x65535 is invalid", size=(72, 32)),
        clip="claim-mjpeg.mp4",
        options=_MJPEG,
    ),
    false_header(
        "65535 × 65535 in a JPEG's own header",
        _at(_JPEG_SIZE, 5, b"\xff\xff\xff\xff"),
        built("65535x65535 is invalid", frames=24, size=(48, 32)),
        clip="claim-mjpeg.mp4",
        options=_MJPEG,
        fast=True,
    ),
    false_header(
        "9000 × 9000 in a JPEG's own header",
        _at(_JPEG_SIZE, 5, struct.pack(">HH", 9000, 9000)),
        built("ffmpeg complained", frames=24, size=(48, 32)),
        clip="claim-mjpeg.mp4",
        options=_MJPEG,
    ),
    false_header(
        "16383 × 16383 in VP8",
        _at(b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f"),
        failed("damaged", "16383x16383 is invalid"),
        clip="claim-vp8.webm",
        options="-c:v libvpx -b:v 1M -g 100",
        fast=True,
    ),
    false_header(
        "65535 × 65535 uncompressed",
        _patch("stsd", 40, ">HH", _WORD, _WORD),
        failed("too-large"),
        clip="claim-raw.mov",
        options="-c:v rawvideo -pix_fmt rgb24",
    ),
    false_header(
        "65535 × 65535 GIF",
        _at(b"GIF89a", 6, b"\xff\xff\xff\xff"),
        failed("too-large"),
        clip="claim-gif.mp4",
        options=_GIF,
    ),
    false_header(
        "9000 × 9000 GIF",
        _at(b"GIF89a", 6, struct.pack("<HH", 9000, 9000)),
        failed("too-large"),
        clip="claim-gif.mp4",
        options=_GIF,
    ),
    false_header(
        "255 × 255 in Matroska, not in the parameter sets",
        _at(b"\xb0\x81\x60\xba\x81\x40", 0, b"\xb0\x81\xff\xba\x81\xff"),
        built(),
        clip="claim.mkv",
    ),
    false_header("boxes 100,000 deep", _nested, failed("no-video"), fast=True),
    false_header("a moov box of 2^63 bytes", _endless_moov, built("ends inside its box moov")),
    false_header(
        "an AVI of 10^9 frames", _at(b"avih", 24, struct.pack("<I", 10**9)), built(), clip="claim.avi", options=_MPEG4
    ),
    false_header(
        "an AVI stream of 10^9 frames",
        _at(b"strh", 40, struct.pack("<I", 10**9)),
        failed("truncated"),
        clip="claim.avi",
        options=_MPEG4,
    ),
    false_header("a time base of 2^31 ticks per second", _patch("mdhd", 12, ">I", 2**31 - 1), built()),
    false_header(
        "a sample aspect of 65535:1",
        _at(b"pasp", 4, struct.pack(">II", 65535, 1)),
        failed("too-large"),
        clip="claim-sar.mp4",
        options="-c:v mpeg4 -vf setsar=2",
        fast=True,
    ),
    false_header(
        "a sample aspect of 1:65535",
        _at(b"pasp", 4, struct.pack(">II", 1, 65535)),
        failed("too-small"),
        clip="claim-sar.mp4",
        options="-c:v mpeg4 -vf setsar=2",
    ),
)
