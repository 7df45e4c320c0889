"""What an index of a million samples costs: time and private memory to open it, time for one epoch's order.

    python -m tools.bench.index SHARDS [--samples 1000000] [--batch 1024]

SHARDS is any built data set. Its rows are repeated under other keys, 500 a shard, and written as a table and an index
of the same format. Three fresh processes measure. Prints the lines of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tools.data_sets import repeated_rows, write_enlarged
from vmae_data.format import ShardListing
from vmae_data.names import tar_name
from vmae_data.read.dataset import Shards
from vmae_data.read.order import epoch_batches

PER_SHARD = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="a small data set, whose samples are repeated")
    parser.add_argument("--samples", type=int, default=1_000_000, help="rows of the index [default: %(default)s]")
    parser.add_argument("--batch", type=int, default=1024, help="samples per batch [default: %(default)s]")
    parser.add_argument("--opened", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opened:
        _open(options.opened, options.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = _write(Shards.open(options.shards), options.samples, Path(folder))
        print(f"{options.samples:,} samples: table of {size / 1e6:.0f} MB", flush=True)
        command = [sys.executable, "-m", "tools.bench.index", options.shards, "--batch", str(options.batch)]
        for _ in range(3):
            subprocess.run([*command, "--opened", folder], check=True)


def _write(shards: Shards, samples: int, folder: Path) -> int:
    """Repeat the rows of the data set under new keys."""
    first = shards.index.shardlist[0]
    listing = tuple(
        ShardListing(
            url=tar_name(number),
            nsamples=min(PER_SHARD, samples - number * PER_SHARD),
            filesize=first.filesize,
            sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            marker_sha256=first.marker_sha256,
        )
        for number in range(-(-samples // PER_SHARD))
    )
    return write_enlarged(shards, folder, repeated_rows(samples, PER_SHARD), listing)


def _private_mb() -> float:
    """Memory of this process that is not backed by a file."""
    with Path("/proc/self/smaps_rollup").open() as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return int(lines["Anonymous"].split()[0]) / 1000


def _open(url: str, batch: int) -> None:
    """Open the index and use the columns that order, views and fetch use."""
    before, started_at = _private_mb(), time.perf_counter()
    shards = Shards.open(url)
    opened = time.perf_counter() - started_at
    _ = shards.label_N, shards.size_N2, shards.frames_NP, shards.source_N, shards.rate_N
    _ = shards.view(len(shards) - 1), shards.member_range(len(shards) - 1)
    used = time.perf_counter() - started_at
    memory = _private_mb() - before
    started_at = time.perf_counter()
    batches = epoch_batches(shards.shard_sizes, seed=0, epoch=0, batch=batch)
    order = time.perf_counter() - started_at
    assert len(np.unique(batches)) == batches.size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"open {opened:.2f} s, columns read after {used:.2f} s, {memory:.0f} MB private; "
        f"an epoch's order {order:.2f} s ({len(batches)} batches of {batch}); peak with mapped pages {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
