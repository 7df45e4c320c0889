"""One member of a shard's tar → its problems: checksum, facts and frames, against marker, sample table and index."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from vmae_data.decode import decode_frames
from vmae_data.errors import DataError, SampleError
from vmae_data.format import (
    Extent,
    Index,
    Label,
    MemberEntry,
    SampleEntry,
    SampleFacts,
    ShardMarker,
    decode_record,
    encode_record,
)
from vmae_data.names import member_suffix
from vmae_data.pages.html import printable

__all__ = [
    "REWRITTEN",
    "ExpectedMember",
    "TableRow",
    "abbreviate",
    "expected_members",
    "extent_problems",
    "without_name",
]

REWRITTEN = "is not in the form that a build writes (keys, order or spaces differ)"


class TableRow(NamedTuple):
    """One sample's row of samples.arrow; columns with a phase axis are tuples."""

    key: str
    label: Label | None
    width: int
    height: int
    source_frames: int
    rate: float
    shard: int  # its position in the index
    frames: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    sha256: tuple[bytes, ...]


class ExpectedMember(NamedTuple):
    """A member that the tar should have. `extent` None: only the tar's checksum covers it."""

    key: str
    extent: Extent | None
    problems: Callable[[bytes, TableRow | None, Index | None], Iterator[str]]  # of its bytes


def expected_members(marker: ShardMarker) -> dict[str, ExpectedMember]:
    """Every member that a marker lists, by its name in the tar."""
    expected: dict[str, ExpectedMember] = {}
    for entry in marker.samples:
        key = entry.key
        for phase, member in enumerate(entry.members):
            name = f"{key}.{member_suffix(phase)}"
            expected[name] = ExpectedMember(key, member.extent, partial(_video_problems, entry, member))
        expected[f"{key}.json"] = ExpectedMember(key, entry.facts, partial(_facts_problems, entry))
        if entry.label is not None:
            expected[f"{key}.cls"] = ExpectedMember(key, None, partial(_class_problems, entry.label))
    return expected


def extent_problems(extent: Extent, member: tarfile.TarInfo, data: bytes) -> Iterator[str]:
    """Offset, size and checksum."""
    if (member.offset_data, member.size) != (extent.offset, extent.size):
        yield (
            f"starts at byte {member.offset_data} and has {member.size} bytes;"
            f" its marker states {extent.offset} and {extent.size}"
        )
    if hashlib.sha256(data).hexdigest() != extent.sha256:
        yield "checksum differs from its marker"


def _video_problems(
    entry: SampleEntry, member: MemberEntry, data: bytes, row: TableRow | None, index: Index | None
) -> Iterator[str]:
    """The trainer's decoder must give exactly the stated frames. It is asked for one more, which must not come."""
    frames = member.phase.frames
    decoded, sizes, detail = 0, set(), ""
    try:
        for frame in decode_frames(data, range(frames + 1), entry.key):
            decoded += 1
            sizes.add(frame.y.shape)
    except SampleError as error:
        detail = error.detail
    if decoded < frames:
        yield f"{decoded} of {frames} frames decode ({printable(detail)})"
    elif decoded > frames:
        yield f"more than {frames} frames decode; its marker states {frames}"
    if row is not None and sizes - {(row.height, row.width)}:
        decoded_sizes = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
        yield f"decodes to {decoded_sizes} pixels; samples.arrow states {row.width} × {row.height}"


def _facts_problems(entry: SampleEntry, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
    """KEY.json."""
    try:
        facts = decode_record(data, SampleFacts, "KEY.json")
    except DataError as error:
        yield without_name(error, "KEY.json")
        return
    if encode_record(facts) != data:
        yield REWRITTEN
    compared: list[tuple[str, object, object]] = [
        ("key", facts.key, entry.key),
        ("label", facts.label, entry.label),
        ("kept frames and times", facts.phases, tuple(member.phase for member in entry.members)),
    ]
    if index is not None:
        known = dict(enumerate(index.classes))
        # A `copy` build encodes the sources that it can't copy.
        encoded = index.profile == "copy" and facts.profile == "h264"
        compared += [
            ("class name", facts.class_name, known.get(facts.label) if isinstance(facts.label, int) else None),
            ("split", facts.split, index.split),
            ("profile", facts.profile, facts.profile if encoded else index.profile),
        ]
    if row is not None:
        compared += [
            ("width", facts.width, row.width),
            ("height", facts.height, row.height),
            ("source frames", facts.source.frames, row.source_frames),
            ("rate", float(facts.rate), row.rate),
        ]
    for what, value, expected in compared:
        if value != expected:
            yield f"{what} is {abbreviate(value)}; the other files state {abbreviate(expected)}"


def _class_problems(label: Label, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
    """KEY.cls: the label again, for other WebDataset readers."""
    values = label if isinstance(label, tuple) else (label,)
    expected = " ".join(str(value) for value in values).encode("ascii")
    if data != expected:
        yield f"contains {abbreviate(data)}; its marker states {abbreviate(expected)}"


def abbreviate(value: object) -> str:
    """A value as printable text of at most 80 characters."""
    text = printable(repr(value))
    return text if len(text) <= 80 else text[:77] + "…"


def without_name(error: DataError, name: str) -> str:
    """An error's text without the file name at its start: a problem names the file already."""
    text = str(error)
    return printable(text.partition(f"{name}: ")[2] or text)
