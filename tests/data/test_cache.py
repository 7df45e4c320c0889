"""The node's cache over a real S3 server: filled behind the reader's back, by several processes, through kills and full disks."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import Proxy
from vmae_data import Shards
from vmae_data.processes import Pool, next_finished
from vmae_data.read import cache_directory
from vmae_data.read.cache import CacheSpec, RemoteShard, ShardCache
from vmae_data.read.cache_directory import CacheDirectory
from vmae_data.read.fetch import Fetcher
from vmae_data.recipes import byte_count
from vmae_data.storage import RemotePath

LIMIT = "1GB"


def _whole(network: Proxy) -> list[str]:
    """The shards that were asked for from their beginning: once for each download."""
    asked = (
        one for one in network.seen().exchanges if one.method == "GET" and (one.range or "").startswith("bytes=0-")
    )
    return sorted(one.path.rpartition("/")[2].partition("?")[0] for one in asked if ".tar" in one.path)


def _until(what: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    assert what()


def _shards(table: Shards) -> list[RemoteShard]:
    found = []
    for number, listed in enumerate(table.index.shardlist):
        place = table.shard_path(number)
        assert isinstance(place, RemotePath)
        found.append(RemoteShard(place, listed.filesize, listed.sha256))
    return found


def _names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").iterdir()} - {".room"}


def _fill(cache: ShardCache, shards: list[RemoteShard]) -> None:
    for shard in shards:
        cache.want(shard)
    _until(lambda: all(cache.holds(shard) for shard in shards))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("200GB", 200e9), (200e9, 200e9), (1e17, 1e17), (5, 5), ("1.5 TiB", 1.5 * 2**40), ("64MiB", 64 << 20), ("7b", 7)],
)
def test_bytes_are_said_in_any_usual_way(given: float | str, wanted: float) -> None:
    assert byte_count(given, "x") == wanted


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dir": "x"}, "has no limit; give cache.bytes"),
        ({"bytes": "1GB"}, "cache.bytes = 1GB: has no folder; give cache.dir"),
        (
            {"dir": "s3://bucket/cache", "bytes": "1GB"},
            "cache.dir = s3://bucket/cache: is a URL; a folder of this machine",
        ),
        ({"dir": "file:///cache", "bytes": "1GB"}, "a folder of this machine is wanted"),
        ({"dir": "x", "bytes": 0}, "must be 1 or more"),
        ({"dir": "x", "bytes": "lots"}, "cache.bytes = 'lots': expected bytes"),
        ({"dir": "x", "bytes": -5}, "expected bytes"),
    ],
)
def test_a_cache_without_a_folder_or_a_sensible_limit_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(values, CacheSpec)


def test_the_first_sample_does_not_wait_for_its_shard_and_later_ones_come_from_the_cache(
    remote_shards: str, network: Proxy, demo_shards: Path, tmp_path: Path
) -> None:
    here, table = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    fetcher = Fetcher(table, cache=cache)
    size = table.index.shardlist[0].filesize
    (shard, *_) = _shards(table)
    with cache.room.filling(shard.sha256):  # nobody can bring the shard
        assert fetcher.fetch(0) == here.sample(0).data
        _until(lambda: not cache._queued)
    assert not cache.holds(shard)
    assert fetcher.take_took().misses == 1
    cache._not_before.clear()  # a moment later
    fetcher.fetch(0)
    _until(lambda: cache.holds(shard))
    fetcher.take_took()
    asked = len(network.seen().exchanges)
    count = table.shard_sizes[0]
    assert [fetcher.fetch(n) for n in range(count)] == [here.sample(n).data for n in range(count)]
    took = fetcher.take_took()
    assert (took.hits, took.misses, took.range_bytes) == (count, 0, 0)
    assert len(network.seen().exchanges) == asked
    _until(lambda: _names(tmp_path / "cache") == {f"{table.index.shardlist[0].sha256}.tar"})
    assert cache.take_fetched() == size
    fetcher.close()
    cache.close()


def test_a_damaged_copy_is_removed_and_read_again_from_the_store(
    remote_shards: str, demo_shards: Path, tmp_path: Path
) -> None:
    here, table = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    (shard, *_) = _shards(table)
    _fill(cache, [shard])
    path = cache.room.path(shard.sha256)
    path.write_bytes(bytes(shard.size))
    fetcher = Fetcher(table, cache=cache)
    assert fetcher.fetch(0) == here.sample(0).data
    assert fetcher.take_took().misses == 1
    assert not path.exists()
    fetcher.close()
    cache.close()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 1000}])
def test_a_shard_that_is_not_the_one_of_the_index_never_gets_into_the_cache(
    remote_shards: str, network: Proxy, tmp_path: Path, change: dict[str, Any]
) -> None:
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    shard = _shards(Shards.open(remote_shards))[0]._replace(**change)
    cache.want(shard)
    _until(lambda: len(_whole(network)) == 1)
    _until(lambda: not cache._queued)
    assert not cache.holds(shard)
    assert _names(tmp_path / "cache") == set()
    cache.want(shard)  # and is not asked for again at once
    assert not cache._queued
    cache.close()


def test_what_was_used_last_is_removed_last_and_stays_readable_where_it_is_open(
    remote_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Shards.open(remote_shards)
    first, second, third = _shards(table)[:3]
    limit = first.size + second.size + third.size - 1  # two of three
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=limit))
    _fill(cache, [first])
    _fill(cache, [second])
    for shard, age in ((first, 300), (second, 600)):
        at = time.time() - age
        os.utime(cache.room.path(shard.sha256), (at, at))
    _fill(cache, [third])
    assert {path.name for path in cache.room.folder.glob("*.tar")} == {f"{one.sha256}.tar" for one in (first, third)}
    data = cache.read(second, 0, second.size)  # this process had it open
    assert data is not None
    assert hashlib.sha256(data).hexdigest() == second.sha256
    monkeypatch.setattr("vmae_data.read.cache.TOUCH_SECONDS", 0.0)
    assert not cache.holds(second)  # and lets go of it soon
    cache.close()


def test_a_cache_that_is_too_small_keeps_what_it_has_instead_of_churning(tmp_path: Path) -> None:
    kept = CacheDirectory(tmp_path, 100)
    for name in ("a", "b"):
        temporary = kept.reserve(name, 50)
        assert temporary is not None
        kept.commit(temporary, name)
    assert kept.reserve("c", 50) is None  # both were used a moment ago
    assert kept.reserve("d", 101) is None
    at = time.time() - cache_directory.FRESH_SECONDS - 1
    os.utime(kept.path("b"), (at, at))
    temporary = kept.reserve("c", 50)
    assert temporary is not None
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", temporary.name, ".room"}


def fill_by_fetching(url: str, folder: str) -> bool:
    """Fetch all samples until all come from the cache; True where all were right."""
    table = Shards.open(url)
    cache = ShardCache(CacheSpec(dir=folder, bytes=LIMIT))
    fetcher = Fetcher(table, cache=cache)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for number in range(len(table)):
            fetcher.fetch(number)  # raises where its sum is wrong
        if fetcher.take_took().misses == 0:
            return True
    return False


def test_two_processes_fill_one_cache_and_each_shard_comes_once(
    remote_shards: str, network: Proxy, tmp_path: Path
) -> None:
    table, folder = Shards.open(remote_shards), tmp_path / "cache"
    with Pool(2) as pool:
        for n in range(2):
            pool.submit(n, fill_by_fetching, remote_shards, str(folder))
        for _ in range(2):
            finished = next_finished((pool,))
            assert finished is not None
            assert finished.error is None
            assert finished.result
    downloads = [name for name in _whole(network) if name.endswith(".tar")]
    assert downloads == sorted(listed.url for listed in table.index.shardlist)
    # A process that was ended between a shard's rename and the return of its lock leaves the lock; whoever comes takes it.
    ShardCache(CacheSpec(dir=str(folder), bytes=LIMIT)).room.clean()
    assert _names(folder) == {f"{listed.sha256}.tar" for listed in table.index.shardlist}


_FILLER = """\
import sys, time
from tests.data.test_cache import fill_by_fetching
fill_by_fetching(*sys.argv[1:])
"""


def test_what_a_killed_process_left_half_written_is_removed_and_fetched_anew(
    remote_shards: str, network: Proxy, tmp_path: Path
) -> None:
    table, folder = Shards.open(remote_shards), tmp_path / "cache"
    network.change(Faults(bytes_per_second=sum(listed.filesize for listed in table.index.shardlist) / 20))
    process = subprocess.Popen([sys.executable, "-c", _FILLER, remote_shards, str(folder)])
    _until(lambda: (folder / "shards").is_dir() and any(name.startswith(".tmp-") for name in _names(folder)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = _names(folder)
    assert any(name.startswith(".tmp-") for name in left) and any(name.startswith(".lock-") for name in left)
    network.change(Faults())
    assert fill_by_fetching(remote_shards, str(folder))
    _until(lambda: _names(folder) == {f"{listed.sha256}.tar" for listed in table.index.shardlist})
    for path in (folder / "shards").glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def fetch_all(url: str, folder: str, largest: int) -> tuple[int, tuple[str, ...], list[str]]:
    """All samples, in a process that may write no file of more bytes."""
    table = Shards.open(url)
    cache = ShardCache(CacheSpec(dir=folder, bytes=LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    fetcher, remarks = Fetcher(table, cache=cache), []
    for _ in range(3):
        for number in range(len(table)):
            fetcher.fetch(number)
        time.sleep(0.3)
        remarks += cache.take_remarks()
    took = fetcher.take_took()
    return took.misses, tuple(remarks), os.listdir(cache.room.folder)


def test_a_full_disk_is_said_once_and_the_samples_come_by_range(remote_shards: str, tmp_path: Path) -> None:
    table = Shards.open(remote_shards)
    largest = min(listed.filesize for listed in table.index.shardlist) - 1
    with Pool(1) as pool:
        pool.submit(0, fetch_all, remote_shards, str(tmp_path / "cache"), largest)
        finished = next_finished((pool,))
    assert finished is not None
    assert finished.error is None
    misses, remarks, names = finished.result
    assert misses == 3 * len(table)
    (remark,) = remarks
    assert "no room left on the disk; shards that are not there are read by range" in remark
    assert names == [".room"]


def test_old_shards_make_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CacheDirectory(tmp_path, 10**9)
    (tmp_path / "old.tar").write_bytes(b"x")
    at = time.time() - cache_directory.FRESH_SECONDS - 1
    os.utime(tmp_path / "old.tar", (at, at))
    allocate = cache_directory._allocate

    def full(path: Path, size: int) -> None:
        if (tmp_path / "old.tar").exists():
            raise OSError(28, "No space left on device")
        allocate(path, size)

    monkeypatch.setattr(cache_directory, "_allocate", full)
    assert kept.reserve("new", 10) is not None
    assert not (tmp_path / "old.tar").exists()
