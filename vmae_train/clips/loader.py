"""Row 13. The stream, run in worker processes → Batch on the device, with its position in the data.

B clips of a batch, F decoded frames, V views of a clip, T frames of a view.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from vmae_data.errors import DataError, SampleError
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import ReadTimings
from vmae_data.read.mixture import Mixture
from vmae_data.read.prefetch import READ_AHEAD
from vmae_data.read.shared_buffers import BufferLayout, SharedBuffers
from vmae_data.read.stream import (
    ClipRequest,
    DataPart,
    DecodedChunk,
    DecodedClip,
    Decoder,
    Sampler,
    is_remote,
)
from vmae_data.recipes import byte_count
from vmae_train.clips.colour import Planes
from vmae_train.clips.rng import ClipRng

__all__ = ["MAX_ASPECT", "Batch", "ClipLoader", "LoaderSpec", "Unreadable", "padded_size"]

MAX_ASPECT = 2.4
UNREADABLE_SHARE, UNREADABLE_COUNT = 0.01, 8


class LoaderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How batches are brought; nothing here changes what is in them.

    `ahead`: batches. `read_ahead`: bytes that are on their way to each worker at once, where shards are remote.
    """

    workers: int = 1
    ahead: int = 3
    read_ahead: int | float | str = READ_AHEAD

    def __post_init__(self) -> None:
        if self.read_ahead_bytes < 1:
            raise ValueError(f"loader.read_ahead = {self.read_ahead}: must be 1 or more")
        if self.workers < 0 or self.ahead < 1:
            raise ValueError(
                f"loader.workers = {self.workers}, loader.ahead = {self.ahead}: expected at least 0 and at least 1"
            )

    @property
    def read_ahead_bytes(self) -> int:
        return byte_count(self.read_ahead, "loader.read_ahead")


class Batch(NamedTuple):
    """Clips on the device. `index_BVT` picks each view's frames from the decoded ones; None: all, in order.

    A sample that could not be read has weight 0 and black frames; so has an empty place.
    """

    planes: Planes
    index_BVT: Int64[Tensor, "B V T"] | None
    label_B: Int64[Tensor, " B"]
    weight_B: Float32[Tensor, " B"]
    may_flip_B: Bool[Tensor, " B"]
    valid: int  # samples of weight 1, known without asking the device
    rng: ClipRng
    request: Request
    target_BK: Float32[Tensor, "B K"] | None = None  # asked for, where labels are several classes or values


