"""The node's cache over a real S3 server: filled in the background, by several processes, through kills and full disks."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import Proxy
from vmae_data import Shards
from vmae_data.processes import Pool, next_finished
from vmae_data.read import cache as cache_module
from vmae_data.read import cache_directory
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.cache_directory import CacheDirectory
from vmae_data.read.fetch import Fetcher
from vmae_data.read.prefetch import RemoteShard
from vmae_data.recipes import byte_count
from vmae_data.storage import RemotePath

LIMIT = "1GB"


def _downloads(network: Proxy) -> list[str]:
    """The shards that were requested from their beginning: once for each download."""
    requests = (
        one for one in network.seen().exchanges if one.method == "GET" and (one.range or "").startswith("bytes=0-")
    )
    return sorted(one.path.rpartition("/")[2].partition("?")[0] for one in requests if ".tar" in one.path)


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def _shards(table: Shards) -> list[RemoteShard]:
    shards = []
    for number, listed in enumerate(table.index.shardlist):
        path = table.shard_path(number)
        assert isinstance(path, RemotePath)
        shards.append(RemoteShard(path, listed.filesize, listed.sha256))
    return shards


def _names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").iterdir()} - {".room"}


def _fill(cache: ShardCache, shards: list[RemoteShard]) -> None:
    for shard in shards:
        cache.submit(shard)
    _until(lambda: all(cache.contains(shard) for shard in shards))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200GB", 200e9), (200e9, 200e9), (1e17, 1e17), (5, 5), ("1.5 TiB", 1.5 * 2**40), ("64MiB", 64 << 20), ("7b", 7)],
)
def test_a_number_of_bytes_is_read_in_any_usual_form(text: float | str, expected: float) -> None:
    assert byte_count(text, "x") == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dir": "x"}, "has no limit. Set cache.bytes"),
        ({"bytes": "1GB"}, "cache.bytes = 1GB: has no folder. Set cache.dir"),
        (
            {"dir": "s3://bucket/cache", "bytes": "1GB"},
            "cache.dir = s3://bucket/cache: is a URL; expected a local folder",
        ),
        ({"dir": "file:///cache", "bytes": "1GB"}, "expected a local folder"),
        ({"dir": "x", "bytes": 0}, "expected 1 or more"),
        ({"dir": "x", "bytes": "lots"}, "cache.bytes = 'lots': expected bytes"),
        ({"dir": "x", "bytes": -5}, "expected bytes"),
    ],
)
def test_a_cache_without_a_folder_or_a_sensible_limit_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(values, CacheSpec)


def test_the_first_sample_does_not_wait_for_its_shard_and_later_ones_come_from_the_cache(
    remote_shards: str, network: Proxy, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "RETRY_SECONDS", 0.0)
    here, table = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    fetcher = Fetcher(table, cache=cache)
    size = table.index.shardlist[0].filesize
    (shard, *_) = _shards(table)
    with cache.directory.lock_shard(shard.sha256):  # no process can download the shard
        assert fetcher.fetch(0) == here.sample(0).data
        _until(lambda: not cache.is_pending(shard))
    assert not cache.contains(shard)
    assert fetcher.timings.cache_misses == 1
    fetcher.fetch(0)
    _until(lambda: cache.contains(shard))
    before, requests = fetcher.timings, len(network.seen().exchanges)
    count = table.shard_sizes[0]
    assert [fetcher.fetch(n) for n in range(count)] == [here.sample(n).data for n in range(count)]
    timings = fetcher.timings.minus(before)
    assert (timings.cache_hits, timings.cache_misses, timings.range_bytes) == (count, 0, 0)
    assert len(network.seen().exchanges) == requests
    _until(lambda: _names(tmp_path / "cache") == {f"{table.index.shardlist[0].sha256}.tar"})
    assert cache.downloaded_bytes == size
    fetcher.close()
    cache.close()


def _arrive(cache: ShardCache, shard: RemoteShard, data: bytes) -> None:
    """The file of a shard of which `data` has arrived, as a process that downloads it writes it."""
    path = cache.directory.incomplete_path(shard.sha256)
    content = data.ljust(shard.size, b"\0") + len(data).to_bytes(cache_directory.COUNT_BYTES, "little")
    with path.open("r+b" if path.exists() else "wb") as file:  # the same file: readers have it open
        file.write(content)
        file.truncate()


def test_what_has_arrived_of_a_shard_is_read_before_its_download_ends(
    remote_shards: str, network: Proxy, demo_shards: Path, tmp_path: Path
) -> None:
    here, table = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    fetcher = Fetcher(table, cache=cache)
    (shard, *_) = _shards(table)
    tar = (demo_shards / table.index.shardlist[0].url).read_bytes()
    first, second, third = (table.member_range(n) for n in range(3))
    arrived = tar[: second.offset + second.size - 1]
    with cache.directory.lock_shard(shard.sha256):  # another process downloads the shard
        _arrive(cache, shard, arrived)
        fetcher.prefetch([(0, 0)])
        assert fetcher.fetch(0) == here.sample(0).data
        assert (fetcher.timings.cache_hits, fetcher.timings.cache_misses, fetcher.timings.range_bytes) == (1, 0, 0)
        assert fetcher.fetch(1) == here.sample(1).data  # by range: its last byte has not arrived
        assert (fetcher.timings.cache_hits, fetcher.timings.cache_misses) == (1, 1)
        _arrive(cache, shard, bytes(third.offset + third.size))
        assert fetcher.fetch(0) == here.sample(0).data  # what has arrived is wrong
        assert (fetcher.timings.cache_hits, fetcher.timings.cache_misses) == (1, 2)
        _arrive(cache, shard._replace(size=shard.size - 1), arrived)  # the index has another size
        assert fetcher.fetch(0) == here.sample(0).data
        assert (fetcher.timings.cache_hits, fetcher.timings.cache_misses) == (1, 3)
    assert first.size > 0 and not cache.contains(shard)
    fetcher.close()
    cache.close()


class _Clock:
    """Time that passes only in a sleep. `when_slept` is called after each."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0
        self.when_slept: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self.when_slept()


