"""A data set's index, sample table and markers → its counts, as a table or as JSON. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.amounts import format_bytes, format_seconds
from vmae_data.console import print_rows
from vmae_data.format import Index
from vmae_data.inspect.markers import seconds_and_profiles
from vmae_data.read.dataset import Shards

__all__ = ["DataFacts", "Range", "inspect_shards", "print_table"]


class Range(NamedTuple):
    """Lowest, median and highest value of a column."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g} (median {self.median:.4g})"


@dataclass(frozen=True)
class DataFacts:
    """The counts of a data set."""

    shards: Shards
    bytes: int
    kept_frames: int
    source_hours: float
    profiles: dict[str, int]  # of the samples whose profile was read: all, except in a very large data set
    width: Range
    height: Range
    kept_rate: Range
    frames: Range
    per_class: dict[str, int]
    unlabelled: int

    @property
    def index(self) -> Index:
        return self.shards.index

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        index = self.index
        return {
            "folder": str(self.shards.folder),
            "samples": index.samples,
            "shards": len(index.shardlist),
            "bytes": self.bytes,
            "source_bytes": index.source_bytes,
            "frames": self.kept_frames,
            "source_hours": self.source_hours,
            "width": self.width._asdict(),
            "height": self.height._asdict(),
            "kept_rate": self.kept_rate._asdict(),
            "kept_frames": self.frames._asdict(),
            "short_side": index.short_side,
            "stride": index.stride,
            "rate": None if index.rate is None else float(index.rate),
            "phases": index.phases,
            "profile": index.profile,
            "profiles": self.profiles,
            "split": index.split,
            "may_flip": index.may_flip,
            "classes": self.per_class,
            "unlabelled": self.unlabelled,
            "failures": index.failures,
        }

    @property
    def class_sizes(self) -> str:
        """Samples of the smallest and the largest class, in words."""
        fewest, most = min(self.per_class.values()), max(self.per_class.values())
        return f"{fewest if fewest == most else f'{fewest} to {most}'} samples each"

    @property
    def profile_counts(self) -> str:
        """How many samples of a `copy` build were copied and how many encoded, in words; else nothing."""
        if self.index.profile != "copy":
            return ""
        read = sum(self.profiles.values())
        counts = ", ".join(f"{count} {profile}" for profile, count in self.profiles.items())
        return counts + (f" (of {read} samples that were read)" if read < len(self.shards) else "")


def inspect_shards(url: str | Path) -> DataFacts:
    """Open a data set and count. Raises DataError if it is none."""
    shards = Shards.open(str(url))
    source_seconds, profiles = seconds_and_profiles(shards)
    return DataFacts(
        shards=shards,
        bytes=sum(shard.filesize for shard in shards.index.shardlist),
        kept_frames=int(shards.frames_NP.sum()),
        source_hours=source_seconds / 3600,
        profiles=profiles,
        width=_range(shards.size_N2[:, 1]),
        height=_range(shards.size_N2[:, 0]),
        kept_rate=_range(shards.rate_N),
        frames=_range(shards.frames_NP[:, 0]),
        per_class=dict(zip(shards.classes, shards.class_count_K.tolist(), strict=True)),
        unlabelled=shards.unlabelled,
    )


def _range(values: NDArray[Any]) -> Range:
    return Range(*(float(f"{value:.6g}") for value in (values.min(), np.median(values), values.max())))


def print_table(facts: DataFacts) -> None:
    """Print the counts to stdout."""
    print_rows(str(facts.shards.folder), _rows(facts))


def _rows(facts: DataFacts) -> Iterator[tuple[str, str]]:
    index = facts.index
    yield "samples", f"{index.samples}" + (f", split {index.split}" if index.split else "")
    if facts.per_class:
        yield "classes", f"{len(facts.per_class)}, {facts.class_sizes}"
    if facts.unlabelled:
        yield "without label", str(facts.unlabelled)
    yield "shards", f"{len(index.shardlist)}, {format_bytes(facts.bytes)}"
    if index.source_bytes:
        share = 100 * facts.bytes / index.source_bytes
        yield "size", f"{share:.3g} % of the sources' {format_bytes(index.source_bytes)}"
    yield "source duration", format_seconds(3600 * facts.source_hours)
    yield "kept frames", f"{facts.kept_frames}; {facts.frames} per sample"
    yield "width", f"{facts.width} px"
    yield "height", f"{facts.height} px"
    yield "kept frame rate", f"{facts.kept_rate} fps"
    yield "thinning", index.spacing + (f", {index.phases} phases" if index.phases > 1 else "")
    profiles = f"; samples: {facts.profile_counts}" if facts.profile_counts else ""
    yield "profile", f"{index.profile}, short side {index.short_side} px{profiles}"
    yield "may flip", "yes" if index.may_flip else "no"
    yield "failures", ", ".join(f"{count} {reason}" for reason, count in index.failures.items()) or "none"
