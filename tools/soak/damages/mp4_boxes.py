"""The boxes of an mp4 and the colours of a Matroska file: find them, and overwrite bytes in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Box", "boundaries", "find_box", "patched", "replace_mkv_colours", "replace_mp4_colours", "walk_boxes"]

_CONTAINERS = frozenset(b"moov trak mdia minf stbl dinf edts udta mvex moof traf".split())
_HEADER = 8


class Box(NamedTuple):
    """A box: its path from the top (moov/trak/…), and its bytes [start, stop) with the header of 8 bytes."""

    path: str
    start: int
    stop: int


def walk_boxes(data: bytes, start: int = 0, stop: int | None = None, above: str = "") -> Iterator[Box]:
    """Every box, parents before children."""
    stop = len(data) if stop is None else stop
    while start + _HEADER <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        box = Box(above + kind.decode("latin-1"), start, start + size)
        yield box
        if kind in _CONTAINERS:
            yield from walk_boxes(data, start + _HEADER, box.stop, f"{box.path}/")
        start = box.stop


def find_box(data: bytes, name: str) -> Box:
    """The first box whose path ends with `name`. Raises StopIteration if there is none."""
    return next(box for box in walk_boxes(data) if box.path.endswith(name))


def boundaries(data: bytes) -> dict[str, int]:
    """A name and a file offset for the end of every container's header and of every other box."""
    offsets: dict[str, int] = {}
    for box in walk_boxes(data):
        is_container = box.path[-4:].encode() in _CONTAINERS
        name = f"the header of {box.path}" if is_container else box.path
        number = sum(known.split(" no. ")[0] == name for known in offsets)
        offsets[f"{name} no. {number + 1}" if number else name] = box.start + _HEADER if is_container else box.stop
    return offsets


def patched(data: bytes, name: str, offset: int, form: str, *values: int | bytes) -> bytes:
    """The file with `values` packed as `form`, `offset` bytes after the header of the first such box (-8: its size)."""
    start = find_box(data, name).start + _HEADER + offset
    new = struct.pack(form, *values)
    return data[:start] + new + data[start + len(new) :]


def replace_mp4_colours(data: bytes, kind: bytes, content: bytes) -> bytes:
    """The mp4 with another box in place of `colr` and all that follows it in the sample entry, of the same length."""
    start, stop = data.index(b"colr") - 4, data.index(b"stts") - 4
    box = struct.pack(">I4s", _HEADER + len(content), kind) + content
    free = stop - start - len(box)
    return data[:start] + box + struct.pack(">I4s", free, b"free") + bytes(free - _HEADER) + data[stop:]


def replace_mkv_colours(data: bytes, elements: bytes) -> bytes:
    """The Matroska file with other elements of its picture in place of Colour, of the same length."""
    start = data.index(b"\x55\xb0")
    stop = start + 3 + (data[start + 2] & 0x7F)
    void = stop - start - len(elements) - 2
    return data[:start] + elements + bytes((0xEC, 0x80 | void)) + bytes(void) + data[stop:]