class Unreadable:
    """The ledger of samples that could not be read: counted by key, named at the end, bounded."""

    def __init__(self, num_samples: int) -> None:
        self.limit = max(UNREADABLE_COUNT, int(UNREADABLE_SHARE * num_samples))
        self.by_key: dict[str, str] = {}
        self._fresh: dict[str, str] = {}

    def add(self, error: SampleError) -> None:
        """Raises DataError when more distinct samples are lost than a set may lose."""
        self._fresh[error.key] = error.detail
        self.join({error.key: error.detail})

    def drain_new(self) -> dict[str, str]:
        """What was added here since this was asked last."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def join(self, found: Mapping[str, str]) -> None:
        """Count what was found elsewhere too. Raises DataError as `add` does."""
        self.by_key.update(found)
        if len(self.by_key) > self.limit:
            listed = "; ".join(f"{key}: {detail}" for key, detail in sorted(self.by_key.items()))
            raise DataError(
                f"{len(self.by_key)} samples can't be read, more than the {self.limit} that are let pass; "
                f"verify the shards ({listed})"
            )


def padded_size(data: Shards | Mixture) -> tuple[int, int]:
    """The height and width that every frame of a data set, or of several, fits into, up to an aspect of 2.4.

    From the index, never from a batch, so that a batch's tensors don't depend on its company.
    """
    heights, widths = zip(*(_padded_size(shards) for shards in Mixture.of(data).sets), strict=True)
    return max(heights), max(widths)


def _padded_size(shards: Shards) -> tuple[int, int]:
    longest = int(MAX_ASPECT * shards.index.short_side) // 2 * 2
    height, width = (int(n) for n in shards.size_N2.max(axis=0))
    return min(height, longest) // 2 * 2, min(width, longest) // 2 * 2


class ClipLoader:
    """Brings the requested batches in their order. Use as a context manager.

    Worker processes decode into shared slots; which worker decodes what changes nothing. `sampler` is one for
    all data sets or one for each. `targets`: batches bring rows of several classes or of values. `timings` totals what
    loading has cost. `remarks` is what a
    person should know, in the order in which it was found.
    """

    def __init__(
        self,
        data: Shards | Mixture,
        sampler: Sampler | Sequence[Sampler],
        requests: Iterable[Request],
        *,
        batch: int,
        frames: int,
        seed: int,
        spec: LoaderSpec,
        cache: CacheSpec | None = None,
        device: torch.device | str = "cpu",
        targets: bool = False,
    ) -> None:
        self.mix, self.spec, self.seed = Mixture.of(data), spec, seed
        self.device = torch.device(device)
        self.layout = BufferLayout(batch, frames, *padded_size(self.mix))
        self._targets = targets
        self.slots = SharedBuffers(spec.ahead + 1, self.layout)
        self.unreadable = Unreadable(len(self.mix))
        self.timings = ReadTimings()
        self.remarks: dict[str, None] = {}
        self._requests = iter(requests)
        arguments = (_parts(self.mix, sampler), self.slots, spec.read_ahead_bytes, cache)
        # What is far away is asked for while the piece of work before is decoded.
        self._pool = Pool(spec.workers, Decoder, arguments, depth=2 if is_remote(self.mix.urls) else 1)
        self._here = Decoder(*arguments) if spec.workers == 0 else None
        self._free = list(range(self.slots.count))
        self._coming: deque[_Coming] = deque()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)
        if self._here is not None:
            self._here.close()
        self.slots.close()

    def __iter__(self) -> Iterator[Batch]:
        self._ask()
        while self._coming:
            started_at = time.perf_counter()
            head = self._coming[0]
            while head.missing:
                self._take(next_finished((self._pool,)))
            self._coming.popleft()
            there_at = time.perf_counter()
            batch = self._assemble(head)
            transfer_seconds = time.perf_counter() - there_at
            self._free.append(head.slot)
            self._ask()
            wait_seconds = time.perf_counter() - started_at
            self.timings = self.timings.plus(ReadTimings(wait_seconds, transfer_seconds))
            yield batch

    def _ask(self) -> None:
        """Hand out work while there are free slots."""
        while self._free and (request := next(self._requests, None)) is not None:
            coming = _Coming(request, self._free.pop())
            self._coming.append(coming)
            wanted = [
                ClipRequest(place, sample, self.seed, epoch)
                for place, (sample, epoch) in enumerate(zip(request.samples, request.epochs, strict=True))
                if sample != PADDING
            ]
            # Several pieces a batch, so that the first batch comes from all workers at once.
            share = max(1, -(-len(wanted) // max(1, self.spec.workers)))
            for start in range(0, len(wanted), share):
                self._decode(coming, wanted[start : start + share])

    def _decode(self, coming: _Coming, wanted: Sequence[ClipRequest]) -> None:
        coming.missing += 1
        if self._here is not None:
            self._take(Finished(coming.slot, self._here.fill(coming.slot, wanted), None))
        else:
            self._pool.submit(coming.slot, coming.slot, wanted)

    def _take(self, finished: Finished | None) -> None:
        if finished is None:
            raise DataError("no decode worker is left; start again")
        if isinstance(finished.error, WorkerDied):
            raise DataError(f"decoding stopped: {finished.error}; start the same command again")
        if finished.error is not None:
            raise finished.error
        coming = next(coming for coming in self._coming if coming.slot == finished.tag)
        coming.missing -= 1
        piece: DecodedChunk = finished.result
        coming.places += piece.clips
        self.timings = self.timings.plus(piece.timings)
        self.remarks.update(dict.fromkeys(piece.notes))
        for clip in piece.clips:
            if clip.error is not None:
                self.unreadable.add(SampleError(self.mix.key(clip.sample), clip.error.detail))

    def _assemble(self, coming: _Coming) -> Batch:
        samples = np.asarray(coming.request.samples)
        size_B2 = np.full((len(samples), 2), (self.layout.height, self.layout.width), dtype=np.int64)
        weight_B = np.zeros(len(samples), dtype=np.float32)
        for filled in coming.places:
            size_B2[filled.position] = filled.height, filled.width
            weight_B[filled.position] = filled.error is None
        real = samples != PADDING
        known = np.where(real, samples, 0)
        for place in np.flatnonzero(~real):
            for plane in self.slots.planes(coming.slot):
                plane[place] = 0
        numbers = np.asarray([self.mix.sample_number(int(n)) for n in known], dtype=np.uint64)
        # One copy to the device: the slot is free again at once, and nothing keeps a view of it.
        flat = torch.from_numpy(self.slots.flat(coming.slot)).to(self.device, copy=True)
        y, u, v = self.layout.split(flat)

        def put(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

        return Batch(
            planes=Planes(
                y_BTHW=y,
                u_BTHW=u,
                v_BTHW=v,
                size_B2=put(size_B2),
                matrix_B=put(self.mix.is_bt709_N[known].astype(np.int64)),
                full_range_B=put(self.mix.full_range_N[known]),
            ),
            index_BVT=self._index(coming.places, put),
            label_B=put(np.where(real, self.mix.label_N[known], -1)),
            weight_B=put(weight_B),
            may_flip_B=put(self.mix.may_flip_N[known]),
            valid=int(weight_B.sum()),
            rng=ClipRng.on(
                self.device, seed=self.seed, epoch=np.asarray(coming.request.epochs, dtype=np.uint64), sample=numbers
            ),
            request=coming.request,
            target_BK=put(self.mix.targets(known)) if self._targets else None,
        )

    def _index(self, places: Sequence[DecodedClip], put: Any) -> Tensor | None:
        """None where every clip is its decoded frames in order, which is the common case in training."""
        plain = np.arange(self.layout.frames)[None]
        rows = [(p.position, p.index_VT) for p in places if p.index_VT is not None]
        if all(np.array_equal(index, plain) for _, index in rows):
            return None
        index_BVT = np.zeros((self.layout.clips, *rows[0][1].shape), dtype=np.int64)
        for place, index in rows:
            index_BVT[place] = index
        return torch.as_tensor(put(index_BVT))


def _parts(mix: Mixture, sampler: Sampler | Sequence[Sampler]) -> tuple[DataPart, ...]:
    samplers = [sampler] * len(mix.sets) if callable(sampler) else sampler
    return tuple(
        DataPart(shards.url, shards.digest, first, one)
        for shards, first, one in zip(mix.sets, mix.starts, samplers, strict=True)
    )


class _Coming:
    """A batch on its way."""

    def __init__(self, request: Request, slot: int) -> None:
        self.request, self.slot = request, slot
        self.missing = 0
        self.places: list[DecodedClip] = []
