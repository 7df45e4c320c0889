"""How close to a full shuffle the training's batch order is, compared with webdataset's buffer.

    python -m tools.bench.shuffle [--epochs 3]

A listing sorted by class is put into shards in two ways: by hash, as a build plans it, and in its own order, which is
the worst case. webdataset's order is a shuffled shard list and its buffer (`shuffle(1000)`), run on sample numbers.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.read.order import epoch_batches

BUFFER = 1000


class Listing(NamedTuple):
    """`samples` of `classes`, `shard` samples a shard, `batch` samples a batch."""

    name: str
    samples: int
    shard: int
    classes: int
    batch: int

    @property
    def shard_sizes(self) -> list[int]:
        full_shards, rest = divmod(self.samples, self.shard)
        return [self.shard] * full_shards + ([rest] if rest else [])


LISTINGS = (Listing("Kinetics-like", 240_000, 500, 400, 1024), Listing("small", 3_500, 500, 50, 64))
Order = Callable[[Listing, int], NDArray[np.int64]]


def full(listing: Listing, epoch: int) -> NDArray[np.int64]:
    """A permutation of everything."""
    return _cut(np.random.default_rng(epoch).permutation(listing.samples), listing)


def ours(listing: Listing, epoch: int) -> NDArray[np.int64]:
    return epoch_batches(listing.shard_sizes, seed=0, epoch=epoch, batch=listing.batch)


def stock(listing: Listing, epoch: int) -> NDArray[np.int64]:
    """A shuffled shard list, then webdataset's own buffer, in one worker."""
    from webdataset.filters import shuffle

    rng = random.Random(epoch)
    starts = np.cumsum([0, *listing.shard_sizes])
    shards = rng.sample(range(len(listing.shard_sizes)), len(listing.shard_sizes))
    samples = (n for shard in shards for n in range(starts[shard], starts[shard + 1]))
    return _cut(np.fromiter(shuffle(BUFFER, rng=rng)(samples), dtype=np.int64), listing)


def _cut(order: NDArray[np.int64], listing: Listing) -> NDArray[np.int64]:
    steps = listing.samples // listing.batch
    return order[: steps * listing.batch].reshape(steps, listing.batch)


class Quality(NamedTuple):
    """Measures of the batches, mean over epochs."""

    chi_square: float  # per degree of freedom; 1 if classes fall into batches by chance
    worst_batch: float
    near_inside: float  # share of the listing's neighbours (n, n + 1) that are in one batch
    near_next: float  # share of them that are in two consecutive batches
    span: float  # interquartile range of a batch's positions in the listing, as a share of it; 0.5 by chance


def measure(order: Order, listed_N: NDArray[np.int64], listing: Listing, epochs: int) -> Quality:
    """`listed_N`: position of each sample of the shards in the listing, which is sorted by class."""
    rows = []
    label_N = listed_N * listing.classes // listing.samples
    for epoch in range(epochs):
        batches = order(listing, epoch)
        share_K = np.bincount(label_N, minlength=listing.classes) / len(label_N)
        counts_MK = np.stack([np.bincount(label_N[batch], minlength=listing.classes) for batch in batches])
        expected_K = share_K * listing.batch
        chi_M = ((counts_MK - expected_K) ** 2 / expected_K).sum(axis=1) / (listing.classes - 1)
        # Sampling without replacement is a little more even than with it.
        chi_M *= (listing.samples - 1) / (listing.samples - listing.batch)
        batch_of = np.full(listing.samples + 1, -9)
        listed = listed_N[batches]
        batch_of[listed.ravel()] = np.repeat(np.arange(len(batches)), listing.batch)
        here, after = batch_of[:-1], batch_of[1:]
        inside = (here == after) & (here >= 0)
        following = (np.abs(here - after) == 1) & (here >= 0) & (after >= 0)
        quartiles = np.quantile(listed, (0.25, 0.75), axis=1)
        rows.append(
            (
                float(chi_M.mean()),
                float(chi_M.max()),
                float(inside.mean()),
                float(following.mean()),
                float((quartiles[1] - quartiles[0]).mean()) / listing.samples,
            )
        )
    return Quality(*np.mean(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    print(f"numpy {version('numpy')}, webdataset {version('webdataset')}, mean of {options.epochs} epochs\n")
    head = "listing | order | chi-square / df | worst batch | neighbours in one batch | in following batches | middle half of a batch"
    print(f"| {head} |\n|{' --- |' * 7}")
    for listing in LISTINGS:
        sorted_N = np.arange(listing.samples)
        planned_N = np.random.default_rng(7).permutation(sorted_N)
        for kind, listed_N in (("planned by hash", planned_N), ("sorted by class", sorted_N)):
            for name, order in (("full", full), ("ours", ours), ("webdataset, buffer 1000", stock)):
                found = measure(order, listed_N, listing, options.epochs)
                print(
                    f"| {listing.name}, {kind} | {name} | {found.chi_square:.3f} | {found.worst_batch:.2f} "
                    f"| {found.near_inside:.2%} | {found.near_next:.2%} | {found.span:.1%} of the listing |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
