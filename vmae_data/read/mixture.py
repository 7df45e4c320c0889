"""--data arguments → several data sets read as one, with their samples numbered consecutively."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards

__all__ = ["Mixture", "parse_data"]

_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
_LIKE_A_NUMBER = re.compile(r"|-[\d.]+|nan|[+-]?inf|[\d.]+e[+-]?\d+", re.I)
_HOST_ONLY = re.compile(r"https?://[^/]*")


def parse_data(text: str) -> tuple[str, float | None]:
    """`URL` or `URL:WEIGHT`. A port, a drive, and the colon of an existing path are not weights.

    Raises MisuseError if the weight is 0 or is not a number.
    """
    if not text:
        raise MisuseError("--data is empty. Name a folder of shards or its index.json")
    url, colon, last = text.rpartition(":")
    if colon and _LIKE_A_NUMBER.fullmatch(last) and not Path(text).exists():
        raise MisuseError(
            f"--data {text}: a weight of {last or 'nothing'}; expected a number above 0, such as 0.25, or no weight"
        )
    if not colon or not url or not _NUMBER.fullmatch(last) or _HOST_ONLY.fullmatch(url) or Path(text).exists():
        return text, None
    if float(last) <= 0 or not math.isfinite(float(last)):
        raise MisuseError(f"--data {text}: a weight of {last}; expected a number above 0, or no weight")
    return url, float(last)


class Mixture:
    """One or several data sets read as one: the samples of the second follow those of the first, and so on. N samples.

    `weights` are the shares of the data sets in any unit. [default: the numbers of samples]
    """

    def __init__(self, sets: Sequence[Shards], weights: Sequence[float] = ()) -> None:
        assert sets
        assert len(weights) in (0, len(sets))
        self.sets = tuple(sets)
        self.weights = tuple(weights)
        lengths = [len(shards) for shards in sets]
        self.starts = tuple(int(n) for n in np.cumsum([0, *lengths[:-1]]))

    @classmethod
    def open(cls, choices: Sequence[tuple[str, float | None]]) -> Mixture:
        """Open all data sets: (url, weight or None).

        Raises MisuseError if a set is named twice or only some have weights, DataError as `Shards.open` does.
        """
        weights = [weight for _, weight in choices if weight is not None]
        if weights and len(weights) < len(choices):
            bare = next(url for url, weight in choices if weight is None)
            raise MisuseError(f"--data {bare}: has no weight, but others have. Give all of them a weight, or none")
        sets = [Shards.open(url) for url, _ in choices]
        digests = [shards.digest for shards in sets]
        for position, digest in enumerate(digests):
            if digest in digests[:position]:
                raise MisuseError(f"--data {choices[position][0]}: is named twice. Name it once, with a weight")
        return cls(sets, weights if len(sets) > 1 else ())

    @classmethod
    def of(cls, data: Shards | Mixture) -> Mixture:
        """A single set becomes a mixture of one."""
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
        """The digest of each set's list of videos. It does not depend on how the shards were built."""
        return tuple(shards.index.id for shards in self.sets)

    def locate(self, number: int) -> tuple[int, int]:
        """The position of a sample's data set in the mixture, and the sample's number in that set."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return part, number - self.starts[part]

    def key(self, number: int) -> str:
        """A sample's key. In a mixture of several sets it names the set, because two sets may share keys."""
        part, row = self.locate(number)
        key = self.sets[part].key(row)
        return key if len(self.sets) == 1 else f"{key} (data {part + 1})"

    def sample_number(self, number: int) -> int:
        """The 64 bits that identify a sample in every random number."""
        part, row = self.locate(number)
        return self.sets[part].sample_number(row)

    @cached_property
    def label_N(self) -> NDArray[np.int64]:
        return np.concatenate([shards.label_N for shards in self.sets])

    def targets(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """Rows of `Table.targets`. All sets must have the same kind and number of labels."""
        located = [self.locate(number) for number in numbers]
        return np.concatenate([self.sets[part].targets((row,)) for part, row in located])

    @cached_property
    def is_bt709_N(self) -> NDArray[np.bool_]:
        return np.concatenate([shards.is_bt709_N for shards in self.sets])

    @cached_property
    def full_range_N(self) -> NDArray[np.bool_]:
        return np.concatenate([shards.full_range_N for shards in self.sets])

    @cached_property
    def may_flip_N(self) -> NDArray[np.bool_]:
        return np.concatenate([np.full(len(shards), shards.index.may_flip) for shards in self.sets])
