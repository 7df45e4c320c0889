"""Seed and step → sample numbers: the epochs of one data set, and the global batches of several data sets. Pure.

An epoch shuffles the shards, and the samples within each shard. That sequence is cut into C equal streams. Each stream is
shuffled within disjoint blocks. A batch takes B / C samples from each stream, stream after stream. A rank of a world size
that divides C therefore reads complete streams, and no batch depends on who reads it.

B samples of a batch, C streams, M batches of an epoch, S data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data import rng
from vmae_data.rng import Purpose

__all__ = [
    "WINDOW_SHARDS",
    "GlobalBatch",
    "MixtureOrder",
    "epoch_batches",
    "epoch_sequence",
    "rank_slice",
    "stream_count",
]

MAX_STREAMS = 64
WINDOW_SHARDS = 16


def stream_count(batch: int) -> int:
    """C, the greatest divisor of the global batch up to 64."""
    return max(c for c in range(1, min(batch, MAX_STREAMS) + 1) if batch % c == 0)


def epoch_batches(shard_sizes: Sequence[int], *, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """The global batches of an epoch, (M, B): sample numbers in the order of the index.

    The last N mod B samples of the shuffled sequence are not used in this epoch.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    total = int(sizes.sum())
    steps, streams = total // batch, stream_count(batch)
    if steps == 0:
        return np.empty((0, batch), dtype=np.int64)
    sequence = _shuffled_shards(sizes, seed, epoch)[: steps * batch]
    return _batches(sequence, streams, batch, _window(sizes), seed, epoch)


