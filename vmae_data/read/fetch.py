"""Row 9. Sample numbers → verified bytes, by range reads from the shards."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

from vmae_data.errors import DataError, SampleError
from vmae_data.read.table import MemberPlace, Table
from vmae_data.store import read_range

__all__ = ["Fetcher"]

OPEN_SHARDS = 64
TRIES = 2


class Fetcher:
    """Reads samples of one data set; keeps a bounded number of shards open."""

    def __init__(self, shards: Table) -> None:
        self.shards = shards
        self._open: OrderedDict[int, int] = OrderedDict()

    def fetch(self, number: int, phase: int = 0) -> bytes:
        """The bytes of a sample's mp4.

        Raises SampleError where they are still wrong after reading again, DataError where the shard is gone.
        """
        place = self.shards.place(number, phase)
        for _ in range(TRIES):
            data = self._read(place)
            if len(data) == place.size and hashlib.sha256(data).digest() == place.sha256:
                return data
        raise SampleError(
            self.shards.key(number),
            f"{len(data)} of {place.size} bytes in {self.shards.shard_path(place.shard).name}, and the sum is wrong",
        )

    def _read(self, place: MemberPlace) -> bytes:
        path = self.shards.shard_path(place.shard)
        if not isinstance(path, Path):
            return read_range(path, place.offset, place.size)
        try:
            descriptor = self._descriptor(place.shard)
            # What the table says may be anything; memory is taken for what is there.
            there = max(0, os.fstat(descriptor).st_size - place.offset)
            return os.pread(descriptor, min(place.size, there), place.offset) if there else b""
        except OSError as error:
            raise DataError(
                f"{path}: can't be read ({error.strerror}); check the disk, or build the shard again"
            ) from error

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(str(self.shards.shard_path(shard)), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return self._open[shard]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
