"""One member of a shard's tar against its marker, the sample table and the index: its sum, its facts, its frames."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    member_suffix,
)
from vmae_data.html import printable

__all__ = ["REWRITTEN", "Member", "TableRow", "extent_problems", "shortly", "wanted_members", "without_name"]

REWRITTEN = "is not as it was written (keys, order or spaces differ)"


class TableRow(NamedTuple):
    """What samples.arrow says of a sample; columns with a phase axis as tuples."""

    key: str
    label: Label | None
    width: int
    height: int
    source_frames: int
    rate: float
    frames: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    sha256: tuple[bytes, ...]


class Member(Protocol):
    """What a member of the tar should be. `extent` None: no file but the tar has its sum."""

    @property
    def entry(self) -> SampleEntry: ...

    @property
    def extent(self) -> Extent | None: ...

    def problems(self, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
        """What is wrong with its bytes."""


def wanted_members(marker: ShardMarker) -> dict[str, Member]:
    """Every member that a marker speaks of, by its name in the tar."""
    wanted: dict[str, Member] = {}
    for entry in marker.samples:
        for phase, member in enumerate(entry.members):
            wanted[f"{entry.key}.{member_suffix(phase)}"] = _Video(entry, member)
        wanted[f"{entry.key}.json"] = _Facts(entry)
        if entry.label is not None:
            wanted[f"{entry.key}.cls"] = _Class(entry)
    return wanted


def extent_problems(extent: Extent, member: tarfile.TarInfo, data: bytes) -> Iterator[str]:
    """Its place and its sum."""
    if (member.offset_data, member.size) != (extent.offset, extent.size):
        yield f"lies at {member.offset_data} with {member.size} bytes, its marker says {extent.offset} and {extent.size}"
    if hashlib.sha256(data).hexdigest() != extent.sha256:
        yield "its sum is not the one in its marker"


@dataclass(frozen=True)
class _Video:
    """KEY.mp4, or another phase of it."""

    entry: SampleEntry
    member: MemberEntry

    @property
    def extent(self) -> Extent:
        return self.member.extent

    def problems(self, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
        """Training's own decoder gives exactly the stated frames: one more is asked for, and must not come."""
        frames = self.member.phase.frames
        decoded, sizes, detail = 0, set(), ""
        try:
            for frame in decode_frames(data, range(frames + 1), self.entry.key):
                decoded += 1
                sizes.add(frame.y.shape)
        except SampleError as error:
            detail = error.detail
        if decoded < frames:
            yield f"{decoded} of {frames} frames decode ({printable(detail)})"
        elif decoded > frames:
            yield f"more than {frames} frames decode, its marker says {frames}"
        if row is not None and sizes - {(row.height, row.width)}:
            found = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
            yield f"decodes to {found} pixels, samples.arrow says {row.width} × {row.height}"


@dataclass(frozen=True)
class _Facts:
    """KEY.json."""

    entry: SampleEntry

    @property
    def extent(self) -> Extent:
        return self.entry.facts

    def problems(self, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
        try:
            facts = decode_record(data, SampleFacts, "KEY.json")
        except DataError as error:
            yield without_name(error, "KEY.json")
            return
        if encode_record(facts) != data:
            yield REWRITTEN
        for what, found, wanted in self._comparisons(facts, row, index):
            if found != wanted:
                yield f"{what}: {shortly(found)}, elsewhere {shortly(wanted)}"

    def _comparisons(
        self, facts: SampleFacts, row: TableRow | None, index: Index | None
    ) -> Iterator[tuple[str, object, object]]:
        yield "key", facts.key, self.entry.key
        yield "label", facts.label, self.entry.label
        yield "kept frames and times", facts.phases, tuple(member.phase for member in self.entry.members)
        if index is not None:
            known = dict(enumerate(index.classes))
            yield "class name", facts.class_name, known.get(facts.label) if isinstance(facts.label, int) else None
            yield "split", facts.split, index.split
            # A source that `copy` can't take is encoded.
            copied = index.profile == "copy" and facts.profile == "h264"
            yield "profile", facts.profile, facts.profile if copied else index.profile
        if row is not None:
            yield "width", facts.width, row.width
            yield "height", facts.height, row.height
            yield "source frames", facts.source.frames, row.source_frames
            yield "rate", float(facts.rate), row.rate


@dataclass(frozen=True)
class _Class:
    """KEY.cls: the label once more, for readers that know nothing of us. No sum but the tar's covers it."""

    entry: SampleEntry
    extent: None = None

    def problems(self, data: bytes, row: TableRow | None, index: Index | None) -> Iterator[str]:
        label = self.entry.label
        values = label if isinstance(label, tuple) else (label,)
        wanted = " ".join(str(value) for value in values).encode("ascii")
        if data != wanted:
            yield f"says {shortly(data)}, its marker {shortly(wanted)}"


def shortly(value: object) -> str:
    """A value in a problem's line."""
    text = printable(repr(value))
    return text if len(text) <= 80 else text[:77] + "…"


def without_name(error: DataError, name: str) -> str:
    """An error's words without the file that they begin with: it stands before them already."""
    text = str(error)
    return printable(text.partition(f"{name}: ")[2] or text)
