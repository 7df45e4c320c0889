"""The shard format, version 1: file names, keys and records that the build writes and the trainer reads.

DEST/plan.json            the plan, written before any work               (PlanFacts)
DEST/plan.arrow           the shard of each source
DEST/shard-000000.tar     samples: KEY.mp4, KEY.json, KEY.cls
DEST/shard-000000.json    the shard's marker, written after the tar       (ShardMarker)
DEST/samples.arrow        one row per sample, with all that reading needs
DEST/failures.jsonl       one line per source that gave no sample         (Failure)
DEST/unlisted.txt         videos that the annotations do not name, if any
DEST/index.json           written last: the data set is complete          (Index)
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from vmae_data.errors import DataError, NewerFormatError

__all__ = [
    "FAILURES",
    "FORMAT_VERSION",
    "INDEX",
    "NOT_JSON",
    "PLAN",
    "PLAN_TABLE",
    "REBUILD",
    "RESTORE_PLAN",
    "RULES",
    "SAMPLES",
    "UNLISTED",
    "Colour",
    "Extent",
    "Failure",
    "Index",
    "Label",
    "MemberEntry",
    "Packets",
    "PhaseFacts",
    "PlanFacts",
    "PlanStage",
    "Rational",
    "Regular",
    "SampleEntry",
    "SampleFacts",
    "SegmentFacts",
    "Series",
    "ShardHead",
    "ShardListing",
    "ShardMarker",
    "SourceFacts",
    "decode_record",
    "encode_record",
    "expand_series",
    "series_of",
]

FORMAT_VERSION = 1
REBUILD = "Remove it and build again"  # what to do with a damaged file
RESTORE_PLAN = "Restore it, or build into another folder"  # nothing else says what a plan says
RULES = 3
"""The rules by which this version encodes. A mend that encodes a source differently, or no longer refuses it, makes new
rules. docs/format.md, section "Rules", lists what they changed."""
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `msgspec.json.decode` raises for bytes that are not the expected JSON, or not UTF-8."""
MAX_STAGES = 10_000  # of a plan: the cost of a stage's digest grows with their number
PLAN, PLAN_TABLE, SAMPLES = "plan.json", "plan.arrow", "samples.arrow"
FAILURES, UNLISTED, INDEX = "failures.jsonl", "unlisted.txt", "index.json"


class Rational(Struct, frozen=True, array_like=True):
    """A frame rate or a time base, written as [num, den]."""

    num: int
    den: int

    def __float__(self) -> float:
        return self.num / self.den


class Regular(Struct, frozen=True):
    """Evenly spaced integers: first, first + step, … (`count` of them)."""

    first: int
    step: int
    count: int


Series = Regular | tuple[int, ...]
"""Frame numbers or times: compact if regular, else every number."""

Label = int | tuple[int | float, ...]
"""A class number, several class numbers, or values for regression."""


class Colour(Struct, frozen=True, kw_only=True):
    """How the planes of an encoded file become RGB."""

    matrix: str  # "bt709" or "bt601"
    full_range: bool
    source_matrix: str
    assumed: bool  # the source was untagged: BT.709 from 720 lines up, else BT.601


class SourceFacts(Struct, frozen=True, kw_only=True):
    """The source file before the build. `frames` counts decoded frames, not a header's claim."""

    path: str
    sha256: str
    bytes: int
    width: int
    height: int
    rotation: int
    rate: Rational
    frames: int
    codec: str
    pixel_format: str


class SegmentFacts(Struct, frozen=True, kw_only=True):
    """The part of its source that a sample shows, in source frames [start, stop)."""

    number: int
    start: int
    stop: int


class PhaseFacts(Struct, frozen=True, kw_only=True):
    """The source frames of one mp4 member, and the time of each, counted from the start of the container."""

    frames: int
    source_frames: Series
    source_times: Series
    source_time_base: Rational


class SampleFacts(Struct, frozen=True, kw_only=True):
    """KEY.json: everything about a sample."""

    version: int
    key: str
    source: SourceFacts
    segment: SegmentFacts | None
    phases: tuple[PhaseFacts, ...]
    width: int
    height: int
    rate: Rational
    profile: str
    colour: Colour
    remarks: tuple[str, ...] = ()
    label: Label | None = None
    class_name: str | None = None
    split: str | None = None


class Extent(Struct, frozen=True, kw_only=True):
    """The data of a member in its tar, and their checksum."""

    offset: int
    size: int
    sha256: str


class Packets(Struct, frozen=True, kw_only=True):
    """The packets of an mp4 member in decoding order, so that a reader can decode without a demuxer.

    Positions count from the start of the member's data. Times are in `time_base`.
    """

    time_base: Rational
    positions: tuple[int, ...]
    sizes: tuple[int, ...]
    pts: tuple[int, ...]
    dts: tuple[int, ...]
    keys: tuple[int, ...]


class MemberEntry(Struct, frozen=True, kw_only=True):
    """One mp4 member of a sample; each phase has one."""

    extent: Extent
    phase: PhaseFacts
    codec: str
    extradata: bytes
    packets: Packets


class SampleEntry(Struct, frozen=True, kw_only=True):
    """One sample in a marker."""

    key: str
    label: Label | None
    facts: Extent
    members: tuple[MemberEntry, ...]


class ShardMarker(Struct, frozen=True, kw_only=True):
    """shard-NNNNNN.json: written after its tar is complete, so that its existence is the proof."""

    version: int
    plan: str
    shard: int
    tar: str
    bytes: int
    sha256: str
    samples: tuple[SampleEntry, ...]
    failures: tuple[Failure, ...] = ()


