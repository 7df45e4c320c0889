"""The samples of every step of a run, and how the ranks and their micro-batches share them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_data.read.order import GlobalBatch, MixtureOrder, epoch_batches, rank_slice

__all__ = ["PADDING", "BatchLayout", "Request", "TrainingOrder"]

PADDING = -1
"""The sample number of a padding position."""


class BatchLayout(NamedTuple):
    """How a global batch is divided among ranks: a contiguous share each, cut into micro-batches of one size.

    Every rank has the same number of micro-batches. Shares and micro-batches that are too short end in padding positions.
    """

    world_size: int
    grad_accum_steps: int  # micro-batches of a step on each rank
    micro_batch: int  # positions of a micro-batch

    @classmethod
    def of(cls, batch: int, micro_batch: int | None, world_size: int) -> BatchLayout:
        """Raises MisuseError if a rank would have no sample."""
        if batch < world_size:
            raise MisuseError(
                f"train.batch = {batch} is smaller than the {world_size} processes. Raise train.batch or start fewer"
            )
        share = -(-batch // world_size)
        size = min(micro_batch or share, share)
        return cls(world_size, -(-share // size), size)

    def micro_batches(self, batch_B: NDArray[np.int64], rank: int, padding: int) -> Iterator[tuple[int, ...]]:
        """The values of each micro-batch of a rank, with `padding` at padding positions."""
        share = rank_slice(batch_B, rank, self.world_size).tolist()
        for first in range(0, self.grad_accum_steps * self.micro_batch, self.micro_batch):
            values = share[first : first + self.micro_batch]
            yield (*values, *[padding] * (self.micro_batch - len(values)))


class Request(NamedTuple):
    """A micro-batch to load: sample numbers in order, PADDING (−1) at padding positions."""

    epoch: int
    step: int
    samples: tuple[int, ...]
    own_epochs: tuple[int, ...] | None = None  # for a mixture: the epoch of each sample's data set

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epoch of each sample."""
        return self.own_epochs or (self.epoch,) * len(self.samples)


class TrainingOrder:
    """The samples of every step of a run. Pure: steps can be computed in any order."""

    def __init__(self, data: Shards | Mixture, *, seed: int, batch: int) -> None:
        """Raises MisuseError if the data has fewer samples than a batch."""
        self.mixture, self.seed, self.batch = Mixture.of(data), seed, batch
        self.steps_per_epoch = len(self.mixture) // batch
        if self.steps_per_epoch == 0:
            raise MisuseError(
                f"{', '.join(self.mixture.urls)}: {len(self.mixture)} samples are fewer than one batch of {batch}; "
                "lower train.batch"
            )
        self._epoch = -1
        self._mixture_order: MixtureOrder | None = None
        if len(self.mixture.sets) > 1:
            sizes = [shards.shard_sizes for shards in self.mixture.sets]
            self._mixture_order = MixtureOrder(sizes, self.mixture.weights, seed=seed, batch=batch)

    def global_batch(self, step: int) -> GlobalBatch:
        """The samples of a step in order, and the epoch of each."""
        if self._mixture_order is not None:
            return self._mixture_order.batch(step)
        epoch, row = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            sizes = self.mixture.sets[0].shard_sizes
            self._batches = epoch_batches(sizes, seed=self.seed, epoch=epoch, batch=self.batch)
        return GlobalBatch(self._batches[row], np.full(self.batch, epoch))

    def samples(self, step: int) -> list[int]:
        """The sample numbers of a step, in order."""
        return [int(n) for n in self.global_batch(step).sample_B]

    def keys(self, step: int) -> list[str]:
        return [self.mixture.key(number) for number in self.samples(step)]

    def requests(self, start: int, stop: int, layout: BatchLayout, rank: int = 0) -> Iterator[Request]:
        """The micro-batches of a rank for steps [start, stop)."""
        for step in range(start, stop):
            samples, epochs = self.global_batch(step)
            for samples_b, epochs_b in zip(
                layout.micro_batches(samples, rank, PADDING), layout.micro_batches(epochs, rank, 0), strict=True
            ):
                own_epochs = epochs_b if self._mixture_order is not None else None
                yield Request(step // self.steps_per_epoch, step, samples_b, own_epochs)
