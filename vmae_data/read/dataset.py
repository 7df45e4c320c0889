"""The door for people who read shards from Python: a data set's samples, and its stream of clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from vmae_data.decode import DecodedVideo, decode_some
from vmae_data.errors import DataError, SampleError
from vmae_data.format import INDEX, Label, SampleFacts, ShardMarker, decode_record, marker_name
from vmae_data.read.fetch import Fetcher, Member
from vmae_data.read.order import epoch_batches
from vmae_data.read.stream import ClipFrames, Sampler
from vmae_data.read.table import LabelKind, MemberPlace, SampleView, Table
from vmae_data.rng import Rng
from vmae_data.storage import read_bytes, read_range

__all__ = ["Clip", "LabelKind", "MemberPlace", "Sample", "SampleView", "Shards"]


class Sample(NamedTuple):
    """A sample's facts and the verified bytes of its first phase."""

    facts: SampleFacts
    data: bytes


class Clip(NamedTuple):
    """One sample of a stream, decoded: the planes of `frames.decode`, in ascending order."""

    view: SampleView
    label: Label | None
    frames: ClipFrames
    planes: DecodedVideo


class _Chosen(NamedTuple):
    view: SampleView
    frames: ClipFrames


class Shards(Table):
    """A data set, opened with `Shards.open(url)`: `index`, `classes`, `len()`, `sample(i)`, `stream(…)`."""

    def sample(self, number: int) -> Sample:
        """A sample's facts and verified bytes. Raises SampleError when a sum is wrong."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = self.place(number).shard
        path, key = self.shard_path(shard), self.key(number)
        entry = next((entry for entry in self._marker(shard).samples if entry.key == key), None)
        if entry is None or not entry.members:
            raise SampleError(key, f"is not in the marker of {path.name}; verify the shards")
        parts = []
        for extent in (entry.facts, entry.members[0].extent):
            parts.append(read_range(path, extent.offset, extent.size))
            if hashlib.sha256(parts[-1]).hexdigest() != extent.sha256:
                raise SampleError(entry.key, f"the sum of its bytes in {path.name} is wrong; verify the shards")
        return Sample(decode_record(parts[0], SampleFacts, entry.key), parts[1])

    def _marker(self, shard: int) -> ShardMarker:
        """Raises DataError where it is not the one that the index knows."""
        listing = self.index.shardlist[shard]
        place = self.folder / marker_name(int(listing.url.removeprefix("shard-").removesuffix(".tar")))
        data = read_bytes(place)
        if hashlib.sha256(data).hexdigest() != listing.marker_sha256:
            raise DataError(f"{place}: its sum is not the one in {INDEX}; verify the shards")
        marker = decode_record(data, ShardMarker, str(place))
        if marker.tar != listing.url:
            raise DataError(f"{place}: is the marker of another shard; verify the shards")
        return marker

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(number) for number in range(len(self)))

    def stream(
        self, sampler: Sampler, *, batch: int, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[Clip, ...]]:
        """The global batches of an epoch from step `start` on, decoded in this process.

        The same batches as a training's with that seed and batch. Raises SampleError at a sample that can't be read.
        """
        fetcher = Fetcher(self)
        try:
            for numbers in epoch_batches(self.shard_sizes, seed=seed, epoch=epoch, batch=batch)[start:]:
                chosen = [self._choose(int(number), sampler, seed, epoch) for number in numbers]
                fetcher.ask([Member(view.number, frames.phase) for view, frames in chosen])
                yield tuple(self._clip(view, frames, fetcher) for view, frames in chosen)
        finally:
            fetcher.close()

    def _choose(self, number: int, sampler: Sampler, seed: int, epoch: int) -> _Chosen:
        view = self.view(number)
        return _Chosen(view, sampler(view, Rng(seed, epoch, self.sample_number(number))))

    def _clip(self, view: SampleView, frames: ClipFrames, fetcher: Fetcher) -> Clip:
        data = fetcher.fetch(view.number, frames.phase)
        planes = decode_some(data, frames.decode, view.key, self.frame_size(view.number))
        return Clip(view, self.label(view.number), frames, planes)
