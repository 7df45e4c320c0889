"""Shards in a real S3 server, read by range: what is asked for, what comes back, what a bad network does."""

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
from vmae_data.format import INDEX, tar_name
from vmae_data.read import load_index, prefetch
from vmae_data.read.fetch import Fetcher, Member
from vmae_data.read.prefetch import GAP_BYTES, SPAN_BYTES, Prefetcher, Wanted, merge_neighbours
from vmae_data.storage import RemotePath


def _tars(network: Proxy) -> list[str]:
    """The ranges of shards that were asked for."""
    return [one.range or "" for one in network.seen().exchanges if one.path.split("?")[0].endswith(".tar")]


def _wanted(offset: int, size: int, shard: str = "x.tar") -> Wanted:
    return Wanted("k", RemotePath("s3://b", shard), offset, size, b"")


members = st.builds(
    _wanted, st.integers(0, 4 * SPAN_BYTES), st.integers(1, 3 * SPAN_BYTES), st.sampled_from(["a.tar", "b.tar"])
)


@given(st.lists(members, max_size=12, unique=True))
def test_every_member_lies_in_one_range_and_no_range_reads_far_across_a_gap(wanted: list[Wanted]) -> None:
    spans = merge_neighbours(wanted)
    assert sorted(map(str, (member for span in spans for member in span.wanted))) == sorted(map(str, wanted))
    for span in spans:
        end = span.offset
        for member in span.wanted:
            assert member.shard == span.shard
            assert member.offset - end <= GAP_BYTES
            end = max(end, member.offset + member.size)
        assert end == span.offset + span.size
        assert span.size <= max(SPAN_BYTES, *(member.size for member in span.wanted), 0)
    firsts = [min(wanted.index(member) for member in span.wanted) for span in spans]
    assert firsts == sorted(firsts)


def test_samples_of_a_bucket_are_those_of_the_folder(remote_shards: str, demo_shards: Path) -> None:
    here, there = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    assert there.digest == here.digest
    fetcher = Fetcher(there)
    order = random.Random(1).sample(range(len(there)), len(there))
    fetcher.ask([Member(n) for n in order])
    assert [fetcher.fetch(n) for n in order] == [here.sample(n).data for n in order]
    assert fetcher.fetch(3) == here.sample(3).data  # not asked for before
    assert there.sample(2) == here.sample(2)
    fetcher.close()


def test_neighbours_are_one_request_and_what_was_read_is_counted(remote_shards: str, network: Proxy) -> None:
    shards = Shards.open(remote_shards)
    fetcher = Fetcher(shards)
    count = shards.shard_sizes[0]
    before = len(_tars(network))
    fetcher.ask([Member(n) for n in range(count)])
    total = sum(len(fetcher.fetch(n)) for n in range(count))
    assert len(_tars(network)) - before == 1
    took = fetcher.take_took()
    first, last = shards.place(0), shards.place(count - 1)
    assert took.range_bytes == last.offset + last.size - first.offset >= total
    assert (took.hits, took.misses, took.cache_bytes) == (0, 0, 0)
    assert took.waiting > 0
    assert fetcher.take_took().range_bytes == 0
    fetcher.close()


def test_what_was_asked_for_comes_while_nobody_waits(remote_shards: str, network: Proxy) -> None:
    shards = Shards.open(remote_shards)
    network.change(Faults(latency_seconds=0.3))
    fetcher = Fetcher(shards)
    fetcher.ask([Member(0), Member(len(shards) - 1)])
    time.sleep(1.5)  # a piece of work
    fetcher.fetch(0)
    fetcher.fetch(len(shards) - 1)
    assert fetcher.take_took().waiting < 0.2
    fetcher.close()


def test_no_more_bytes_are_ahead_than_allowed_but_what_is_waited_for(
    remote_shards: str, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "GAP_BYTES", -1)  # each a range of its own
    shards = Shards.open(remote_shards)
    reader = Prefetcher(most=shards.place(0).size + shards.place(1).size)
    fetcher = Fetcher(shards, ahead=reader)
    fetcher.ask([Member(n) for n in range(6)])
    _until(lambda: len(_tars(network)) == 2)
    time.sleep(0.3)
    assert len(_tars(network)) == 2  # both are there, and nobody has taken them
    fetcher.fetch(5)  # out of order: not held back
    assert len(_tars(network)) == 3
    for n in range(5):
        fetcher.fetch(n)
    assert len(_tars(network)) == 6
    reader.close()


def _until(what: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    assert what()


def test_wrong_bytes_are_read_again_and_a_wrong_shard_is_a_sample_error(
    remote_shards: str, network: Proxy, s3_bucket: S3Bucket, demo_shards: Path
) -> None:
    shards, here = Shards.open(remote_shards), Shards.open(str(demo_shards))
    fetcher = Fetcher(shards)
    network.change(Faults(faults=(Fault(kind=Kind.CORRUPT, most=2),), path_part=".tar"))
    assert fetcher.fetch(0) == here.sample(0).data
    assert network.seen().faults[Kind.CORRUPT] == 2
    network.change(Faults(faults=(Fault(kind=Kind.CORRUPT),), path_part=".tar"))
    before = len(_tars(network))
    with pytest.raises(SampleError, match="the sum is wrong") as caught:
        fetcher.fetch(1)
    assert caught.value.key == shards.key(1)
    assert len(_tars(network)) - before == 3
    fetcher.close()


def test_a_shard_that_is_replaced_while_it_is_read_is_said_in_one_line(
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
    network.change(Faults(down_seconds=60))
    with pytest.raises(StoreError, match=r"shard-000000\.tar: can't be read"):
        fetcher.fetch(0)
    fetcher.close()


def test_an_index_has_a_copy_for_days_without_network_and_a_newer_one_is_taken(
    remote_shards: str, network: Proxy, s3_bucket: S3Bucket, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_index, "COPY_SECONDS", 0.3)
    first = Shards.open(remote_shards)
    assert first.remark is None
    asked = len(network.seen().exchanges)
    assert Shards.open(remote_shards, first.digest).index == first.index
    assert len(network.seen().exchanges) == asked  # its sum is known: nobody was asked
    network.change(Faults(down_seconds=60))
    copied = Shards.open(remote_shards)
    assert copied.digest == first.digest
    assert copied.remark is not None and "its store does not answer" in copied.remark
    network.change(Faults())
    newer = (demo_shards / INDEX).read_bytes() + b"\n"
    s3_bucket.store().put(f"set/{INDEX}", newer)
    assert Shards.open(remote_shards).digest == hashlib.sha256(newer).hexdigest()
