"""The boxes of an mp4: where they lie, and how to bend them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Box", "bent", "boundaries", "find_box", "walk_boxes"]

_HOLD_BOXES = frozenset(b"moov trak mdia minf stbl dinf edts udta mvex moof traf".split())
_HEADER = 8


class Box(NamedTuple):
    """A box: its names from the top (moov/trak/…), and [start, stop) with its header of 8 bytes."""

    path: str
    start: int
    stop: int


def walk_boxes(data: bytes, start: int = 0, stop: int | None = None, above: str = "") -> Iterator[Box]:
    """Every box, a box before those in it."""
    stop = len(data) if stop is None else stop
    while start + _HEADER <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        box = Box(above + kind.decode("latin-1"), start, start + size)
        yield box
        if kind in _HOLD_BOXES:
            yield from walk_boxes(data, start + _HEADER, box.stop, f"{box.path}/")
        start = box.stop


def find_box(data: bytes, name: str) -> Box:
    """The first box of this name (its last four letters). Raises StopIteration where there is none."""
    return next(box for box in walk_boxes(data) if box.path.endswith(name))


def boundaries(data: bytes) -> dict[str, int]:
    """A place in the file for the end of every header that holds boxes, and of every other box."""
    places: dict[str, int] = {}
    for box in walk_boxes(data):
        holds = box.path[-4:].encode() in _HOLD_BOXES
        name = f"the header of {box.path}" if holds else box.path
        number = sum(known.split(" no. ")[0] == name for known in places)
        places[f"{name} no. {number + 1}" if number else name] = box.start + _HEADER if holds else box.stop
    return places


def bent(data: bytes, name: str, offset: int, form: str, *values: int | bytes) -> bytes:
    """The file with other bytes `offset` after the header of the first box of this name (-8: its size)."""
    place = find_box(data, name).start + _HEADER + offset
    new = struct.pack(form, *values)
    return data[:place] + new + data[place + len(new) :]