def test_a_reader_waits_for_bytes_that_come_soon_and_not_for_a_slow_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    monkeypatch.setattr(cache_module, "time", clock)
    cache = ShardCache(CacheSpec(dir=str(tmp_path), bytes=LIMIT))
    data = bytes(range(100)) * 10
    shard = RemoteShard(RemotePath("s3://b", "x.tar"), len(data), "0" * 64)
    _arrive(cache, shard, data[:100])
    assert not cache.expects(shard, 101)  # nothing is known of its speed
    assert cache.read(shard, 0, 101) is None
    clock.now = 10 * cache_module.WAIT_SECONDS
    _arrive(cache, shard, data[:200])  # 10 bytes in WAIT_SECONDS
    assert [cache.expects(shard, end) for end in (200, 210, 211)] == [True, True, False]
    assert (cache.read(shard, 100, 100), clock.slept) == (data[100:200], 0)
    assert (cache.read(shard, 201, 10), clock.slept) == (None, 0)
    clock.when_slept = lambda: _arrive(cache, shard, data[:205])
    assert (cache.read(shard, 195, 10), clock.slept) == (data[195:205], cache_module.POLL_SECONDS)
    clock.when_slept, clock.slept = (lambda: None), 0.0  # the download stops
    assert cache.read(shard, 195, 11) is None
    assert 0 < clock.slept <= cache_module.WAIT_SECONDS + 2 * cache_module.POLL_SECONDS
    clock.slept = 0.0
    assert (cache.read(shard, 195, 11), clock.slept) == (None, 0)  # one wait for it was enough
    cache.directory.incomplete_path(shard.sha256).unlink()  # the download has failed
    assert cache.read(shard, 0, 10) is None
    cache.close()


def test_a_damaged_copy_is_removed_and_read_again_from_the_store(
    remote_shards: str, demo_shards: Path, tmp_path: Path
) -> None:
    here, table = Shards.open(str(demo_shards)), Shards.open(remote_shards)
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    (shard, *_) = _shards(table)
    _fill(cache, [shard])
    path = cache.directory.path(shard.sha256)
    path.write_bytes(bytes(shard.size))
    fetcher = Fetcher(table, cache=cache)
    assert fetcher.fetch(0) == here.sample(0).data
    assert fetcher.timings.cache_misses == 1
    assert not path.exists()
    fetcher.close()
    cache.close()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 1000}])
def test_a_shard_that_is_not_the_one_of_the_index_never_gets_into_the_cache(
    remote_shards: str, network: Proxy, tmp_path: Path, change: dict[str, Any]
) -> None:
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "cache"), bytes=LIMIT))
    shard = _shards(Shards.open(remote_shards))[0]._replace(**change)
    cache.submit(shard)
    _until(lambda: len(_downloads(network)) == 1)
    _until(lambda: not cache.is_pending(shard))
    assert not cache.contains(shard)
    assert _names(tmp_path / "cache") == set()
    cache.submit(shard)  # no retry at once
    assert not cache.is_pending(shard)
    cache.close()


