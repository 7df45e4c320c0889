"""What can be counted of a data set without decoding anything: the sample table answers for every sample, a survey the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.format import Index
from vmae_data.inspect.survey import survey
from vmae_data.read.dataset import Shards

__all__ = ["DataFacts", "Range", "inspect_shards"]


class Range(NamedTuple):
    """Lowest, median and highest of a column."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g} (median {self.median:.4g})"


@dataclass(frozen=True)
class DataFacts:
    """What can be said of a data set without decoding anything."""

    shards: Shards
    bytes: int
    kept_frames: int
    source_hours: float
    profiles: dict[str, int]  # of the samples that were looked at: all, but in a very large data set
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


def inspect_shards(url: str | Path) -> DataFacts:
    """Open a data set and count. Raises DataError where it is none."""
    shards = Shards.open(str(url))
    surveyed = survey(shards)
    return DataFacts(
        shards=shards,
        bytes=sum(shard.filesize for shard in shards.index.shardlist),
        kept_frames=int(shards.frames_NP.sum()),
        source_hours=surveyed.source_seconds / 3600,
        profiles=surveyed.profiles,
        width=_range(shards.size_N2[:, 1]),
        height=_range(shards.size_N2[:, 0]),
        kept_rate=_range(shards.rate_N),
        frames=_range(shards.frames_NP[:, 0]),
        per_class=dict(zip(shards.classes, shards.class_count_K.tolist(), strict=True)),
        unlabelled=shards.unlabelled,
    )


def _range(values: NDArray[Any]) -> Range:
    return Range(*(float(f"{value:.6g}") for value in (values.min(), np.median(values), values.max())))
