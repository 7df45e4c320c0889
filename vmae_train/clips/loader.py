"""Requests for batches → batches on the device, decoded by worker processes into shared buffers.

B clips of a batch, F decoded frames, V views of a clip, T frames of a view.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError, SampleError
from vmae_data.motion import cells_of
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import ReadTimings
from vmae_data.read.mixture import Mixture
from vmae_data.read.prefetch import READ_AHEAD
from vmae_data.read.shared_buffers import BufferLayout, SharedBuffers
from vmae_data.read.stream import ClipRequest, DataPart, DecodedClip, Decoder, Sampler, is_remote
from vmae_data.recipes import byte_count, check_bounds
from vmae_train.clips.colour import Planes
from vmae_train.clips.rng import ClipRng

__all__ = ["MAX_ASPECT", "Batch", "ClipLoader", "LoaderSpec", "UnreadableSamples", "padded_size"]

MAX_ASPECT = 2.4
UNREADABLE_SHARE, UNREADABLE_COUNT = 0.01, 8


class LoaderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How batches are loaded; nothing here changes their content.

    `ahead`: batches that are loaded in advance. `read_ahead`: bytes that each worker prefetches from remote shards.
    """

    workers: int = 1  # decode processes of each training process
    ahead: int = 3  # batches loaded in advance
    read_ahead: int | float | str = READ_AHEAD  # bytes, or text such as "64MiB"

    def __post_init__(self) -> None:
        if self.read_ahead_bytes < 1:
            raise ValueError(f"loader.read_ahead = {self.read_ahead}: expected 1 or more")
        check_bounds(self, workers=(0, 1024), ahead=(1, 1024))

    @property
    def read_ahead_bytes(self) -> int:
        return byte_count(self.read_ahead, "loader.read_ahead")


class Batch(NamedTuple):
    """Clips on the device. `index_BVT` picks each view's frames from the decoded ones; None: all, in order.

    An unreadable sample has weight 0 and black frames, and so has a padding position.
    """

    planes: Planes
    index_BVT: Int64[Tensor, "B V T"] | None
    label_B: Int64[Tensor, " B"]
    weight_B: Float32[Tensor, " B"]
    may_flip_B: Bool[Tensor, " B"]
    valid: int  # samples of weight 1, known without waiting for the device
    rng: ClipRng
    request: Request
    target_BK: Float32[Tensor, "B K"] | None = None  # only if `targets` was requested
    motion_BFHW: Int32[Tensor, "B F H W"] | None = (
        None  # of cells of the decoded frames, only if `motion` was requested
    )


class UnreadableSamples:
    """Counts the samples that could not be read, by key. Their number is limited."""

    def __init__(self, num_samples: int) -> None:
        self.limit = max(UNREADABLE_COUNT, int(UNREADABLE_SHARE * num_samples))
        self.by_key: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def add(self, error: SampleError) -> None:
        """Raises DataError if more distinct samples are unreadable than the limit."""
        self._new[error.key] = error.detail
        self.merge({error.key: error.detail})

    def drain_new(self) -> dict[str, str]:
        """The samples that this process added since the last call."""
        new, self._new = self._new, {}
        return new

    def merge(self, others: Mapping[str, str]) -> None:
        """Count the samples of other processes too. Raises DataError as `add` does."""
        self.by_key.update(others)
        if len(self.by_key) > self.limit:
            listed = "; ".join(f"{key}: {detail}" for key, detail in sorted(self.by_key.items()))
            raise DataError(
                f"{len(self.by_key)} samples can't be read, which exceeds the limit of {self.limit}. "
                f"Verify the shards ({listed})"
            )