def epoch_sequence(shard_sizes: Sequence[int], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """All samples of an epoch of a data set in a mixture, where no batch boundary falls at a fixed position.

    The streams take turns. The few samples that the streams do not divide come last.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    streams = min(MAX_STREAMS, int(sizes.sum()))
    sequence = _shuffled_shards(sizes, seed, epoch)
    even = len(sequence) // streams * streams
    turns = _batches(sequence[:even], streams, streams, _window(sizes), seed, epoch)
    return np.concatenate([turns.reshape(-1), sequence[even:]])


def _shuffled_shards(sizes: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Sample numbers, shard after shard. Both the shards and the samples of each are shuffled.

    Samples too, because an epoch skips the last N mod B samples, and they must not be the same ones each time.
    """
    shards = rng.permutation(rng.bits(seed, epoch, 0, 0, 0, Purpose.SHARDS, np.arange(len(sizes))))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[shards]
    lengths = sizes[shards]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    numbers = np.repeat(starts, lengths) + within
    hashes = rng.bits(seed, epoch, 0, 0, 0, Purpose.WITHIN_SHARD, numbers)
    return numbers[np.lexsort((hashes, np.repeat(np.arange(len(sizes)), lengths)))]


def _window(sizes: NDArray[np.int64]) -> int:
    return WINDOW_SHARDS * -(-int(sizes.sum()) // len(sizes))


def _batches(
    sequence: NDArray[np.int64], streams: int, batch: int, window: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Cut a sequence into streams, shuffle each, and take a batch from all of them, stream after stream."""
    shuffled = _shuffle_blocks(sequence.reshape(streams, -1), window, seed, epoch)
    # (C, M · B / C) → (C, M, B / C)
    by_stream = shuffled.reshape(streams, -1, batch // streams)
    return np.ascontiguousarray(by_stream.transpose(1, 0, 2)).reshape(-1, batch)


def _shuffle_blocks(streams_CN: NDArray[np.int64], window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute each stream within blocks of `window` samples."""
    count, length = streams_CN.shape
    positions = np.arange(count * length, dtype=np.uint64)
    hashes = rng.bits(seed, epoch, 0, 0, 0, Purpose.WINDOW, positions).reshape(count, length)
    blocks = np.broadcast_to(np.arange(length) // window, (count, length))
    order = np.lexsort((hashes, blocks), axis=-1)
    return np.take_along_axis(streams_CN, order, axis=-1)


def rank_slice(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """A rank's contiguous share of a global batch: complete streams if the world size divides C.

    If the world size does not divide the batch, shares differ by at most one sample.
    """
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]


class GlobalBatch(NamedTuple):
    """Sample numbers of a global batch, and for each the epoch of its own data set."""

    sample_B: NDArray[np.int64]
    epoch_B: NDArray[np.int64]


class MixtureOrder:
    """The global batches of several data sets, numbered consecutively. Pure; counts are computed once.

    A position counts the samples of all global batches of the run. Its data set is a function of (seed, position). The k-th
    position of a data set takes the k-th sample of that set's endless sequence of epochs. So any batch can be computed alone.
    """

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        *,
        seed: int,
        batch: int,
        starts: Sequence[int] | None = None,
    ) -> None:
        """`starts`: the number of the first sample of each data set. [default: they follow each other]"""
        self._sizes, self._seed, self._batch = shard_sizes, seed, batch
        self._lengths = [sum(sizes) for sizes in shard_sizes]
        self._starts = np.cumsum([0, *self._lengths[:-1]]) if starts is None else starts
        self._bounds = _bounds(weights or self._lengths)
        self.steps_per_epoch = sum(self._lengths) // batch
        self._before = [np.zeros(len(shard_sizes), dtype=np.int64)]  # positions of each set before each epoch
        self._epoch = -1
        self._sequences: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step of the run, counted over all epochs."""
        epoch, row = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._choice_MB = self._choices(epoch)
            counts_MS = self._counts(self._choice_MB)
            self._first_MS = self._positions_before(epoch) + np.cumsum(counts_MS, axis=0) - counts_MS
            self._epoch = epoch
        choice_B = self._choice_MB[row]
        sample_B, epoch_B = np.empty(self._batch, dtype=np.int64), np.empty(self._batch, dtype=np.int64)
        for part, length in enumerate(self._lengths):
            positions = np.flatnonzero(choice_B == part)
            epochs, within = np.divmod(self._first_MS[row, part] + np.arange(len(positions)), length)
            epoch_B[positions] = epochs
            for one in np.unique(epochs):
                sequence = self._sequence(part, int(one))
                sample_B[positions[epochs == one]] = self._starts[part] + sequence[within[epochs == one]]
        return GlobalBatch(sample_B, epoch_B)

    def _choices(self, epoch: int) -> NDArray[np.int64]:
        """The data set of each position of an epoch, (M, B)."""
        count = self.steps_per_epoch * self._batch
        positions = np.arange(epoch * count, (epoch + 1) * count, dtype=np.uint64)
        hashes = rng.bits(self._seed, 0, 0, 0, 0, Purpose.MIXTURE, positions)
        return np.searchsorted(self._bounds, hashes, side="right").reshape(self.steps_per_epoch, self._batch)

    def _counts(self, choice_MB: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([(choice_MB == part).sum(axis=1) for part in range(len(self._lengths))], axis=1)

    def _positions_before(self, epoch: int) -> NDArray[np.int64]:
        while len(self._before) <= epoch:
            counts_MS = self._counts(self._choices(len(self._before) - 1))
            self._before.append(self._before[-1] + counts_MS.sum(axis=0))
        return self._before[epoch]

    def _sequence(self, part: int, epoch: int) -> NDArray[np.int64]:
        known = self._sequences.get(part)
        if known is None or known[0] != epoch:
            known = (epoch, epoch_sequence(self._sizes[part], seed=self._seed, epoch=epoch))
            self._sequences[part] = known
        return known[1]


def _bounds(weights: Sequence[float]) -> NDArray[np.uint64]:
    """The hash from which each set after the first is chosen. Computed in integers, so equal on every machine."""
    shares = [Fraction(weight) for weight in weights]
    totals = [sum(shares[: count + 1], Fraction(0)) for count in range(len(shares) - 1)]
    return np.asarray([int(total / sum(shares) * 2**64) for total in totals], dtype=np.uint64)
