"""Batches from a bucket through a network with latency: clips a second, with the next piece of work asked for early and not.

    python -m tools.bench.latency [--latency 0 0.02 0.05 0.2] [--workers 1] [--batches 24]

Makes a small set, puts it into a local S3 server and reads it through a proxy. The first batch is not counted.
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
from vmae_train.clips.frame_sampling import ExactStride
from vmae_train.clips.loader import ClipLoader, LoaderSpec

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 0.02, 0.05, 0.2], metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=24)
    given = parser.parse_args()
    with demo_in_bucket(samples_per_shard=16) as made:
        print("disk:", measure(str(made.shards), given.workers, given.batches, early=False))
        with proxy_process(made.bucket.server.endpoint) as proxy:
            set_options([f"endpoint={proxy.url}"])
            for latency in given.latency:
                proxy.change(Faults(latency_seconds=latency))
                for early in (False, True):
                    words = "early" if early else "late"
                    print(
                        f"{latency} s, {words}:",
                        measure(made.url, given.workers, given.batches, early=early),
                        flush=True,
                    )


def measure(url: str, workers: int, batches: int, *, early: bool) -> str:
    shards = Shards.open(url)
    order = TrainingOrder(shards, seed=0, batch=BATCH)
    requests = order.requests(0, batches, BatchLayout.of(BATCH, None, 1), 0)
    spec = LoaderSpec(workers=workers)
    with ClipLoader(shards, ExactStride(16, 1), requests, batch=BATCH, frames=16, seed=0, spec=spec) as loader:
        loader._pool.depth = 2 if early else 1
        coming = iter(loader)
        next(coming)
        started_at = time.perf_counter()
        clips = BATCH * sum(1 for _ in coming)
        seconds = time.perf_counter() - started_at
    took = loader.took
    return f"{clips / seconds:.0f} clips/s; workers waited {took.waiting:.2f} s, decoded {took.decoding:.2f} s"


if __name__ == "__main__":
    main()