class ShardHead(Struct, frozen=True, kw_only=True):
    """A marker without the entries of its samples. The build keeps this of each finished shard.

    Markers of a large data set have gigabytes, because every sample has a packet table.
    """

    shard: int
    tar: str
    bytes: int
    sha256: str
    num_samples: int
    failures: tuple[Failure, ...]

    @classmethod
    def of(cls, marker: ShardMarker) -> ShardHead:
        return cls(
            shard=marker.shard,
            tar=marker.tar,
            bytes=marker.bytes,
            sha256=marker.sha256,
            num_samples=len(marker.samples),
            failures=marker.failures,
        )


class Failure(Struct, frozen=True, kw_only=True):
    """A source that gave no sample."""

    key: str
    path: str
    reason: str
    detail: str


class PlanStage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan said before videos were appended. Appended sources, shards and classes follow the earlier ones."""

    listing: str
    sources: int
    shards: int
    classes: int
    ffmpeg: str
    ffmpeg_sha256: str
    rules: int = 1


def _grows(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    """Whether a stage adds sources and shards, or classes alone: another data set of the same source has their videos."""
    (sources, shards, classes), (all_sources, all_shards, all_classes) = before, after
    if (sources, shards) == (all_sources, all_shards):
        return classes < all_classes
    return sources < all_sources and shards < all_shards


class PlanFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """plan.json: everything that the bytes of the tars depend on. Equal plans give equal tars, whichever version makes them.

    A new field needs a default, which is not written: the digest of a stored plan must not change.
    """

    version: int
    listing: str  # digest of relative paths and labels
    sources: int
    shards: int
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    split: str | None
    ffmpeg: str
    ffmpeg_sha256: str
    rules: int = 1  # see RULES
    appended_to: tuple[PlanStage, ...] = ()  # before each append, the first build first
    val_share: float | None = None  # of the groups of the source, if this is one of two data sets made of it
    group_by: str | None = None  # the pattern that names the group of a source

    def __post_init__(self) -> None:
        stages = [(stage.sources, stage.shards, stage.classes) for stage in self.appended_to]
        stages.append((self.sources, self.shards, len(self.classes)))
        if len(stages) > MAX_STAGES or not all(itertools.starmap(_grows, itertools.pairwise(stages))):
            raise ValueError(f"appended_to has more than {MAX_STAGES} stages, or they do not grow")

    @property
    def id(self) -> str:
        """The data set's id in every random number: the digest of its first listing."""
        return self.appended_to[0].listing if self.appended_to else self.listing

    def digest(self) -> str:
        """sha256 of the canonical bytes."""
        return hashlib.sha256(encode_record(self)).hexdigest()

    def stages(self) -> tuple[PlanFacts, ...]:
        """The plan after the first build and after each append; the last is this one."""
        return (*(self._before(n) for n in range(len(self.appended_to))), self)

    def _before(self, append: int) -> PlanFacts:
        values = msgspec.structs.asdict(self.appended_to[append])
        values["classes"] = self.classes[: values["classes"]]
        return msgspec.structs.replace(self, **values, appended_to=self.appended_to[:append])

    def stage_of(self, shard: int) -> int:
        """The position in `stages` of the plan that has the shard first: its digest is in the shard's marker."""
        return sum(shard >= stage.shards for stage in self.appended_to)


class ShardListing(Struct, frozen=True, kw_only=True):
    """One shard in the index. The first three fields are those of wids-shard-index-v1."""

    url: str
    nsamples: int
    filesize: int
    sha256: str
    marker_sha256: str


class Index(Struct, frozen=True, kw_only=True):
    """index.json. It is also a `wids-shard-index-v1`, so `wids` can open it."""

    kind: str = msgspec.field(default="wids-shard-index-v1", name="__kind__")
    wids_version: int = 1
    version: int
    id: str
    samples: int
    samples_sha256: str
    classes: tuple[str, ...]
    may_flip: bool
    split: str | None
    short_side: int
    stride: int | None  # in source frames; None if `rate` is set
    rate: Rational | None = None  # kept frames per second
    phases: int
    profile: str
    recipe: dict[str, Any]
    plan: str
    plan_table_sha256: str
    failures: dict[str, int]
    source_bytes: int | None = None  # of the sources that gave samples, each counted once
    shardlist: tuple[ShardListing, ...]

    @property
    def spacing(self) -> str:
        """The spacing of the kept frames, as text."""
        return f"stride {self.stride}" if self.rate is None else f"{float(self.rate):g} frames a second"


T = TypeVar("T")


def encode_record(record: Any) -> bytes:
    """Canonical JSON: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1) + b"\n"


def decode_record(data: bytes, kind: type[T], where: str, *, advice: str = REBUILD) -> T:
    """Decode one of the records above.

    Raises DataError naming `where`, with `advice`, if the bytes are not that record, or have a newer version.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        version = msgspec.json.decode(fields["version"], type=int) if "version" in fields else FORMAT_VERSION
        if version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{where}: format version {version} is newer than this program's {FORMAT_VERSION}. Update vmae"
            )
        return msgspec.json.decode(data, type=kind)
    except NOT_JSON as error:
        raise DataError(f"{where}: can't be read as {kind.__name__} ({error}). {advice}") from error


def series_of(numbers: Sequence[int]) -> Series:
    """A `Regular` if the numbers are evenly spaced, else all of them."""
    values = [int(n) for n in numbers]
    step = values[1] - values[0] if len(values) > 1 else 1
    if values and all(b - a == step for a, b in itertools.pairwise(values)):
        return Regular(first=values[0], step=step, count=len(values))
    return tuple(values)


def expand_series(series: Series) -> NDArray[np.int64]:
    """Every number of a series."""
    if isinstance(series, Regular):
        return series.first + series.step * np.arange(series.count, dtype=np.int64)
    return np.asarray(series, dtype=np.int64)
