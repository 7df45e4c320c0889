"""What the sample table doesn't hold: how long sources last by their frames' times, and which samples were copied.

It stands in the markers and in KEY.json. All are read of a data set of up to 200 shards; of a larger one those of 200 shards,
spread over it, and the rest is taken to be like them. Where each read is a request to a store, fewer are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import DataError
from vmae_data.format import Extent, PhaseFacts, decode_record
from vmae_data.read.dataset import Shards
from vmae_data.read.durations import Span, span_of
from vmae_data.storage import read_bytes, read_range

__all__ = ["Survey", "survey"]

MOST_SHARDS = 200
MOST_SHARDS_OF_A_STORE = 8
ASKED_OF_A_STORE = (
    50  # samples of each, whose KEY.json is read: plan order is a hash's, so the first are as good as any
)


class Survey(NamedTuple):
    """Seconds of all sources, each counted once; how many of the samples that were looked at have which profile."""

    source_seconds: float
    profiles: dict[str, int]


class _Member(msgspec.Struct):
    """A member without its packet table, which is most of a marker."""

    phase: PhaseFacts


class _Entry(msgspec.Struct):
    key: str
    facts: Extent
    members: tuple[_Member, ...]


class _Marker(msgspec.Struct):
    samples: tuple[_Entry, ...]


class _Profile(msgspec.Struct):
    profile: str


def survey(shards: Shards) -> Survey:
    """Look at the shards. A sample that its marker doesn't tell of is as long as its nominal rate says: verify names it."""
    nominal = _nominal_seconds(shards)
    begins = np.cumsum((0, *shards.shard_sizes))
    most = MOST_SHARDS if isinstance(shards.folder, Path) else MOST_SHARDS_OF_A_STORE
    places = np.unique(np.linspace(0, len(shards.shard_sizes) - 1, most).astype(int))
    by_times, by_rate = 0.0, 0.0
    profiles: Counter[str] = Counter()
    for place in places.tolist():
        rows = range(begins[place], begins[place + 1])
        entries = _entries(shards, place)
        own = {int(source): nominal[int(source)] for source in np.unique(shards.source_N[rows.start : rows.stop])}
        by_rate += sum(own.values())
        by_times += sum((own | _seconds(shards, rows, entries)).values())
        profiles.update(_profiles(shards, place, entries, rows))
    whole = sum(nominal.values())
    return Survey(whole * by_times / by_rate if by_rate else whole, dict(sorted(profiles.items())))


def _nominal_seconds(shards: Shards) -> dict[int, float]:
    sources, first = np.unique(shards.source_N, return_index=True)
    rates: NDArray[np.float64] = shards.source_rate_N
    return {
        int(source): shards.view(int(n)).source_frames / float(rates[n])
        for source, n in zip(sources, first, strict=True)
    }


def _entries(shards: Shards, place: int) -> dict[str, _Entry]:
    path = shards.shard_path(place).with_suffix(".json")
    try:
        return {entry.key: entry for entry in decode_record(read_bytes(path), _Marker, str(path)).samples}
    except DataError:
        return {}


def _seconds(shards: Shards, rows: Sequence[int], entries: dict[str, _Entry]) -> dict[int, float]:
    """Of the sources of a shard whose samples are told of; all segments of one lie in one shard."""
    spans: dict[int, Span] = {}
    last: dict[int, int] = {}
    for row in rows:
        entry = entries.get(shards.key(row))
        if entry is not None:
            source, span = int(shards.source_N[row]), span_of(entry.members[0].phase)
            spans[source] = span.joined(spans[source]) if source in spans else span
            last[source] = row
    return {
        source: span.seconds(0, shards.view(last[source]).source_frames, float(shards.source_rate_N[last[source]]))
        for source, span in spans.items()
    }


def _profiles(shards: Shards, place: int, entries: dict[str, _Entry], rows: Sequence[int]) -> Iterator[str]:
    """Only of a `copy` build each sample has its own: what could not be copied was encoded as h264."""
    if shards.index.profile != "copy":
        yield from [shards.index.profile] * len(rows)
        return
    path = shards.shard_path(place)
    for entry in tuple(entries.values())[: None if isinstance(path, Path) else ASKED_OF_A_STORE]:
        data = read_range(path, entry.facts.offset, entry.facts.size)
        yield decode_record(data, _Profile, f"{path.name}: {entry.key}.json").profile
