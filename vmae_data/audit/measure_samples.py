"""Samples, in a worker process → their measures and fingerprints: verified bytes are decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.audit.hashes import Fingerprint, fingerprint
from vmae_data.audit.measures import Measures, grey_levels, measure, sharpness_of, shrink
from vmae_data.decode import decode_frames
from vmae_data.errors import DataError, NewerFormatError, SampleError
from vmae_data.format import MemberEntry, SampleEntry, SampleFacts, ShardMarker, decode_record, expand_series
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher
from vmae_data.storage import read_bytes, read_range

__all__ = ["MeasuredSample", "SampleMeasurer", "sample_batches"]

SHARPNESS_SECONDS = 0.5  # sharpness is measured on one frame per this time


class MeasuredSample(NamedTuple):
    """One sample. `measures` and `fingerprint` are None if it can't be read; `error` is the reason."""

    data_set: int  # its position among the data sets
    number: int  # in its data set
    key: str
    path: str | None  # None if KEY.json can't be read
    segment: int | None
    label: str | None
    split: str | None
    frames: int
    sha256: bytes
    measures: Measures | None
    fingerprint: Fingerprint | None
    error: str | None


class SampleMeasurer:
    """Measures samples of some data sets in a worker, which opens each data set when it first needs it."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.folders = folders
        self._shards: dict[int, Shards] = {}
        self._fetchers: dict[int, Fetcher] = {}
        self._marker: tuple[int, int, dict[str, SampleEntry]] = (-1, -1, {})

    def __call__(self, data_set: int, numbers: tuple[int, ...]) -> tuple[MeasuredSample, ...]:
        """Measure these samples. Raises DataError if a shard or its marker is missing."""
        return tuple(self._measure(data_set, number) for number in numbers)

    def _measure(self, data_set: int, number: int) -> MeasuredSample:
        if data_set not in self._shards:
            self._shards[data_set] = Shards.open(self.folders[data_set])
            self._fetchers[data_set] = Fetcher(self._shards[data_set])
        shards = self._shards[data_set]
        entry = self._entry(data_set, number)
        facts, measures, prints, error = None, None, None, None
        try:
            facts = _read_facts(shards, number, entry)
            data = self._fetchers[data_set].fetch(number)
            full_range = bool(shards.full_range_N[number])
            measures, prints = _measure_frames(data, entry.members[0], entry.key, full_range=full_range)
        except SampleError as caught:
            error = caught.detail
        label = shards.label(number)
        return MeasuredSample(
            data_set=data_set,
            number=number,
            key=entry.key,
            path=facts.source.path if facts else None,
            segment=facts.segment.number if facts and facts.segment else None,
            label=None if label is None else shards.classes[label] if isinstance(label, int) else str(label),
            split=facts.split if facts else shards.index.split,
            frames=entry.members[0].phase.frames,
            sha256=shards.member_range(number).sha256,
            measures=measures,
            fingerprint=prints,
            error=error,
        )

    def _entry(self, data_set: int, number: int) -> SampleEntry:
        """The sample in its shard's marker. The last marker is kept: the samples of a shard come one after the other."""
        shards = self._shards[data_set]
        shard, key = shards.member_range(number).shard, shards.key(number)
        if self._marker[:2] != (data_set, shard):
            path = shards.shard_path(shard).with_suffix(".json")
            marker = decode_record(read_bytes(path), ShardMarker, str(path))
            self._marker = (data_set, shard, {entry.key: entry for entry in marker.samples})
        entry = self._marker[2].get(key)
        if entry is None:
            raise DataError(f"{shards.shard_path(shard)}: its marker lacks {key}. Verify the shards")
        return entry


def _read_facts(shards: Shards, number: int, entry: SampleEntry) -> SampleFacts:
    """The sample's KEY.json. Raises SampleError if it is damaged, DataError if the shard is missing."""
    path = shards.shard_path(shards.member_range(number).shard)
    data = read_range(path, entry.facts.offset, entry.facts.size)
    if hashlib.sha256(data).hexdigest() != entry.facts.sha256:
        raise SampleError(entry.key, f"checksum of {entry.key}.json in {path.name} differs. Verify the shards")
    try:
        return decode_record(data, SampleFacts, f"{path.name}: {entry.key}.json")
    except NewerFormatError:
        raise
    except DataError as error:
        raise SampleError(entry.key, str(error)) from error


def _measure_frames(data: bytes, member: MemberEntry, key: str, *, full_range: bool) -> tuple[Measures, Fingerprint]:
    """Decode every kept frame once. Raises SampleError if one does not decode, or if the stored times don't fit."""
    time_T = _frame_times(member, key)
    levels = grey_levels(full_range)
    small, sharpness = [], []
    next_sharpness = -np.inf
    for frame, time in zip(decode_frames(data, range(len(time_T)), key), time_T.tolist(), strict=True):
        small.append(shrink(frame.y, levels))
        if time >= next_sharpness:
            next_sharpness = time + SHARPNESS_SECONDS
            sharpness.append(sharpness_of(frame.y, levels))
    grey_THW = np.stack(small)
    measures = measure(time_T, grey_THW, [value for value in sharpness if value is not None])
    return measures, fingerprint(time_T, grey_THW)


def _frame_times(member: MemberEntry, key: str) -> NDArray[np.float64]:
    """When the source shows each kept frame, in seconds."""
    phase = member.phase
    ticks = expand_series(phase.source_times)
    if len(ticks) != phase.frames or phase.frames < 1 or not (np.diff(ticks) > 0).all():
        raise SampleError(
            key, f"has {len(ticks)} times for {phase.frames} frames, or they do not ascend. Verify the shards"
        )
    return np.asarray(ticks * float(phase.source_time_base), dtype=np.float64)


def sample_batches(shards: Shards, most: int) -> Iterator[tuple[int, ...]]:
    """The sample numbers of a data set, shard by shard, at most `most` at a time."""
    start = 0
    for size in shards.shard_sizes:
        for first in range(start, start + size, most):
            yield tuple(range(first, min(first + most, start + size)))
        start += size