def padded_size(data: Shards | Mixture) -> tuple[int, int]:
    """The height and width that fit every frame of one or more data sets, up to an aspect ratio of 2.4.

    From the index, never from a batch, so that the tensors of a sample do not depend on the rest of its batch.
    """
    sizes = [
        [min(int(side), int(MAX_ASPECT * shards.index.short_side)) // 2 * 2 for side in shards.size_N2.max(axis=0)]
        for shards in Mixture.of(data).sets
    ]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    return height, width


class _Copies:
    """Copies of page-locked buffers to a GPU, on a stream of their own: they overlap with the kernels of a step.

    A buffer is in use until the event behind its copy has come. `cuda` is torch.cuda, or has its functions.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._running: deque[tuple[Any, int]] = deque()  # each event with its buffer, in the order of the copies
        self._locked: NDArray[np.uint8] | None = None

    @classmethod
    def on(cls, device: torch.device) -> _Copies | None:
        """None for a device without such copies."""
        return cls(device) if device.type == "cuda" else None

    def lock(self, memory: NDArray[np.uint8]) -> bool:
        """Page-lock the memory, which workers share. False if CUDA refuses it."""
        if int(self._cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)) != 0:
            with suppress(RuntimeError):
                torch.ones(1, device=self._device)  # takes the error, which CUDA else reports of a later kernel
            return False
        self._locked = memory
        return True

    def start(self, flat: Tensor, buffer: int) -> Tensor:
        """Start the copy of a buffer. What the current stream is given from now on waits for it, the host does not."""
        with self._cuda.stream(self._stream):
            copied = self._upload(flat)
            event = self._cuda.Event()
            event.record(self._stream)
        self._running.append((event, buffer))
        current = self._cuda.current_stream(self._device)
        current.wait_event(event)
        # The memory belongs to the stream of the copies. Without this, a batch that the host has dropped would be
        # overwritten by the next copy while kernels of the current stream still read it.
        copied.record_stream(current)
        return copied

    def _upload(self, flat: Tensor) -> Tensor:
        return flat.to(self._device, copy=True, non_blocking=True)

    def finished(self, *, wait: bool) -> list[int]:
        """The buffers whose copies have ended since the last call. `wait` for one, if there is any."""
        if wait and self._running:
            self._running[0][0].synchronize()
        buffers = []
        while self._running and self._running[0][0].query():
            buffers.append(self._running.popleft()[1])
        return buffers

    def close(self) -> None:
        """Wait for the copies and unlock the memory."""
        try:
            self._stream.synchronize()
        finally:
            self._running.clear()
            if self._locked is not None:
                self._cuda.cudart().cudaHostUnregister(self._locked.ctypes.data)
                self._locked = None


class ClipLoader:
    """Loads the requested batches in their order. Use as a context manager.

    Worker processes decode into shared buffers, one for each pending batch; the assignment to workers changes nothing.
    `sampler` is one for all data sets, or one for each. `targets`: batches have rows of several classes or of values.
    `motion`: batches have the lengths of the motion vectors, as `motion_of_frames` in vmae_data/motion.py makes them.
    `timings` adds up what loading costs. `notes` are messages for the user, in order.
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
        motion: bool = False,
    ) -> None:
        self.mixture, self.spec, self.seed = Mixture.of(data), spec, seed
        self.device = torch.device(device)
        self.layout = BufferLayout(batch, frames, *padded_size(self.mixture))
        self._targets, self._motion = targets, motion
        self._buffers = SharedBuffers(spec.ahead + 1, self.layout)
        self._copies = _Copies.on(self.device)
        self.unreadable = UnreadableSamples(len(self.mixture))
        self.timings = ReadTimings()
        self.notes: dict[str, None] = {}
        if self._copies is not None and not self._copies.lock(self._buffers.whole()):
            self._copies = None
            self.notes["the batch buffers can't be page-locked, so each copy to the GPU waits"] = None
        self._requests = iter(requests)
        arguments = (_parts(self.mixture, sampler), self._buffers, spec.read_ahead_bytes, cache, motion)
        # A worker prefetches the remote data of a second task while it decodes the first.
        self._pool = Pool(spec.workers, Decoder, arguments, depth=2 if is_remote(self.mixture.urls) else 1)
        self._decoder = Decoder(*arguments) if spec.workers == 0 else None
        self._free = list(range(self._buffers.count))
        self._pending: deque[tuple[Request, int]] = deque()  # each with its buffer
        self._unfinished = [0] * self._buffers.count  # tasks of each buffer
        self._clips: list[list[DecodedClip]] = [[] for _ in self._free]  # of each buffer

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:  # in reverse order, and each even if another fails
            closing.callback(self._buffers.close)
            if self._copies is not None:
                closing.callback(self._copies.close)
            if self._decoder is not None:
                closing.callback(self._decoder.close)
            self._pool.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Batch]:
        self._submit()
        while self._pending:
            started_at = time.perf_counter()
            request, buffer = self._pending[0]
            while self._unfinished[buffer]:
                self._collect(next_finished((self._pool,)))
            self._pending.popleft()
            decoded_at = time.perf_counter()
            batch = self._assemble(request, buffer)
            transfer_seconds = time.perf_counter() - decoded_at
            if self._copies is None:
                self._free.append(buffer)
            self._submit()
            wait_seconds = time.perf_counter() - started_at
            self.timings = self.timings.plus(ReadTimings(wait_seconds, transfer_seconds))
            yield batch

    def _submit(self) -> None:
        """Submit the tasks of further batches while buffers are free. Waits for a copy only if all buffers are copied."""
        if self._copies is not None:
            self._free += self._copies.finished(wait=not self._pending and not self._free)
        while self._free and (request := next(self._requests, None)) is not None:
            buffer = self._free.pop()
            self._pending.append((request, buffer))
            self._clips[buffer] = []
            clips = [
                ClipRequest(position, sample, self.seed, epoch)
                for position, (sample, epoch) in enumerate(zip(request.samples, request.epochs, strict=True))
                if sample != PADDING
            ]
            # Several tasks per batch, so that all workers decode the first batch together.
            size = max(1, -(-len(clips) // max(1, self.spec.workers)))
            for start in range(0, len(clips), size):
                task = clips[start : start + size]
                self._unfinished[buffer] += 1
                if self._decoder is not None:
                    self._collect(Finished(buffer, self._decoder.fill(buffer, task), None))
                else:
                    self._pool.submit(buffer, buffer, task)

    def _collect(self, finished: Finished | None) -> None:
        if finished is None:
            raise DataError("no decode worker is left. Start the same command again")
        if isinstance(finished.error, WorkerDied):
            raise DataError(f"decoding stopped: {finished.error}. Start the same command again")
        if finished.error is not None:
            raise finished.error
        buffer, chunk = finished.tag, finished.result
        self._unfinished[buffer] -= 1
        self._clips[buffer] += chunk.clips
        self.timings = self.timings.plus(chunk.timings)
        self.notes.update(dict.fromkeys(chunk.notes))
        for clip in chunk.clips:
            if clip.error is not None:
                self.unreadable.add(SampleError(self.mixture.key(clip.sample), clip.error.detail))

    def _assemble(self, request: Request, buffer: int) -> Batch:
        mixture, samples_B = self.mixture, np.asarray(request.samples)
        size_B2 = np.full((len(samples_B), 2), (self.layout.height, self.layout.width), dtype=np.int64)
        weight_B = np.zeros(len(samples_B), dtype=np.float32)
        for clip in self._clips[buffer]:
            size_B2[clip.position] = clip.height, clip.width
            weight_B[clip.position] = clip.error is None
        is_sample_B = samples_B != PADDING
        known_B = np.where(is_sample_B, samples_B, 0)
        for plane in self._buffers.planes(buffer):
            plane[np.flatnonzero(~is_sample_B)] = 0
        numbers_B = np.asarray([mixture.sample_number(int(n)) for n in known_B], dtype=np.uint64)
        epochs_B = np.asarray(request.epochs, dtype=np.uint64)
        # One copy to the device: nothing keeps a view of the buffer.
        flat = torch.from_numpy(self._buffers.flat(buffer))
        flat = flat.to(self.device, copy=True) if self._copies is None else self._copies.start(flat, buffer)
        y, u, v = self.layout.split(flat)
        return Batch(
            planes=Planes(
                y_BTHW=y,
                u_BTHW=u,
                v_BTHW=v,
                size_B2=self._to_device(size_B2),
                matrix_B=self._to_device(mixture.is_bt709_N[known_B].astype(np.int64)),
                full_range_B=self._to_device(mixture.full_range_N[known_B]),
            ),
            index_BVT=self._view_index(self._clips[buffer]),
            label_B=self._to_device(np.where(is_sample_B, mixture.label_N[known_B], -1)),
            weight_B=self._to_device(weight_B),
            may_flip_B=self._to_device(mixture.may_flip_N[known_B]),
            valid=int(weight_B.sum()),
            rng=ClipRng.on(self.device, seed=self.seed, epoch=epochs_B, sample=numbers_B),
            request=request,
            target_BK=self._to_device(mixture.targets(known_B)) if self._targets else None,
            motion_BFHW=self._motion_of(self._clips[buffer]) if self._motion else None,
        )

    def _to_device(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # torch frees this memory after the copy; from other memory it would wait
        return tensor.to(self.device, non_blocking=True)

    def _motion_of(self, clips: Sequence[DecodedClip]) -> Tensor:
        """Zero where nothing was decoded."""
        cells = cells_of(self.layout.height, self.layout.width)
        motion_BFHW = np.zeros((self.layout.clips, self.layout.frames, *cells), np.int32)
        for clip in clips:
            if clip.motion_FHW is not None:
                frames, rows, columns = clip.motion_FHW.shape
                motion_BFHW[clip.position, :frames, :rows, :columns] = clip.motion_FHW
        return self._to_device(motion_BFHW)

    def _view_index(self, clips: Sequence[DecodedClip]) -> Tensor | None:
        """None if every clip is its decoded frames in order, the common case in training."""
        in_order = np.arange(self.layout.frames)[None]
        rows = [(clip.position, clip.index_VT) for clip in clips if clip.index_VT is not None]
        if all(np.array_equal(index_VT, in_order) for _, index_VT in rows):
            return None
        index_BVT = np.zeros((self.layout.clips, *rows[0][1].shape), dtype=np.int64)
        for position, index_VT in rows:
            index_BVT[position] = index_VT
        return self._to_device(index_BVT)


def _parts(mixture: Mixture, sampler: Sampler | Sequence[Sampler]) -> tuple[DataPart, ...]:
    samplers = [sampler] * len(mixture.sets) if callable(sampler) else sampler
    return tuple(
        DataPart(shards.url, shards.digest, first, one)
        for shards, first, one in zip(mixture.sets, mixture.starts, samplers, strict=True)
    )
