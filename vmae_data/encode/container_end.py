"""Where a container ends: inside an mp4 box, before a second file, or after the pictures that it declares."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["declared_pictures", "joined_file", "movie_box", "truncated_box"]

_BOX_HEADER = 8
_LARGEST_MOVIE = 1 << 28  # of 20 million frames
_BOX = struct.Struct(">I4s")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_HEADER_BYTES = 1 << 16  # that hold what FLV and WTV declare
_LARGEST_FILE = 1 << 62
_DIRAC, _DIRAC_END = b"BBCD", 0x10  # before each unit; the kind of unit that ends a sequence
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
# Long enough that no compressed frame has them by chance: NUT, RealMedia with the size and version of its header.
_FIND_ANYWHERE = (_ASF, b"nut/multimedia container\0", b".RMF\0\0\0\x12\0\0", b".RMF\0\0\0\x12\0\x01")
_PNG = b"\x89PNG\r\n\x1a\n"
_WTV = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")


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
    """A note if a second file follows, as `cat` joins them, in a format whose reader stops there. Empty if none.

    Reads headers only. In a file that does not declare its size, these are the headers of all frames. ASF, NUT
    and RealMedia files are searched.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        end = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER_BYTES)
        if anywhere := next((magic for magic in _FIND_ANYWHERE if header.startswith(magic)), None):
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                start = data.find(anywhere, len(anywhere))
            return f"a second file begins at byte {start}: its frames may be missing" if start > 0 else ""
        layout = next((one for one in _LAYOUTS if header.startswith(one.magic)), None)
        if layout is None:
            return _second_dirac(file) if header.startswith(_DIRAC) else _second_mp4(file, end)
        start = layout.declared_size(header)
        if not 0 < start <= end:
            start = _end_of_units(file, layout.first_unit(header), layout)
        is_joined = start > 0 and _read_at(file, min(start, end), len(layout.magic)) == layout.magic
        return f"a second file begins at byte {start}: its frames are not read" if is_joined else ""


def declared_pictures(path: bytes) -> int:
    """The number of pictures that the header of an APNG file declares; 0 if it declares none."""
    start = len(_PNG)
    with open(path, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        while len(chunk := _read_at(file, start, 12)) == 12 and chunk[4:8] != b"IDAT":
            if chunk[4:8] == b"acTL":
                return int.from_bytes(chunk[8:], "big")
            start += 12 + int.from_bytes(chunk[:4], "big")
    return 0


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


class _Layout(NamedTuple):
    """How the end of a file is found: by the size that its header declares, else from unit to unit."""

    magic: bytes
    declared_size: Callable[[bytes], int] = lambda header: 0  # 0: none
    first_unit: Callable[[bytes], int] = lambda header: 0
    unit_header: int = 1  # bytes
    unit_size: Callable[[bytes], int] = lambda header: 0  # of a unit with this header; 0: this is no unit


def _end_of_units(file: BinaryIO, start: int, layout: _Layout) -> int:
    while len(unit := _read_at(file, start, layout.unit_header)) == layout.unit_header:
        size = layout.unit_size(unit)
        if size == 0:
            break
        start += size
    return start


def _second_dirac(file: BinaryIO) -> str:
    """As `joined_file`. Every picture may be a sequence of its own, so only their numbers show a second file."""
    start = sequence = 0
    first: bytes | None = None
    while (unit := _read_at(file, start, 17)).startswith(_DIRAC) and len(unit) >= 13:
        kind, size, number = unit[4], int.from_bytes(unit[5:9], "big"), unit[13:]
        if kind == 0:
            sequence = start
        if kind & 8:  # a picture
            if first is not None and number <= first:
                return f"a second file begins at byte {sequence}: its frames may be missing"
            first = first or number
        if size == 0 and kind != _DIRAC_END:
            break
        start += size or 13
    return ""


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _flv_size(header: bytes) -> int:
    field = header.find(b"filesize\x00")
    number = header[field + 9 : field + 17] if field >= 0 else b""
    declared = struct.unpack(">d", number)[0] if len(number) == 8 else 0.0
    return int(declared) if 0 < declared < _LARGEST_FILE else 0


_LAYOUTS = (
    _Layout(
        magic=b"FLV\x01",
        declared_size=_flv_size,
        first_unit=lambda header: int.from_bytes(header[5:9], "big") + 4,
        unit_header=4,
        # Of audio, video and scripts: a tag's header, its data, and its size again.
        unit_size=lambda tag: 15 + int.from_bytes(tag[1:], "big") if tag[0] in (8, 9, 18) else 0,
    ),
    _Layout(magic=_WTV, declared_size=lambda header: int.from_bytes(header[0x5C:0x60], "little") << 12),  # in sectors
    _Layout(
        magic=_PNG,
        first_unit=lambda header: len(_PNG),
        unit_header=8,
        unit_size=lambda chunk: 12 + int.from_bytes(chunk[:4], "big") if chunk[4:].isalpha() else 0,
    ),
    _Layout(
        magic=b"DKIF",
        first_unit=lambda header: int.from_bytes(header[6:8], "little"),
        unit_header=4,
        unit_size=lambda frame: 12 + int.from_bytes(frame, "little") if frame != b"DKIF" else 0,
    ),
)
