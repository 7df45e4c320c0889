"""Where a container ends: inside an mp4 box, or before the end of the file, where a second file follows."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["joined_file", "movie_box", "truncated_box"]

_BOX_HEADER = 8
_LARGEST_MOVIE = 1 << 28  # of 20 million frames
_BOX = struct.Struct(">I4s")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_HEADER_BYTES = 1 << 16  # that hold what FLV and ASF declare
_FLV, _FLV_TAGS = b"FLV\x01", (8, 9, 18)  # audio, video, script
_FLV_TAG_BYTES = 15  # its header, and its size after it
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_SIZE_OFFSET = 40  # after the start of the properties


class _Box(NamedTuple):
    kind: bytes
    start: int
    size: int


def truncated_box(path: bytes) -> str:
    """A message that names the mp4 box in which the file ends, as an interrupted download does. Empty if none."""
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        end = os.fstat(file.fileno()).st_size
        for kind, start, size in _top_level_boxes(file, end):
            if start + size > end:
                return f"the file ends inside its box {kind.decode('ascii', 'replace')}, {end - start} of {size} bytes"
    return ""


def movie_box(path: bytes) -> bytes:
    """The content of an mp4's box `moov`, which locates its frames. Empty if there is none."""
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        for kind, start, size in _top_level_boxes(file, os.fstat(file.fileno()).st_size):
            if kind == b"moov":
                file.seek(start + _BOX_HEADER)
                return file.read(size - _BOX_HEADER) if size <= _LARGEST_MOVIE else b""
    return b""


def _top_level_boxes(file: BinaryIO, end: int) -> Iterator[_Box]:
    """The boxes of an mp4 file. The last one may be longer than the file. Nothing for other files."""
    start = 0
    while start + _BOX_HEADER <= end:
        file.seek(start)
        size, kind = _BOX.unpack(file.read(_BOX_HEADER))
        if start == 0 and kind not in _FIRST_BOXES:
            return
        if size == 1:  # a 64-bit size follows
            size = int.from_bytes(file.read(8), "big")
        if size < _BOX_HEADER:  # 0: up to the end of the file; 2 to 7: not a box
            return
        yield _Box(kind, start, size)
        start += size


def joined_file(path: bytes) -> str:
    """A note if a second file follows in an mp4, FLV or ASF file, as `cat` joins them. Empty if none.

    Reads headers only. In an FLV file that does not declare its size, these are the headers of all tags.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        end = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER_BYTES)
        if header.startswith(_FLV):
            start = _second_flv(file, header, end)
        elif header.startswith(_ASF):
            start = _second_asf(file, header, end)
        else:
            return _second_mp4(file, end)
    return f"a second file begins at byte {start}: its frames are not read" if start else ""


def _second_mp4(file: BinaryIO, end: int) -> str:
    """As `joined_file`. After a movie in fragments, ffmpeg also reads fragments of another one, if it finds their frames."""
    file_type, kinds = 0, set[bytes]()
    for kind, start, _ in _top_level_boxes(file, end):
        if kind == b"ftyp":
            file_type = start
        if kind == b"moov" and kind in kinds:
            missing = "may be missing" if b"moof" in kinds else "are not read"
            return f"a second file begins at byte {file_type or start}: its frames {missing}"
        kinds.add(kind)
    return ""


def _second_flv(file: BinaryIO, header: bytes, end: int) -> int:
    field = header.find(b"filesize\x00")
    if field >= 0 and len(number := header[field + 9 : field + 17]) == 8:
        declared = struct.unpack(">d", number)[0]
        if 0 < declared <= end:
            return int(declared) if _has(file, int(declared), end, _FLV) else 0
    start = int.from_bytes(header[5:9], "big") + 4
    file.seek(start)
    while len(tag := file.read(_FLV_TAG_BYTES - 4)) == _FLV_TAG_BYTES - 4 and tag[0] in _FLV_TAGS:
        start += _FLV_TAG_BYTES + int.from_bytes(tag[1:4], "big")
        file.seek(start)
    return start if tag.startswith(_FLV) else 0


def _second_asf(file: BinaryIO, header: bytes, end: int) -> int:
    field = header.find(_ASF_PROPERTIES) + _ASF_SIZE_OFFSET
    declared = int.from_bytes(header[field : field + 8], "little") if field >= _ASF_SIZE_OFFSET else 0
    return declared if declared and _has(file, declared, end, _ASF) else 0


def _has(file: BinaryIO, start: int, end: int, magic: bytes) -> bool:
    """Whether these bytes are at `start`, which a header declares: it may be beyond the end, or no position at all."""
    if start + len(magic) > end:
        return False
    file.seek(start)
    return file.read(len(magic)) == magic
