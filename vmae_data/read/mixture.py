"""Several data sets read as one: their samples are numbered consecutively."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards

__all__ = ["DataChoice", "Mixture", "parse_data"]

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
