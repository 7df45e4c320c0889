from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae_data.read.order import WINDOW_SHARDS, epoch_batches, rank_slice, stream_count

sizes_and_batch = st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 96))


@given(sizes_and_batch)
@settings(max_examples=200)
def test_an_epoch_has_each_sample_at_most_once_and_no_partial_batch(
    case: tuple[list[int], int],
) -> None:
    sizes, batch = case
    order = epoch_batches(sizes, seed=1, epoch=0, batch=batch)
    total = sum(sizes)
    assert order.shape == (total // batch, batch)
    assert len(np.unique(order)) == order.size
    if order.size:
        assert order.min() >= 0
        assert order.max() < total


@pytest.mark.parametrize(
    ("batch", "streams"), [(8, 8), (64, 64), (1024, 64), (192, 64), (96, 48), (7, 7), (67, 1), (134, 2)]
)
def test_the_number_of_streams_is_the_greatest_divisor_up_to_64(batch: int, streams: int) -> None:
    assert stream_count(batch) == streams


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first = epoch_batches([50] * 20, seed=1, epoch=3, batch=32)
    assert np.array_equal(first, epoch_batches([50] * 20, seed=1, epoch=3, batch=32))
    assert not np.array_equal(first, epoch_batches([50] * 20, seed=1, epoch=4, batch=32))
    assert not np.array_equal(first, epoch_batches([50] * 20, seed=2, epoch=3, batch=32))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_read_complete_streams_if_the_world_size_divides_their_number(world_size: int) -> None:
    shards, size, batch = 256, 10, 64
    order = epoch_batches([size] * shards, seed=0, epoch=0, batch=batch)
    owners: dict[int, set[int]] = {}
    for batch_samples in order:
        shares = [rank_slice(batch_samples, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), batch_samples)
        for rank, share in enumerate(shares):
            for shard in share // size:
                owners.setdefault(int(shard), set()).add(rank)
    shared = sum(len(ranks) > 1 for ranks in owners.values())
    assert shared <= stream_count(batch)  # at most one per boundary between streams


@pytest.mark.parametrize("world_size", [2, 4, 8, 32])
def test_a_rank_that_reads_complete_streams_reads_its_share_of_the_shards_and_at_most_one_more(world_size: int) -> None:
    shards, size, batch = 250, 10, 64
    for epoch in range(3):
        order = epoch_batches([size] * shards, seed=0, epoch=epoch, batch=batch)
        for rank in range(world_size):
            seen = {int(n) // size for batch_samples in order for n in rank_slice(batch_samples, rank, world_size)}
            assert len(seen) <= -(-shards // world_size) + 1


def test_a_stream_is_shuffled_within_its_window_only() -> None:
    size, shards, batch = 5, 128, 2  # two streams of 320 samples, windows of 80
    order = epoch_batches([size] * shards, seed=3, epoch=0, batch=batch)
    for stream in order.T:
        for start in range(0, len(stream), WINDOW_SHARDS * size):
            window = stream[start : start + WINDOW_SHARDS * size]
            assert len(np.unique(window // size)) <= WINDOW_SHARDS + 1
            assert not np.array_equal(np.sort(window), window)


def test_over_many_epochs_every_sample_is_used_equally_often() -> None:
    counts = np.zeros(103, dtype=int)
    for epoch in range(1000):
        counts += np.bincount(epoch_batches([50, 53], seed=0, epoch=epoch, batch=20).ravel(), minlength=103)
    # Each epoch skips 3 of 103 samples: about 29 of 1000 epochs per sample, and five standard deviations are 27.
    assert abs(counts - 1000 * 100 / 103).max() < 30


def test_a_data_set_of_one_shard_skips_different_samples_each_epoch() -> None:
    seen = {int(n) for epoch in range(30) for n in epoch_batches([30], seed=0, epoch=epoch, batch=16).ravel()}
    assert seen == set(range(30))
