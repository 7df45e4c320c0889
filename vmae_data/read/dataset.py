"""The Python interface to shards: a data set's samples, and its stream of decoded clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae_data.amounts import plural
from vmae_data.arguments import MAX_SEED, check_integer, is_integer
from vmae_data.decode import DecodedVideo, decode_some
from vmae_data.errors import DataError, MisuseError, SampleError
from vmae_data.format import INDEX, Label, PhaseFacts, Regular, SampleFacts, Series, ShardMarker, decode_record
from vmae_data.names import marker_name
from vmae_data.read.fetch import Fetcher
from vmae_data.read.order import epoch_batches
from vmae_data.read.stream import ClipFrames, Sampler
from vmae_data.read.table import LabelKind, SampleView, Table
from vmae_data.rng import Rng
from vmae_data.storage import read_bytes, read_range

__all__ = ["Clip", "LabelKind", "Sample", "SampleView", "Shards", "sample_seconds", "source_seconds"]


class Sample(NamedTuple):
    """A sample's facts and the verified bytes of its first phase."""

    facts: SampleFacts
    data: bytes

    def __repr__(self) -> str:
        return f"Sample({self.facts.key}, {len(self.data)} bytes)"


class Clip(NamedTuple):
    """One sample of a stream: the decoded planes of `frames.decode`, in ascending order."""

    view: SampleView
    label: Label | None
    frames: ClipFrames
    planes: DecodedVideo


class Shards(Table):
    """A data set, opened with `Shards.open(url)`: `index`, `classes`, `len()`, `sample(i)`, `stream(…)`."""

    def __repr__(self) -> str:
        videos, frames = len(np.unique(self.source_N)), int(self.frames_NP[:, 0].sum())
        counts = [plural(videos, "video"), plural(len(self), "sample"), plural(frames, "frame")]
        counts += [plural(len(self.classes), "class")] if self.classes else []
        return f"{type(self).__name__}({self.url}: {', '.join(counts)})"

    def sample(self, number: int) -> Sample:
        """A sample's facts and verified bytes. Raises SampleError if a checksum differs, MisuseError for no integer."""
        if not is_integer(number):
            raise MisuseError(f"number = {number!r}: expected the number of a sample, an integer")
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = self.member_range(number).shard
        path, key = self.shard_path(shard), self.key(number)
        entry = next((entry for entry in self._marker(shard).samples if entry.key == key), None)
        if entry is None or not entry.members:
            raise SampleError(key, f"is not in the marker of {path.name}. Verify the shards")
        parts = []
        for extent in (entry.facts, entry.members[0].extent):
            parts.append(read_range(path, extent.offset, extent.size))
            if hashlib.sha256(parts[-1]).hexdigest() != extent.sha256:
                raise SampleError(entry.key, f"its checksum in {path.name} differs. Verify the shards")
        return Sample(decode_record(parts[0], SampleFacts, entry.key), parts[1])

    def _marker(self, shard: int) -> ShardMarker:
        """Raises DataError if the marker is not the one in the index."""
        listing = self.index.shardlist[shard]
        path = self.folder / marker_name(int(listing.url.removeprefix("shard-").removesuffix(".tar")))
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != listing.marker_sha256:
            raise DataError(f"{path}: checksum differs from {INDEX}. Verify the shards")
        marker = decode_record(data, ShardMarker, str(path))
        if marker.tar != listing.url:
            raise DataError(f"{path}: is the marker of another shard. Verify the shards")
        return marker

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(number) for number in range(len(self)))

    def stream(
        self, sampler: Sampler, *, batch: int, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[Clip, ...]]:
        """The global batches of an epoch from step `start` on, decoded in this process.

        A training with this seed and batch has the same batches. Raises SampleError if a sample cannot be read,
        MisuseError for other values.
        """
        check_integer("batch", batch, 1, 1 << 20)
        for name, value in (("seed", seed), ("epoch", epoch), ("start", start)):
            check_integer(name, value, 0, MAX_SEED)
        if not callable(sampler):
            raise MisuseError(f"sampler = {sampler!r}: expected a function that chooses the frames of a sample")
        return self._stream(sampler, batch, seed, epoch, start)

    def _stream(self, sampler: Sampler, batch: int, seed: int, epoch: int, start: int) -> Iterator[tuple[Clip, ...]]:
        fetcher = Fetcher(self)
        try:
            for numbers in epoch_batches(self.shard_sizes, seed=seed, epoch=epoch, batch=batch)[start:]:
                views = [self.view(int(number)) for number in numbers]
                frames = [sampler(view, Rng(seed, epoch, self.sample_number(view.number))) for view in views]
                fetcher.prefetch([(view.number, one.phase) for view, one in zip(views, frames, strict=True)])
                yield tuple(self._clip(view, one, fetcher) for view, one in zip(views, frames, strict=True))
        finally:
            fetcher.close()

    def _clip(self, view: SampleView, frames: ClipFrames, fetcher: Fetcher) -> Clip:
        data = fetcher.fetch(view.number, frames.phase)
        planes = decode_some(data, frames.decode, view.key, self.frame_size(view.number))
        return Clip(view, self.label(view.number), frames, planes)


def sample_seconds(facts: SampleFacts) -> float:
    """The duration of a sample's part of its source."""
    start, stop = (facts.segment.start, facts.segment.stop) if facts.segment else (0, facts.source.frames)
    return source_seconds((facts.phases[0],), start, stop, float(facts.source.rate))


def source_seconds(phases: Sequence[PhaseFacts], start: int, stop: int, frame_rate: float) -> float:
    """The duration of source frames [start, stop): by the times of the kept frames in `phases`, else by the frame rate.

    A container's frame rate can be wrong, so times come first.
    """
    frames = [_ends(phase.source_frames) for phase in phases]
    times = [_ends(phase.source_times) for phase in phases]
    bases = [float(phase.source_time_base) for phase in phases]
    first, last = min(one for one, _ in frames), max(one for _, one in frames)
    began_at = min(one * base for (one, _), base in zip(times, bases, strict=True))
    ended_at = max(one * base for (_, one), base in zip(times, bases, strict=True))
    return max(0.0, ended_at - began_at) + (stop - start - (last - first)) / frame_rate


def _ends(series: Series) -> tuple[int, int]:
    if isinstance(series, Regular):
        return series.first, series.first + series.step * (series.count - 1)
    return series[0], series[-1]
