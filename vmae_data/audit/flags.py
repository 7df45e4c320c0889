"""Measures and duplicates → a row a sample: what is odd about it, and whether to leave it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from vmae_data.audit.duplicates import Duplicates, DuplicateSpec, find_duplicates
from vmae_data.audit.measure_samples import Looked

__all__ = ["FLAGS", "AuditSpec", "Judged", "Row", "judge"]

Flag = Literal["unreadable", "leak", "duplicate", "static", "near-static", "black", "frozen", "blurred", "many-cuts"]
FLAGS: tuple[Flag, ...] = Flag.__args__  # type: ignore[attr-defined]


class AuditSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The thresholds: `--set key=value`. Shares are 0 to 1."""

    static: float = 0.005  # of the picture may ever change, to be called static
    near_static: float = 0.5  # grey levels a quarter of a second, on average
    black: float = 0.8  # of the frames
    frozen: float = 0.25  # of the time
    blurred: float = 0.14  # sharpness below it
    cuts: float = 0.5  # a second, and at least two
    duplicates: DuplicateSpec = DuplicateSpec()
    exclude: tuple[Flag, ...] = ("leak", "duplicate", "static", "black")

    def __post_init__(self) -> None:
        for name in ("static", "near_static", "black", "frozen", "blurred", "cuts"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 0 or more")


class Row(NamedTuple):
    """One sample as it is written: the columns of the Parquet or CSV file."""

    data_set: str
    listing: str  # the data set's id
    key: str
    path: str | None  # of the source, as in KEY.json; None where that can't be read
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
    leak_of: str | None  # a data set named before, a colon, a key
    distance: float | None  # mean bits of 64 between it and what it repeats
    mirrored: bool | None
    exclude: bool
    error: str | None

    def has(self, flag: Flag) -> bool:
        return flag in self.flags.split(",")


class Judged(NamedTuple):
    """All samples by data set and key, their rows, and who repeats whom (places in `rows`)."""

    samples: tuple[Looked, ...]
    rows: tuple[Row, ...]
    duplicates: Duplicates

    def counts(self) -> dict[str, int]:
        """How many samples carry a flag."""
        counted = Counter(flag for row in self.rows for flag in row.flags.split(",") if flag)
        return {flag: counted[flag] for flag in FLAGS}


class DataSet(NamedTuple):
    """A data set as the rows name it."""

    name: str
    listing: str


def judge(looked: Sequence[Looked], data_sets: Sequence[DataSet], spec: AuditSpec) -> Judged:
    """In a stable order (data sets as they were named, keys), so that it is always the same copy that stays."""
    samples = tuple(sorted(looked, key=lambda one: (one.data_set, one.key)))
    whole = [number for number, one in enumerate(samples) if one.seen is not None]
    found = find_duplicates(
        [one.seen.prints for one in samples if one.seen is not None],
        [samples[number].sha256 for number in whole],
        [(samples[number].data_set, samples[number].path) for number in whole],
        spec.duplicates,
    )
    duplicates = Duplicates(
        {whole[number]: whole[other] for number, other in found.recorder.items()},
        {whole[number]: match for number, match in found.match.items()},
        found.nominated,
    )
    rows = tuple(_row(number, samples, data_sets, duplicates, spec) for number in range(len(samples)))
    return Judged(samples, rows, duplicates)


def _row(
    number: int, samples: Sequence[Looked], data_sets: Sequence[DataSet], duplicates: Duplicates, spec: AuditSpec
) -> Row:
    one, seen = samples[number], samples[number].seen
    recorder = samples[duplicates.recorder[number]] if number in duplicates.recorder else None
    match = duplicates.match.get(number)
    leak = recorder is not None and recorder.data_set != one.data_set
    flags = ["unreadable"] if seen is None else list(_measured_flags(one, spec))
    if recorder is not None:
        flags.append("leak" if leak else "duplicate")
    measured: dict[str, Any] = dict.fromkeys(("motion", "moved", "black", "frozen", "cuts", "sharpness"))
    if seen is not None:
        measured = {name: _rounded(value) for name, value in seen.measures._asdict().items()}
    return Row(
        data_set=data_sets[one.data_set].name,
        listing=data_sets[one.data_set].listing,
        key=one.key,
        path=one.path,
        segment=one.segment,
        label=one.label,
        split=one.split,
        seconds=_rounded(seen.seconds) if seen else None,
        frames=one.frames,
        **measured,
        flags=",".join(flag for flag in FLAGS if flag in flags),
        duplicate_of=recorder.key if recorder and not leak else None,
        leak_of=f"{data_sets[recorder.data_set].name}:{recorder.key}" if recorder and leak else None,
        distance=_rounded(match.distance) if match else None,
        mirrored=match.mirrored if match else None,
        exclude=any(flag in spec.exclude for flag in flags),
        error=one.error,
    )


def _measured_flags(one: Looked, spec: AuditSpec) -> Iterator[Flag]:
    assert one.seen is not None
    measures = one.seen.measures
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
    if measures.cuts >= 2 and measures.cuts > spec.cuts * one.seen.seconds:
        yield "many-cuts"


def _rounded(value: float | None) -> float | None:
    """Four digits after the point: more would say what the measure doesn't hold."""
    return round(value, 4) if isinstance(value, float) else value
