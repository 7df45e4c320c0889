"""Several data sets trained on as one: their samples numbered through, and which of them fills each slot.

A slot is a place in the endless row of global batches. The set of a slot is a pure function of (seed, slot), and the k-th slot
that falls to a set takes the k-th sample of that set's own endless row of epochs: so any batch can be made at any time.

B samples of a batch, N of all sets, S sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data import rng
from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_data.read.order import epoch_sequence
from vmae_data.rng import Purpose

__all__ = ["DataChoice", "Mixture", "MixtureBatch", "MixtureOrder", "parse_data"]

_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
_LIKE_A_NUMBER = re.compile(r"|-[\d.]+|nan|[+-]?inf|[\d.]+e[+-]?\d+", re.I)
_HOST_ONLY = re.compile(r"https?://[^/]*")


class DataChoice(NamedTuple):
    """A data set, and its share of the samples in proportion to the other sets' (None: not said)."""

    url: str
    weight: float | None = None


def parse_data(text: str) -> DataChoice:
    """`URL` or `URL:WEIGHT`; a port, a drive and a path that is there with its colon are no weights.

    Raises MisuseError for a weight of 0.
    """
    if not text:
        raise MisuseError("--data: is empty; name a folder of shards or its index.json")
    url, colon, last = text.rpartition(":")
    if colon and _LIKE_A_NUMBER.fullmatch(last) and not Path(text).exists():
        raise MisuseError(
            f"--data {text}: a weight of {last or 'nothing'}; expected a number above 0, such as 0.25, or no weight"
        )
    if not colon or not url or not _NUMBER.fullmatch(last) or _HOST_ONLY.fullmatch(url) or Path(text).exists():
        return DataChoice(text)
    if float(last) <= 0 or not math.isfinite(float(last)):
        raise MisuseError(f"--data {text}: a weight of {last}; expected a number above 0, or no weight")
    return DataChoice(url, float(last))


class _Located(NamedTuple):
    part: int
    number: int


