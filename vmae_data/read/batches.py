"""The samples of every step of a run, and how the ranks and their micro-batches share them. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_data.read.order import GlobalBatch, MixtureOrder, epoch_batches, rank_slice

__all__ = ["PADDING", "BatchLayout", "DataStage", "Request", "TrainingOrder"]

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


class DataStage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run reads from an epoch on: the first shards of each data set. Accepting appended shards begins a stage."""

    epoch: int
    shards: tuple[int, ...]  # their number in each data set
    digests: tuple[str, ...]  # see `Table.digest_of`

    @classmethod
    def of(cls, mixture: Mixture, epoch: int = 0) -> DataStage:
        """All shards."""
        counts = tuple(len(shards.shard_sizes) for shards in mixture.sets)
        digests = tuple(shards.digest_of(count) for shards, count in zip(mixture.sets, counts, strict=True))
        return cls(epoch=epoch, shards=counts, digests=digests)

    def begins(self, mixture: Mixture) -> bool:
        """Whether the data sets begin with these shards."""
        if len(self.shards) != len(mixture.sets):
            return False
        own = zip(mixture.sets, self.shards, self.digests, strict=True)
        return all(
            count <= len(shards.shard_sizes) and shards.digest_of(count) == digest for shards, count, digest in own
        )


class _StageOrder:
    """The batches of every epoch over the shards of one stage."""

    def __init__(self, mixture: Mixture, stage: DataStage, *, seed: int, batch: int) -> None:
        self.sizes = [shards.shard_sizes[:count] for shards, count in zip(mixture.sets, stage.shards, strict=True)]
        self.steps_per_epoch = sum(map(sum, self.sizes)) // batch
        self._seed, self._batch, self._epoch = seed, batch, -1
        self.mixture: MixtureOrder | None = None
        if len(self.sizes) > 1:
            self.mixture = MixtureOrder(self.sizes, mixture.weights, seed=seed, batch=batch, starts=mixture.starts)

    def global_batch(self, epoch: int, row: int) -> GlobalBatch:
        if self.mixture is not None:
            return self.mixture.batch(epoch * self.steps_per_epoch + row)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = epoch_batches(self.sizes[0], seed=self._seed, epoch=epoch, batch=self._batch)
        return GlobalBatch(self._batches[row], np.full(self._batch, epoch))


class TrainingOrder:
    """The samples of every step of a run. Pure: steps can be computed in any order.

    `steps_per_epoch` is that of the first stage.
    """

    def __init__(
        self, data: Shards | Mixture, *, seed: int, batch: int, stages: Sequence[DataStage] | None = None
    ) -> None:
        """`stages` begin at epoch 0. [default: one with all samples]

        Raises MisuseError if the data has fewer samples than a batch.
        """
        self.mixture, self.seed, self.batch = Mixture.of(data), seed, batch
        self.stages = tuple(stages or (DataStage.of(self.mixture),))
        self._orders = [_StageOrder(self.mixture, stage, seed=seed, batch=batch) for stage in self.stages]
        self.steps_per_epoch = self._orders[0].steps_per_epoch
        if self.steps_per_epoch == 0:
            raise MisuseError(
                f"{', '.join(self.mixture.urls)}: {len(self.mixture)} samples are fewer than one batch of {batch}; "
                "lower train.batch"
            )
        self._first_steps = [0]
        for (before, after), order in zip(itertools.pairwise(self.stages), self._orders, strict=False):
            self._first_steps.append(self._first_steps[-1] + (after.epoch - before.epoch) * order.steps_per_epoch)

    def _locate(self, step: int) -> tuple[_StageOrder, int, int]:
        """The order, epoch and row of a step's batch."""
        number = bisect_right(self._first_steps, step) - 1
        order = self._orders[number]
        epochs, row = divmod(step - self._first_steps[number], order.steps_per_epoch)
        return order, self.stages[number].epoch + epochs, row

    def epoch_of(self, step: int) -> int:
        return self._locate(step)[1]

    def next_epoch(self, step: int) -> int:
        """The first epoch that has not begun when `step` steps are done."""
        _, epoch, row = self._locate(step)
        return epoch + (row > 0)

    def next_stages(self, done: int) -> tuple[DataStage, ...]:
        """The stages, and one with all shards if there are more: from the first epoch that `done` steps did not begin.

        Epoch 0 keeps its shards, because it gives the number of steps.
        """
        everything = DataStage.of(self.mixture, max(1, self.next_epoch(done)))
        if self.stages[-1].shards == everything.shards:
            return self.stages
        return (*(stage for stage in self.stages if stage.epoch < everything.epoch), everything)

    def samples_at_start(self) -> list[int]:
        """The sample numbers of the first stage."""
        counts = [sum(sizes) for sizes in self._orders[0].sizes]
        return [start + n for start, count in zip(self.mixture.starts, counts, strict=True) for n in range(count)]

    def global_batch(self, step: int) -> GlobalBatch:
        """The samples of a step in order, and the epoch of each."""
        order, epoch, row = self._locate(step)
        return order.global_batch(epoch, row)

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
                own_epochs = epochs_b if len(self.mixture.sets) > 1 else None
                yield Request(self.epoch_of(step), step, samples_b, own_epochs)
