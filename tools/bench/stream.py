"""Shards read from object storage: throughput, CPU time and the wait for the first sample, compared with other readers.

    python -m tools.bench.stream SHARDS [--samples 2000] [--size 350000] [--limit 100e6] [--rounds 3]

A local S3 server (SeaweedFS) gets random shards of the requested sample size, in the format of SHARDS (any built data
set). Each measurement is a process; readers take turns. All are measured behind a proxy that passes LIMIT bytes a
second, then without it. The baseline is plain GETs by the same client. Other readers, if installed: webdataset
(`pipe:curl` of signed URLs) and litdata's StreamingRawDataset (needs s3fs). Server, client and checksums share the
machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import math
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median

from tests.s3_server import S3Bucket, s3_server
from tools.data_sets import write_enlarged
from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import proxy_process
from vmae_data.format import ShardListing
from vmae_data.names import tar_name
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher
from vmae_data.read.order import epoch_batches
from vmae_data.read.prefetch import CONCURRENT_RANGES, RemoteShard
from vmae_data.storage import RemotePath, commit_bytes, commit_file, remote, storage_path

PER_SHARD = 250
BATCH = 64
PIECE = 16  # samples of one job of a worker
URL = "s3://bench/set"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="a small data set, whose samples are repeated")
    parser.add_argument("--samples", type=int, default=2000, help="samples of the data set [default: %(default)s]")
    parser.add_argument("--size", type=int, default=350_000, help="bytes per sample [default: %(default)s]")
    parser.add_argument(
        "--limit", type=float, default=100e6, help="bytes per second of the link [default: %(default)s]"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns [default: %(default)s]")
    parser.add_argument("--measure", choices=sorted(READERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.samples < BATCH:
        parser.error(f"--samples {options.samples}: expected {BATCH} or more, one batch")
    if options.measure:
        for name in IMPORTS.get(options.measure, ("obstore",)):
            importlib.import_module(name)
        print(json.dumps(_timed(READERS[options.measure])))
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket = stack.enter_context(s3_server(folder / "server")).bucket("bench")
        bucket.store().put("made", b"")
        os.environ |= {**bucket.environment, "VMAE_CACHE": str(folder / "node")}
        _write(Shards.open(options.shards), options.samples, options.size, folder)
        with proxy_process(bucket.server.endpoint, Faults(bytes_per_second=options.limit)) as proxy:
            print(
                f"{options.samples} samples of {options.size} bytes; behind {options.limit / 1e6:.0f} MB/s:", flush=True
            )
            _table(_rounds(options, bucket.through(proxy.url)))
        print("without a limit, without a proxy:", flush=True)
        _table(_rounds(options, bucket))


def _rounds(options: argparse.Namespace, bucket: S3Bucket) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
    for _ in range(options.rounds):
        for name in READERS:  # in turns, so that a slow minute of the machine meets every reader
            words = [sys.executable, "-m", "tools.bench.stream", options.shards, "--measure", name]
            done = subprocess.run(
                words, env={**os.environ, **bucket.environment}, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
            elif not found[name]:
                print(f"  {name}: skipped ({done.stderr.strip().splitlines()[-1][:200]})", flush=True)
    return found


def _table(found: dict[str, list[dict[str, float]]]) -> None:
    plain, curl = (
        median(one["mb_s"] for one in found[name]) if found[name] else math.nan
        for name in ("plain GETs", "webdataset, pipe:curl")
    )
    print("| reader | MB/s | of plain GETs | of pipe:curl | samples/s | CPU s/GB | first sample s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, runs in found.items():
        if runs:
            each = {key: median(run[key] for run in runs) for key in runs[0]}
            ratios = f"{each['mb_s'] / plain:.2f} | {each['mb_s'] / curl:.2f}"
            print(
                f"| {name} | {each['mb_s']:.1f} | {ratios} | {each['samples_s']:.0f} "
                f"| {each['cpu_gb']:.2f} | {each['first']:.2f} |",
                flush=True,
            )


def _timed(read: Callable[[], Iterator[int]]) -> dict[str, float]:
    """Read all samples and measure. Imports are done before."""
    before = _cpu()
    started_at = time.perf_counter()
    samples = total = 0
    first = 0.0
    for size in read():
        first = first or time.perf_counter() - started_at
        samples += 1
        total += size
    seconds = time.perf_counter() - started_at
    return {
        "mb_s": total / 1e6 / seconds,
        "samples_s": samples / seconds,
        "cpu_gb": (_cpu() - before) / (total / 1e9),
        "first": first,
    }


def _cpu() -> float:
    """CPU seconds of this process and of its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _order(shards: Shards) -> list[int]:
    return [int(n) for n in epoch_batches(shards.shard_sizes, seed=0, epoch=0, batch=BATCH).ravel()]


def _ours(cache: ShardCache | None = None) -> Iterator[int]:
    """As a decode worker reads: the next job is prefetched during this one; every checksum is verified."""
    shards = Shards.open(URL)
    order = _order(shards)
    fetcher = Fetcher(shards, cache=cache)
    pieces = [order[start : start + PIECE] for start in range(0, len(order), PIECE)]
    fetcher.prefetch([(number, 0) for number in pieces[0]])
    for position, piece in enumerate(pieces):
        if position + 1 < len(pieces):
            fetcher.prefetch([(number, 0) for number in pieces[position + 1]])
        for number in piece:
            yield len(fetcher.fetch(number))
    fetcher.close()


