"""Measures and duplicates → one row per sample: its flags, and whether to exclude it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from vmae_data.audit.duplicates import Duplicates, DuplicateSpec, find_duplicates
from vmae_data.audit.measure_samples import MeasuredSample
from vmae_data.audit.measures import Measures
from vmae_data.read.dataset import Shards
from vmae_data.recipes import check_bounds

__all__ = ["FLAGS", "AuditReport", "AuditSpec", "Flag", "Row", "flag_samples"]

Flag = Literal["unreadable", "leak", "duplicate", "static", "near-static", "black", "frozen", "blurred", "many-cuts"]
FLAGS: tuple[Flag, ...] = Flag.__args__  # type: ignore[attr-defined]


class AuditSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The thresholds: `--set key=value`. Shares are 0 to 1."""

    static: float = 0.005  # at most this share of the picture ever changes
    near_static: float = 0.5  # motion below this, in grey levels per quarter of a second
    black: float = 0.8  # at least this share of the frames
    frozen: float = 0.25  # at least this share of the time
    blurred: float = 0.14  # sharpness below this
    cuts: float = 0.5  # more cuts per second than this, and at least two
    duplicates: DuplicateSpec = DuplicateSpec()
    exclude: tuple[Flag, ...] = ("leak", "duplicate", "static", "black")

    def __post_init__(self) -> None:
        check_bounds(self, static=(0, 1000), near_static=(0, 1000), black=(0, 1000), frozen=(0, 1000))
        check_bounds(self, blurred=(0, 1000), cuts=(0, 1000))


class Row(NamedTuple):
    """One sample: the columns of the Parquet or CSV file."""

    data_set: str
    listing: str  # the data set's id
    key: str
    path: str | None  # of the source, as in KEY.json; None if that can't be read
    segment: int | None
    label: str | None
    split: str | None
    seconds: float | None
    frames: int
    motion: float | None
    moved: float | None
    black: float | None
    frozen: float | None
    cuts: int | None
    sharpness: float | None
    flags: str
    duplicate_of: str | None  # a key of the same data set
    leak_of: str | None  # DATA_SET:KEY, in a data set that was named earlier
    distance: float | None  # mean bits of 64 that differ from the sample that it copies
    mirrored: bool | None
    exclude: bool
    error: str | None

    def has(self, flag: Flag) -> bool:
        return flag in self.flags.split(",")


class AuditReport(NamedTuple):
    """The opened data sets; all samples by data set and key, with their rows; and which are copies (positions)."""

    data_sets: tuple[Shards, ...]
    samples: tuple[MeasuredSample, ...]
    rows: tuple[Row, ...]
    duplicates: Duplicates

    def counts(self) -> dict[Flag, int]:
        """How many samples have each flag."""
        counted = Counter(flag for row in self.rows for flag in row.flags.split(",") if flag)
        return {flag: counted[flag] for flag in FLAGS}


def flag_samples(measured: Sequence[MeasuredSample], data_sets: tuple[Shards, ...], spec: AuditSpec) -> AuditReport:
    """Find duplicates and set flags. Samples are sorted by data set and key, so that the same copy always stays."""
    samples = tuple(sorted(measured, key=lambda sample: (sample.data_set, sample.key)))
    readable = [number for number, sample in enumerate(samples) if sample.fingerprint is not None]
    readable_duplicates = find_duplicates(
        [sample.fingerprint for sample in samples if sample.fingerprint is not None],
        [samples[number].sha256 for number in readable],
        [(samples[number].data_set, samples[number].path) for number in readable],
        spec.duplicates,
    )
    duplicates = Duplicates(
        {readable[copy]: readable[original] for copy, original in readable_duplicates.original.items()},
        {readable[copy]: match for copy, match in readable_duplicates.match.items()},
        readable_duplicates.num_candidates,
    )
    rows = tuple(_row(number, samples, data_sets, duplicates, spec) for number in range(len(samples)))
    return AuditReport(data_sets, samples, rows, duplicates)


def _row(
    number: int, samples: Sequence[MeasuredSample], data_sets: Sequence[Shards], duplicates: Duplicates, spec: AuditSpec
) -> Row:
    sample, measures = samples[number], samples[number].measures
    original = samples[duplicates.original[number]] if number in duplicates.original else None
    match = duplicates.match.get(number)
    is_leak = original is not None and original.data_set != sample.data_set
    flags = ["unreadable"] if measures is None else list(_measured_flags(measures, spec))
    if original is not None:
        flags.append("leak" if is_leak else "duplicate")
    columns = ("seconds", "motion", "moved", "black", "frozen", "cuts", "sharpness")
    values: dict[str, Any] = {name: _rounded(getattr(measures, name)) if measures else None for name in columns}
    return Row(
        data_set=data_sets[sample.data_set].url,
        listing=data_sets[sample.data_set].index.id,
        key=sample.key,
        path=sample.path,
        segment=sample.segment,
        label=sample.label,
        split=sample.split,
        frames=sample.frames,
        **values,
        flags=",".join(flag for flag in FLAGS if flag in flags),
        duplicate_of=original.key if original and not is_leak else None,
        leak_of=f"{data_sets[original.data_set].url}:{original.key}" if original and is_leak else None,
        distance=_rounded(match.distance) if match else None,
        mirrored=match.mirrored if match else None,
        exclude=any(flag in spec.exclude for flag in flags),
        error=sample.error,
    )


def _measured_flags(measures: Measures, spec: AuditSpec) -> Iterator[Flag]:
    if measures.moved <= spec.static:
        yield "static"
    elif measures.motion < spec.near_static:
        yield "near-static"
    if measures.black >= spec.black:
        yield "black"
    if measures.frozen >= spec.frozen:
        yield "frozen"
    if measures.sharpness is not None and measures.sharpness < spec.blurred:
        yield "blurred"
    if measures.cuts >= 2 and measures.cuts > spec.cuts * measures.seconds:
        yield "many-cuts"


def _rounded(value: float | None) -> float | None:
    """Four digits after the point: the measures are no more exact."""
    return round(value, 4) if isinstance(value, float) else value
