"""`make soak`: a reader's memory over many samples, fetched and hashed and not decoded.

    python -m tools.soak.read [URL] [--samples 100000] [--cache DIR --cache-bytes 1GB] [--piece 32]

Without URL a small set is made, put into a local S3 server and read from there. Prints a line every tenth of the way:
samples, samples a second, resident memory, megabytes read. Exit status 1 where memory of the second half is more than
16 MiB above that of the first.
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

from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher, Member, ReadTimings
from vmae_data.read.order import epoch_batches

GROWTH_MB = 16 * 1.048576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", metavar="URL")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--piece", type=int, default=32, help="samples that are asked for at once")
    parser.add_argument("--cache", metavar="DIR")
    parser.add_argument("--cache-bytes", default="1GB")
    given = parser.parse_args()
    spec = CacheSpec(dir=given.cache, bytes=given.cache_bytes if given.cache else None)
    with contextlib.ExitStack() as stack:
        url = given.url
        if url is None:
            from tools.data_sets import demo_in_bucket  # it needs what tests need

            url = stack.enter_context(demo_in_bucket(samples_per_shard=8)).url
        found = read(url, given.samples, given.piece, spec)
    first, second = max(found[1:5]), max(found[5:])
    grown = second - first
    print(f"first half {first:.1f} MB, second {second:.1f} MB")
    sys.exit(1 if grown > GROWTH_MB else 0)


def read(url: str, samples: int, piece: int, spec: CacheSpec) -> list[float]:
    """Resident megabytes at each tenth of the way."""
    shards = Shards.open(url)
    cache = ShardCache(spec) if spec.dir is not None else None
    fetcher = Fetcher(shards, cache=cache)
    took, found, done, started_at = ReadTimings(), [], 0, time.monotonic()
    pieces = endless(shards, piece)
    coming = next(pieces)
    fetcher.ask(coming)
    while done < samples:
        now, coming = coming, next(pieces)
        fetcher.ask(coming)
        for member in now:
            fetcher.fetch(*member)
        took = took.plus(fetcher.take_took())
        done += len(now)
        if done * 10 // samples > len(found):
            found.append(resident_mb())
            rate = done / (time.monotonic() - started_at)
            read_mb = took.range_bytes / 1e6
            print(
                f"{done} samples, {rate:.0f}/s, {found[-1]:.1f} MB resident, {read_mb:.0f} MB by range, {took.hits} hits",
                flush=True,
            )
    fetcher.close()
    if cache is not None:
        cache.close()
    return found


def endless(shards: Shards, piece: int) -> Iterator[list[Member]]:
    """The order of a training, epoch after epoch."""
    epoch = 0
    while True:
        batches = epoch_batches(shards.shard_sizes, seed=0, epoch=epoch, batch=min(piece, len(shards)))
        yield from ([Member(int(number)) for number in batch] for batch in np.asarray(batches))
        epoch += 1


def resident_mb() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