def _cached() -> Iterator[int]:
    """A first epoch with `cache.dir`: ranges, until a shard has been downloaded completely."""
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(CacheSpec(dir=folder, bytes=1 << 40))
        yield from _ours(cache)
        cache.close()


def _downloaded() -> Iterator[int]:
    """Complete shards only: all are downloaded into `cache.dir`, then all samples are read from there."""
    with tempfile.TemporaryDirectory() as folder:
        cache = _full_cache(folder)
        yield from _ours(cache)
        cache.close()


def _full_cache(folder: str) -> ShardCache:
    cache = ShardCache(CacheSpec(dir=folder, bytes=1 << 40))
    table, shards = Shards.open(URL), []
    for number, one in enumerate(table.index.shardlist):
        path = table.shard_path(number)
        assert isinstance(path, RemotePath)
        shards.append(RemoteShard(path, one.filesize, one.sha256))
    while missing := [shard for shard in shards if not cache.contains(shard)]:
        for shard in missing:
            cache.submit(shard)
        time.sleep(0.01)
    return cache


def _plain() -> Iterator[int]:
    """The same ranges in the same order by the same client, as many at a time, without checksums."""
    shards = Shards.open(URL)

    def get(number: int) -> int:
        member = shards.member_range(number)
        path = shards.shard_path(member.shard)
        return len(remote.read_part(path, member.offset, member.size).data)

    with ThreadPoolExecutor(CONCURRENT_RANGES) as pool:
        yield from pool.map(get, _order(shards))


def _webdataset() -> Iterator[int]:
    """Complete shards one after the other by curl, as its documentation recommends for object storage."""
    import obstore
    import webdataset as wds

    shards = Shards.open(URL)
    store = S3Bucket(_server(), "bench").store()
    urls = [
        f"pipe:curl -s -L '{obstore.sign(store, 'GET', f'set/{one.url}', timedelta(hours=1))}'"
        for one in shards.index.shardlist
    ]
    for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False):
        yield len(sample["mp4"])


def _litdata() -> Iterator[int]:
    """The same samples as single objects, in the same order."""
    from litdata import StreamingRawDataset
    from litdata.streaming import downloader
    from torch.utils.data import DataLoader

    # Its client refuses plain HTTP, which the local server speaks.
    downloader._OBSTORE_CLIENT_OPTIONS = {**(downloader._OBSTORE_CLIENT_OPTIONS or {}), "allow_http": True}
    with tempfile.TemporaryDirectory() as folder:
        data = StreamingRawDataset("s3://bench/raw/", cache_dir=folder, recompute_index=True)
        for batch in DataLoader(data, batch_size=PIECE, collate_fn=list, shuffle=False):
            yield from map(len, batch)


READERS: dict[str, Callable[[], Iterator[int]]] = {
    "plain GETs": _plain,
    "vmae-shard, checksums verified": _ours,
    "vmae-shard, first epoch with `cache.dir`": _cached,
    "vmae-shard, complete shards in `cache.dir`": _downloaded,
    "webdataset, pipe:curl": _webdataset,
    "litdata raw": _litdata,
}


IMPORTS = {"webdataset, pipe:curl": ("obstore", "webdataset"), "litdata raw": ("litdata", "s3fs", "torch.utils.data")}


def _server() -> object:
    from tests.s3_server import S3Server

    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    return S3Server(*(os.environ[name] for name in names))


def _write(shards: Shards, samples: int, size: int, folder: Path) -> None:
    """Write random members with their true offsets and checksums; repeat the other columns of the data set."""
    rng = random.Random(0)
    rows: list[tuple[str, int, int, bytes]] = []
    listing = []
    first = shards.index.shardlist[0]
    for shard in range(-(-samples // PER_SHARD)):
        path = folder / tar_name(shard)
        keys = [f"video-{shard:04d}-{n:04d}" for n in range(min(PER_SHARD, samples - shard * PER_SHARD))]
        with tarfile.open(path, "w") as tar:
            for key in keys:
                data = rng.randbytes(size)
                member = tarfile.TarInfo(f"{key}.mp4")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                rows.append((key, shard, tar.offset - -(-size // 512) * 512, hashlib.sha256(data).digest()))
                commit_bytes(storage_path(f"s3://bench/raw/{key}.mp4"), data)
        digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        listing.append(
            ShardListing(
                url=path.name,
                nsamples=len(keys),
                filesize=path.stat().st_size,
                sha256=digest,
                marker_sha256=first.marker_sha256,
            )
        )
        commit_file(path, storage_path(f"{URL}/{path.name}"))
    keys_, shard_, offset_, digests = zip(*rows, strict=True)
    columns = {
        "key": keys_,
        "source": range(samples),
        "shard": shard_,
        "offset": [[n] for n in offset_],
        "size": [[size]] * samples,
        "sha256": [[one] for one in digests],
    }
    write_enlarged(shards, storage_path(URL), columns, listing)


if __name__ == "__main__":
    main()
