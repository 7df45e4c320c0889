"""A reader's memory must not grow over many samples, which are fetched and checked, not decoded.

    python -m tools.soak.read [URL] [--samples 100000] [--cache DIR --cache-bytes 1GB] [--piece 32]

Without URL a small data set is built, uploaded to a local S3 server and read from there. Every tenth of the samples a
line reports samples per second, resident memory and bytes read. Exit status 1 if the second half peaks more than 16 MiB
above the first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tools.data_sets import demo_in_bucket
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher
from vmae_data.read.order import epoch_batches

GROWTH_MB = 16 * 1.048576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", metavar="URL")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--piece", type=int, default=32, help="samples of one request to the reader")
    parser.add_argument("--cache", metavar="DIR")
    parser.add_argument("--cache-bytes", default="1GB")
    options = parser.parse_args()
    spec = CacheSpec(dir=options.cache, bytes=options.cache_bytes if options.cache else None)
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(demo_in_bucket(samples_per_shard=8)).url
        memory = read(url, options.samples, options.piece, spec)
    first, second = max(memory[1:5]), max(memory[5:])
    print(f"first half {first:.1f} MB, second half {second:.1f} MB")
    sys.exit(1 if second - first > GROWTH_MB else 0)


def read(url: str, samples: int, piece: int, spec: CacheSpec) -> list[float]:
    """Resident megabytes after each tenth of the samples."""
    shards = Shards.open(url)
    cache = ShardCache(spec) if spec.dir is not None else None
    fetcher = Fetcher(shards, cache=cache)
    memory, done, started_at = list[float](), 0, time.monotonic()
    pieces = endless(shards, piece)
    following = next(pieces)
    fetcher.prefetch(following)
    while done < samples:
        current, following = following, next(pieces)
        fetcher.prefetch(following)
        for member in current:
            fetcher.fetch(*member)
        done += len(current)
        if done * 10 // samples > len(memory):
            memory.append(resident_mb())
            rate, megabytes = done / (time.monotonic() - started_at), fetcher.timings.range_bytes / 1e6
            read_by_range = f"{megabytes:.0f} MB read by range, {fetcher.timings.cache_hits:.0f} cache hits"
            print(f"{done} samples, {rate:.0f}/s, {memory[-1]:.1f} MB resident, {read_by_range}", flush=True)
    fetcher.close()
    if cache is not None:
        cache.close()
    return memory


def endless(shards: Shards, piece: int) -> Iterator[list[tuple[int, int]]]:
    """The batch order of a training, epoch after epoch."""
    epoch = 0
    while True:
        batches = epoch_batches(shards.shard_sizes, seed=0, epoch=epoch, batch=min(piece, len(shards)))
        yield from ([(int(number), 0) for number in batch] for batch in np.asarray(batches))
        epoch += 1


def resident_mb() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
