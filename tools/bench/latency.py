"""Batches from a bucket behind a slow network: clips a second with and without prefetch across batches.

    python -m tools.bench.latency [--latency 0 0.02 0.05 0.2] [--workers 1] [--batches 24]

Builds a small data set, uploads it to a local S3 server and reads it through a proxy that adds latency. The first
batch is not counted.
"""

from __future__ import annotations

import argparse
import time

from tools.data_sets import demo_in_bucket
from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import proxy_process
from vmae_data.read.batches import BatchLayout, TrainingOrder
from vmae_data.read.dataset import Shards
from vmae_data.storage import set_options
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import ClipLoader, LoaderSpec

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 0.02, 0.05, 0.2], metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=24)
    options = parser.parse_args()
    with demo_in_bucket(samples_per_shard=16) as made:
        print("disk:", measure(str(made.shards), options.workers, options.batches, prefetch=False))
        with proxy_process(made.bucket.server.endpoint) as proxy:
            set_options([f"endpoint={proxy.url}"])
            for latency in options.latency:
                proxy.change(Faults(latency_seconds=latency))
                for prefetch in (False, True):
                    name = "prefetch" if prefetch else "no prefetch"
                    found = measure(made.url, options.workers, options.batches, prefetch=prefetch)
                    print(f"{latency} s, {name}: {found}", flush=True)


def measure(url: str, workers: int, batches: int, *, prefetch: bool) -> str:
    shards = Shards.open(url)
    order = TrainingOrder(shards, seed=0, batch=BATCH)
    requests = order.requests(0, batches, BatchLayout.of(BATCH, None, 1), 0)
    spec = LoaderSpec(workers=workers)
    with ClipLoader(shards, StrideSampler(16, 1), requests, batch=BATCH, frames=16, seed=0, spec=spec) as loader:
        loader._pool.depth = 2 if prefetch else 1
        batches_left = iter(loader)
        next(batches_left)
        started_at = time.perf_counter()
        clips = BATCH * sum(1 for _ in batches_left)
        seconds = time.perf_counter() - started_at
    timings = loader.timings
    return f"{clips / seconds:.0f} clips/s; workers waited {timings.fetch_seconds:.2f} s, decoded {timings.decode_seconds:.2f} s"


if __name__ == "__main__":
    main()
