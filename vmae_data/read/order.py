"""Row 8. Index, seed, epoch, position → sample numbers. Pure.

Shards are shuffled, and the samples of each; that sequence is cut into C equal canonical streams; each
stream is shuffled within disjoint blocks; a batch takes its B / C samples from each stream, stream
after stream. So ranks that divide C read whole streams, and no batch depends on who reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmae_data import rng
from vmae_data.rng import Purpose

__all__ = ["WINDOW_SHARDS", "epoch_batches", "epoch_sequence", "rank_slice", "stream_count"]

MAX_STREAMS = 64
WINDOW_SHARDS = 16


def stream_count(batch: int) -> int:
    """C, the greatest divisor of the global batch up to 64."""
    return max(c for c in range(1, min(batch, MAX_STREAMS) + 1) if batch % c == 0)


def epoch_batches(shard_sizes: Sequence[int], *, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """The global batches of an epoch, (steps, batch) sample numbers in the index's order.

    The last N mod B samples of the shuffled sequence sit the epoch out.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    total = int(sizes.sum())
    steps, streams = total // batch, stream_count(batch)
    if steps == 0:
        return np.empty((0, batch), dtype=np.int64)
    sequence = _shuffled_shards(sizes, seed, epoch)[: steps * batch]
    return _batches(sequence, streams, batch, _window(sizes), seed, epoch)


def epoch_sequence(shard_sizes: Sequence[int], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """All samples of an epoch of a set that is one of several, where batches have no borders in it.

    The streams take turns; the few samples that they don't divide into come last.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    streams = min(MAX_STREAMS, int(sizes.sum()))
    sequence = _shuffled_shards(sizes, seed, epoch)
    even = len(sequence) // streams * streams
    turns = _batches(sequence[:even], streams, streams, _window(sizes), seed, epoch)
    return np.concatenate([turns.reshape(-1), sequence[even:]])


def _window(sizes: NDArray[np.int64]) -> int:
    return WINDOW_SHARDS * -(-int(sizes.sum()) // len(sizes))


def _batches(
    sequence: NDArray[np.int64], streams: int, batch: int, window: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Cut a sequence into streams, shuffle each, and take a batch from all of them, stream after stream."""
    shuffled = _shuffle_blocks(sequence.reshape(streams, -1), window, seed, epoch)
    # (streams, steps · B / C) → (steps, streams, B / C)
    by_stream = shuffled.reshape(streams, -1, batch // streams)
    return np.ascontiguousarray(by_stream.transpose(1, 0, 2)).reshape(-1, batch)


def _shuffled_shards(sizes: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Sample numbers, shard after shard, both levels in shuffled order.

    Inside a shard too: the last N mod B samples sit out, and they must not be the same ones each epoch.
    """
    shards = rng.permutation(rng.bits(seed, epoch, 0, 0, 0, Purpose.SHARDS, np.arange(len(sizes))))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[shards]
    lengths = sizes[shards]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    numbers = np.repeat(starts, lengths) + within
    hashes = rng.bits(seed, epoch, 0, 0, 0, Purpose.WITHIN_SHARD, numbers)
    return numbers[np.lexsort((hashes, np.repeat(np.arange(len(sizes)), lengths)))]


def _shuffle_blocks(streams_CN: NDArray[np.int64], window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute each stream within blocks of `window` samples."""
    count, length = streams_CN.shape
    places = np.arange(count * length, dtype=np.uint64)
    hashes = rng.bits(seed, epoch, 0, 0, 0, Purpose.WINDOW, places).reshape(count, length)
    blocks = np.broadcast_to(np.arange(length) // window, (count, length))
    order = np.lexsort((hashes, blocks), axis=-1)
    return np.take_along_axis(streams_CN, order, axis=-1)


def rank_slice(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """A rank's share of a global batch, contiguous: whole streams where `world` divides C.

    Where `world` does not divide the batch, shares differ by at most one sample.
    """
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]