class Mixture:
    """One data set or several, read as one: numbers of the second follow those of the first, and so on.

    `weights` are the sets' shares of the samples, in any unit; left out, each set has as many as it is long.
    """

    def __init__(self, sets: Sequence[Shards], weights: Sequence[float] = ()) -> None:
        assert sets
        assert len(weights) in (0, len(sets))
        self.sets = tuple(sets)
        self.weights = tuple(weights)
        lengths = [len(shards) for shards in sets]
        self.starts = tuple(int(n) for n in np.cumsum([0, *lengths[:-1]]))

    @classmethod
    def open(cls, choices: Sequence[DataChoice]) -> Mixture:
        """Open all sets.

        Raises MisuseError where a set is named twice or only some have weights, DataError as `Shards.open` does.
        """
        weights = [choice.weight for choice in choices if choice.weight is not None]
        if weights and len(weights) < len(choices):
            bare = next(choice.url for choice in choices if choice.weight is None)
            raise MisuseError(f"--data {bare}: has no weight, others have; give every one a weight, or none")
        sets = [Shards.open(choice.url) for choice in choices]
        digests = [shards.digest for shards in sets]
        for place, digest in enumerate(digests):
            if digest in digests[:place]:
                raise MisuseError(f"--data {choices[place].url}: is there twice; name it once, with a weight")
        return cls(sets, weights if len(sets) > 1 else ())

    @classmethod
    def of(cls, data: Shards | Mixture) -> Mixture:
        """A single set is a mix of one."""
        return data if isinstance(data, Mixture) else cls((data,))

    def __len__(self) -> int:
        return sum(len(shards) for shards in self.sets)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(shards.url for shards in self.sets)

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(shards.digest for shards in self.sets)

    @property
    def listings(self) -> tuple[str, ...]:
        """Digests of the videos that each set was built from, however they were prepared."""
        return tuple(shards.index.id for shards in self.sets)

    def locate(self, number: int) -> _Located:
        """Which set a sample is of, and its number there."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return _Located(part, number - self.starts[part])

    def key(self, number: int) -> str:
        """A sample's key; where there are several sets, with its set's place in the mix, for two may have the same keys."""
        part, row = self.locate(number)
        key = self.sets[part].key(row)
        return key if len(self.sets) == 1 else f"{key} (data {part + 1})"

    def sample_number(self, number: int) -> int:
        """The 64 bits that stand for a sample in every draw."""
        part, row = self.locate(number)
        return self.sets[part].sample_number(row)

    @cached_property
    def label_N(self) -> NDArray[np.int64]:
        return np.concatenate([shards.label_N for shards in self.sets])

    def targets(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """Rows of `Table.targets`; the sets have the same kind of labels, and as many."""
        places = [self.locate(number) for number in numbers]
        return np.concatenate([self.sets[place.part].targets((place.number,)) for place in places])

    @cached_property
    def is_bt709_N(self) -> NDArray[np.bool_]:
        return np.concatenate([shards.is_bt709_N for shards in self.sets])

    @cached_property
    def full_range_N(self) -> NDArray[np.bool_]:
        return np.concatenate([shards.full_range_N for shards in self.sets])

    @cached_property
    def may_flip_N(self) -> NDArray[np.bool_]:
        return np.concatenate([np.full(len(shards), shards.index.may_flip) for shards in self.sets])


class MixtureBatch(NamedTuple):
    """Sample numbers of a global batch, and the epoch of its own set that each is of."""

    sample_B: NDArray[np.int64]
    epoch_B: NDArray[np.int64]


class MixtureOrder:
    """The global batches of a mix. Pure; what was counted once is kept."""

    def __init__(
        self, shard_sizes: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int, batch: int
    ) -> None:
        self._sizes, self._seed, self._batch = shard_sizes, seed, batch
        self._lengths = [sum(sizes) for sizes in shard_sizes]
        self._starts = np.cumsum([0, *self._lengths[:-1]])
        self._bounds = _bounds(weights or self._lengths)
        self.steps_per_epoch = sum(self._lengths) // batch
        self._before = [np.zeros(len(shard_sizes), dtype=np.int64)]  # slots of each set before each epoch
        self._epoch = -1
        self._sequences: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def batch(self, step: int) -> MixtureBatch:
        """The batch of a step of the run, counted over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._choice_MB = self._choices(epoch)
            counts_MS = self._counts(self._choice_MB)
            self._first_MS = self._slots_before(epoch) + np.cumsum(counts_MS, axis=0) - counts_MS
            self._epoch = epoch
        choice_B = self._choice_MB[place]
        sample_B, epoch_B = np.empty(self._batch, dtype=np.int64), np.empty(self._batch, dtype=np.int64)
        for part, length in enumerate(self._lengths):
            mine = np.flatnonzero(choice_B == part)
            own, within = np.divmod(self._first_MS[place, part] + np.arange(len(mine)), length)
            epoch_B[mine] = own
            for one in np.unique(own):
                sample_B[mine[own == one]] = self._starts[part] + self._sequence(part, int(one))[within[own == one]]
        return MixtureBatch(sample_B, epoch_B)

    def _choices(self, epoch: int) -> NDArray[np.int64]:
        """The set of each slot of an epoch, (steps, B)."""
        count = self.steps_per_epoch * self._batch
        slots = np.arange(epoch * count, (epoch + 1) * count, dtype=np.uint64)
        hashes = rng.bits(self._seed, 0, 0, 0, 0, Purpose.MIX, slots)
        return np.searchsorted(self._bounds, hashes, side="right").reshape(self.steps_per_epoch, self._batch)

    def _counts(self, choice_MB: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([(choice_MB == part).sum(axis=1) for part in range(len(self._lengths))], axis=1)

    def _slots_before(self, epoch: int) -> NDArray[np.int64]:
        while len(self._before) <= epoch:
            counts_MS = self._counts(self._choices(len(self._before) - 1))
            self._before.append(self._before[-1] + counts_MS.sum(axis=0))
        return self._before[epoch]

    def _sequence(self, part: int, epoch: int) -> NDArray[np.int64]:
        known = self._sequences.get(part)
        if known is None or known[0] != epoch:
            known = (epoch, epoch_sequence(self._sizes[part], seed=self._seed, epoch=epoch))
            self._sequences[part] = known
        return known[1]


def _bounds(weights: Sequence[float]) -> NDArray[np.uint64]:
    """The hashes from which on the second, third, … set has a slot; in whole numbers, so equal on every machine."""
    shares = [Fraction(weight) for weight in weights]
    sums = [sum(shares[: place + 1], Fraction(0)) for place in range(len(shares) - 1)]
    return np.asarray([int(found / sum(shares) * 2**64) for found in sums], dtype=np.uint64)
