"""Shards in a real S3 server, read by range: the requests, the bytes, and a bad network."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy
from vmae_data import Shards
from vmae_data.errors import ReplacedError, SampleError, StoreError
from vmae_data.format import INDEX
from vmae_data.names import tar_name
from vmae_data.read import load_index, prefetch
from vmae_data.read.fetch import Fetcher
from vmae_data.read.prefetch import GAP_BYTES, RANGE_BYTES, Prefetcher, RemoteMember, RemoteShard, merge_neighbours
from vmae_data.storage import RemotePath, set_options


def _tar_ranges(network: Proxy) -> list[str]:
    """The ranges of shards that were requested."""
    return [one.range or "" for one in network.seen().exchanges if one.path.split("?")[0].endswith(".tar")]


def _member(offset: int, size: int, shard: str = "x.tar") -> RemoteMember:
    return RemoteMember("k", RemoteShard(RemotePath("s3://b", shard), 0, ""), offset, size, b"")


members = st.builds(
    _member, st.integers(0, 4 * RANGE_BYTES), st.integers(1, 3 * RANGE_BYTES), st.sampled_from(["a.tar", "b.tar"])
)


@given(st.lists(members, max_size=12, unique=True))
def test_every_member_is_in_one_range_and_no_range_spans_a_large_gap(submitted: list[RemoteMember]) -> None:
    reads = merge_neighbours(submitted)
    assert sorted(map(str, (member for read in reads for member in read.members))) == sorted(map(str, submitted))
    for read in reads:
        end = read.offset
        for member in read.members:
            assert member.shard == read.shard
            assert member.offset - end <= GAP_BYTES
            end = max(end, member.offset + member.size)
        assert end == read.offset + read.size
        assert read.size <= max(RANGE_BYTES, *(member.size for member in read.members), 0)
    firsts = [min(submitted.index(member) for member in read.members) for read in reads]
    assert firsts == sorted(firsts)


def test_samples_of_a_bucket_are_those_of_the_folder(remote_shards: str, demo_shards: Path) -> None:
    here, there = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    assert there.digest == here.digest
    fetcher = Fetcher(there)
    order = random.Random(1).sample(range(len(there)), len(there))
    fetcher.prefetch([(n, 0) for n in order])
    assert [fetcher.fetch(n) for n in order] == [here.sample(n).data for n in order]
    assert fetcher.fetch(3) == here.sample(3).data  # not prefetched
    assert there.sample(2) == here.sample(2)
    fetcher.close()


def test_neighbours_are_one_request_and_the_bytes_read_are_counted(remote_shards: str, network: Proxy) -> None:
    shards = Shards.open(remote_shards)
    fetcher = Fetcher(shards)
    count = shards.shard_sizes[0]
    before = len(_tar_ranges(network))
    fetcher.prefetch([(n, 0) for n in range(count)])
    total = sum(len(fetcher.fetch(n)) for n in range(count))
    assert len(_tar_ranges(network)) - before == 1
    timings = fetcher.timings
    first, last = shards.member_range(0), shards.member_range(count - 1)
    assert timings.range_bytes == last.offset + last.size - first.offset >= total
    assert (timings.cache_hits, timings.cache_misses, timings.cache_bytes) == (0, 0, 0)
    assert timings.fetch_seconds > 0
    fetcher.close()


def test_prefetched_samples_arrive_while_nobody_waits(remote_shards: str, network: Proxy) -> None:
    shards = Shards.open(remote_shards)
    numbers = (0, len(shards) - 1)
    fetcher, before = Fetcher(shards), network.seen().bytes_down
    fetcher.prefetch([(n, 0) for n in numbers])
    size = sum(shards.member_range(n).size for n in numbers)
    _until(lambda: network.seen().bytes_down - before == size)
    network.change(Faults(faults=(Fault(kind=Kind.STATUS, status=500),)))  # every further request fails
    for number in numbers:
        fetcher.fetch(number)
    fetcher.close()


def test_prefetched_bytes_are_limited_except_for_a_range_that_a_caller_waits_for(
    remote_shards: str, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "GAP_BYTES", -1)  # a range for each member
    shards = Shards.open(remote_shards)
    prefetcher = Prefetcher(shards.member_range(0).size + shards.member_range(1).size)
    fetcher = Fetcher(shards, prefetcher=prefetcher)
    fetcher.prefetch([(n, 0) for n in range(6)])
    _until(lambda: len(_tar_ranges(network)) == 2)
    time.sleep(0.3)
    assert len(_tar_ranges(network)) == 2  # both have arrived, and nobody has collected them
    fetcher.fetch(5)  # out of order: not held back
    assert len(_tar_ranges(network)) == 3
    for n in range(5):
        fetcher.fetch(n)
    assert len(_tar_ranges(network)) == 6
    prefetcher.close()


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_wrong_bytes_are_read_again_and_lasting_ones_are_a_sample_error(
    remote_shards: str, network: Proxy, s3_bucket: S3Bucket, demo_shards: Path
) -> None:
    shards, here = Shards.open(remote_shards), Shards.open(str(demo_shards))
    fetcher = Fetcher(shards)
    network.change(Faults(faults=(Fault(kind=Kind.CORRUPT, most=2),), path_part=".tar"))
    assert fetcher.fetch(0) == here.sample(0).data
    assert network.seen().faults[Kind.CORRUPT] == 2
    network.change(Faults(faults=(Fault(kind=Kind.CORRUPT),), path_part=".tar"))
    before = len(_tar_ranges(network))
    with pytest.raises(SampleError, match="checksum differs") as caught:
        fetcher.fetch(1)
    assert caught.value.key == shards.key(1)
    assert len(_tar_ranges(network)) - before == 3
    fetcher.close()


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error(
    remote_shards: str, s3_bucket: S3Bucket, demo_shards: Path
) -> None:
    shards = Shards.open(remote_shards)
    fetcher = Fetcher(shards)
    fetcher.fetch(0)
    tar = (demo_shards / tar_name(0)).read_bytes()
    s3_bucket.store().put(f"set/{tar_name(0)}", bytes(len(tar)))
    with pytest.raises(ReplacedError, match=r"shard-000000\.tar: was replaced while it was read"):
        fetcher.fetch(1)
    s3_bucket.store().put(f"set/{tar_name(0)}", tar[:1000])
    with pytest.raises(ReplacedError, match="was replaced"):
        fetcher.fetch(2)
    fetcher.close()


def test_a_store_that_does_not_answer_stops_the_reader(remote_shards: str, network: Proxy) -> None:
    fetcher = Fetcher(Shards.open(remote_shards))
    network.change(Faults(down_seconds=600))
    set_options(["give_up=2"])
    with pytest.raises(StoreError, match=r"shard-000000\.tar: can't be read"):
        fetcher.fetch(0)
    fetcher.close()


def test_a_copy_of_the_index_is_used_without_a_network_and_a_newer_index_replaces_it(
    remote_shards: str, network: Proxy, s3_bucket: S3Bucket, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_index, "COPY_SECONDS", 0.3)
    first = Shards.open(remote_shards)
    assert first.note is None
    requests = len(network.seen().exchanges)
    assert Shards.open(remote_shards, first.digest).index == first.index
    assert len(network.seen().exchanges) == requests  # the checksum is known
    network.change(Faults(down_seconds=600))
    copied = Shards.open(remote_shards)
    assert copied.digest == first.digest
    assert copied.note is not None and "the store does not answer" in copied.note
    network.change(Faults())
    newer = (demo_shards / INDEX).read_bytes() + b"\n"
    s3_bucket.store().put(f"set/{INDEX}", newer)
    assert Shards.open(remote_shards).digest == hashlib.sha256(newer).hexdigest()