def test_the_least_recently_used_shard_is_evicted_first_and_stays_readable_while_it_is_open(
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
        os.utime(cache.directory.path(shard.sha256), (at, at))
    _fill(cache, [third])
    assert {path.name for path in cache.directory.folder.glob("*.tar")} == {
        f"{one.sha256}.tar" for one in (first, third)
    }
    data = cache.read(second, 0, second.size)  # this process had it open
    assert data is not None
    assert hashlib.sha256(data).hexdigest() == second.sha256
    monkeypatch.setattr("vmae_data.read.cache.TOUCH_SECONDS", 0.0)
    assert not cache.contains(second)  # and closes it soon
    cache.close()


def test_a_cache_that_is_too_small_keeps_its_shards_instead_of_churning(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path, 100)
    for name in ("a", "b"):
        temporary = directory.reserve(name, 50)
        assert temporary is not None
        directory.commit(temporary, name)
    assert directory.reserve("c", 50) is None  # both were used just now
    assert directory.reserve("d", 101) is None
    at = time.time() - cache_directory.FRESH_SECONDS - 1
    os.utime(directory.path("b"), (at, at))
    temporary = directory.reserve("c", 50)
    assert temporary is not None
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", temporary.name, ".room"}


def test_a_shard_can_be_locked_while_another_process_removes_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks of a clean-up are no downloads: one that looked so kept a shard out of the cache for a minute."""
    directory, others = CacheDirectory(tmp_path, 100), CacheDirectory(tmp_path, 100)
    (tmp_path / ".lock-a").touch()
    answers: list[bool] = []

    def lock() -> None:
        with others.lock_shard("a") as is_locked:
            answers.append(is_locked)

    thread = threading.Thread(target=lock)
    try_lock = cache_directory.try_lock

    @contextmanager
    def slow_lock(path: Path) -> Iterator[bool]:
        with try_lock(path) as is_locked:
            if threading.current_thread() is not thread:
                thread.start()
                thread.join(0.2)  # time enough for a wrong answer; the right one comes after the clean-up
            yield is_locked

    monkeypatch.setattr(cache_directory, "try_lock", slow_lock)
    directory.clean()
    thread.join()
    assert answers == [True]


def fill_by_fetching(url: str, folder: str) -> bool:
    """Fetch all samples until all come from the cache; whether they did in time."""
    table = Shards.open(url)
    cache = ShardCache(CacheSpec(dir=folder, bytes=LIMIT))
    fetcher = Fetcher(table, cache=cache)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        before = fetcher.timings.cache_misses
        for number in range(len(table)):
            fetcher.fetch(number)  # raises if a checksum differs
        if fetcher.timings.cache_misses == before:
            return True
    return False


def test_two_processes_fill_one_cache_and_each_shard_is_downloaded_once(
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
    downloads = [name for name in _downloads(network) if name.endswith(".tar")]
    assert downloads == sorted(listed.url for listed in table.index.shardlist)
    # A process killed between a shard's rename and the release of its lock leaves the lock file; the next one removes it.
    ShardCache(CacheSpec(dir=str(folder), bytes=LIMIT)).directory.clean()
    assert _names(folder) == {f"{listed.sha256}.tar" for listed in table.index.shardlist}


_FILLER = """\
import sys, time
from tests.data.test_cache import fill_by_fetching
fill_by_fetching(*sys.argv[1:])
"""


def test_an_incomplete_shard_of_a_killed_process_is_removed_and_downloaded_again(
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
    """Fetch all samples in a process that cannot write a larger file: hits, notes, names in the cache."""
    table = Shards.open(url)
    cache = ShardCache(CacheSpec(dir=folder, bytes=LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    fetcher = Fetcher(table, cache=cache)
    until, rounds = time.monotonic() + 60, 0
    while rounds < 3 or (not cache.notes and time.monotonic() < until):
        rounds += 1
        for number in range(len(table)):
            fetcher.fetch(number)
    assert fetcher.timings.cache_misses == rounds * len(table)
    return int(fetcher.timings.cache_hits), cache.notes, os.listdir(cache.directory.folder)


def test_a_full_disk_is_reported_once_and_samples_are_read_by_range(remote_shards: str, tmp_path: Path) -> None:
    table = Shards.open(remote_shards)
    largest = min(listed.filesize for listed in table.index.shardlist) - 1
    with Pool(1) as pool:
        pool.submit(0, fetch_all, remote_shards, str(tmp_path / "cache"), largest)
        finished = next_finished((pool,))
    assert finished is not None
    assert finished.error is None
    hits, notes, names = finished.result
    assert hits == 0
    (note,) = notes
    assert "no space left on the disk; shards that are not in the cache are read by range" in note
    assert names == [".room"]


def test_old_shards_are_evicted_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = CacheDirectory(tmp_path, 10**9)
    (tmp_path / "old.tar").write_bytes(b"x")
    at = time.time() - cache_directory.FRESH_SECONDS - 1
    os.utime(tmp_path / "old.tar", (at, at))
    allocate = cache_directory.allocate

    def full(path: Path, size: int) -> None:
        if (tmp_path / "old.tar").exists():
            raise OSError(28, "No space left on device")
        allocate(path, size)

    monkeypatch.setattr(cache_directory, "allocate", full)
    assert directory.reserve("new", 10) is not None
    assert not (tmp_path / "old.tar").exists()
