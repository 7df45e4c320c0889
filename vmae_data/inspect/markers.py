"""Markers and KEY.json → the duration of all sources by their frame times, and the profiles of the samples.

The sample table has neither. Of a data set of up to 200 shards all markers are read. Of a larger one 200 are read, spread
evenly over it, and the result is scaled up. Fewer are read from a store, because each read there is a request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from vmae_data.errors import DataError
from vmae_data.format import Extent, PhaseFacts, decode_record
from vmae_data.read.dataset import Shards, source_seconds
from vmae_data.storage import read_bytes, read_range

__all__ = ["seconds_and_profiles"]

MAX_SHARDS = 200
MAX_REMOTE_SHARDS = 8
# The first samples of a shard are as good as any: the plan orders sources by a hash.
MAX_REMOTE_SAMPLES = 50  # of each shard, whose KEY.json is read


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


def seconds_and_profiles(shards: Shards) -> tuple[float, dict[str, int]]:
    """Seconds of all sources, each counted once, and how many of the samples that were read have which profile.

    A sample that its marker lacks counts with its nominal duration; `verify` reports it.
    """
    nominal = _nominal_seconds(shards)
    starts = np.cumsum((0, *shards.shard_sizes))
    most = MAX_SHARDS if isinstance(shards.folder, Path) else MAX_REMOTE_SHARDS
    by_times, by_rate = 0.0, 0.0
    profiles: Counter[str] = Counter()
    for shard in np.unique(np.linspace(0, len(shards.shard_sizes) - 1, most).astype(int)).tolist():
        rows = range(starts[shard], starts[shard + 1])
        entries = _entries(shards, shard)
        own = {int(source): nominal[int(source)] for source in np.unique(shards.source_N[rows.start : rows.stop])}
        by_rate += sum(own.values())
        by_times += sum((own | _seconds_by_times(shards, rows, entries)).values())
        profiles.update(_profiles(shards, shard, entries, rows))
    total = sum(nominal.values())
    return total * by_times / by_rate if by_rate else total, dict(sorted(profiles.items()))


def _nominal_seconds(shards: Shards) -> dict[int, float]:
    """By source: its frames at its nominal frame rate."""
    sources, first = np.unique(shards.source_N, return_index=True)
    return {
        int(source): shards.view(int(n)).source_frames / float(shards.source_rate_N[n])
        for source, n in zip(sources, first, strict=True)
    }


def _entries(shards: Shards, shard: int) -> dict[str, _Entry]:
    path = shards.shard_path(shard).with_suffix(".json")
    try:
        return {entry.key: entry for entry in decode_record(read_bytes(path), _Marker, str(path)).samples}
    except DataError:
        return {}


def _seconds_by_times(shards: Shards, rows: Sequence[int], entries: dict[str, _Entry]) -> dict[int, float]:
    """By source, for the samples in the marker. All segments of a source are in one shard."""
    phases: dict[int, list[PhaseFacts]] = {}
    last: dict[int, int] = {}
    for row in rows:
        entry = entries.get(shards.key(row))
        if entry is not None:
            source = int(shards.source_N[row])
            phases.setdefault(source, []).append(entry.members[0].phase)
            last[source] = row
    return {
        source: source_seconds(
            own, 0, shards.view(last[source]).source_frames, float(shards.source_rate_N[last[source]])
        )
        for source, own in phases.items()
    }


def _profiles(shards: Shards, shard: int, entries: dict[str, _Entry], rows: Sequence[int]) -> Iterator[str]:
    """Only the samples of a `copy` build differ: a source that can't be copied is encoded as h264."""
    if shards.index.profile != "copy":
        yield from [shards.index.profile] * len(rows)
        return
    path = shards.shard_path(shard)
    for entry in tuple(entries.values())[: None if isinstance(path, Path) else MAX_REMOTE_SAMPLES]:
        data = read_range(path, entry.facts.offset, entry.facts.size)
        yield decode_record(data, _Profile, f"{path.name}: {entry.key}.json").profile
