"""Features → a Parquet or NPZ file. The same command continues it by its journal."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vmae_data.storage import commit_file, temporary_path, write_error
from vmae_train.inference.embed import Embedder, Features
from vmae_train.inference.journal import Journal, JournalRow, check_suffix
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec

__all__ = ["SUFFIXES", "FeaturesFile"]

SUFFIXES = (".parquet", ".npz")
GROUP_BYTES = 64 << 20  # of features in a row group, and at once in memory
BEGINNING = (1980, 1, 1, 0, 0, 0)  # of zip's calendar: the same features give the same bytes


class FeaturesFile(Journal[Features]):
    """The features of earlier runs of the command, and those of this one. Raises as `Journal` does."""

    def __init__(self, path: Path, embedder: Embedder, spec: WindowSpec) -> None:
        check_suffix(path, SUFFIXES)
        self.shape, self.dtype = embedder.shape, embedder.dtype
        self._record = {**embedder.record(), **spec.record()}
        super().__init__(path, self._record)

    def add_result(self, result: VideoResult[Features], version: str) -> None:
        self.add(result.video, version, result.length, [JournalRow.of(*row) for row in result.rows])

    def rows(self) -> Iterator[Features]:
        """All recorded rows; videos in the order in which they were finished first."""
        for entry in self.entries():
            for row in entry.rows:
                yield Features(row.video, row.start, row.end, row.values(self.dtype).reshape(self.shape))

    def write(self) -> int:
        temporary = temporary_path(self.path)
        try:
            count = _write_parquet(temporary, self) if self.path.suffix == ".parquet" else _write_npz(temporary, self)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise write_error(self.path, error) from error
        commit_file(temporary, self.path)
        return count

    def groups(self) -> Iterator[list[Features]]:
        """The rows, so many at a time that they fit into memory."""
        size = max(1, GROUP_BYTES // (int(np.prod(self.shape)) * self.dtype.itemsize))
        group: list[Features] = []
        for row in self.rows():
            group.append(row)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    def schema(self) -> pa.Schema:
        """`features` is a list of fixed size, in as many levels as the features have axes."""
        kind = pa.from_numpy_dtype(self.dtype)
        for length in reversed(self.shape):
            kind = pa.list_(kind, length)
        columns = {"video": pa.string(), "start": pa.float64(), "end": pa.float64(), "features": kind}
        return pa.schema(columns, metadata={"made_with": msgspec.json.encode(self._record)})


def _write_parquet(path: Path, file: FeaturesFile) -> int:
    count, schema = 0, file.schema()
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["video"]) as writer:
        for group in file.groups():
            count += len(group)
            columns = [[getattr(row, name) for row in group] for name in ("video", "start", "end")]
            arrays = [pa.array(column, schema.field(n).type) for n, column in enumerate(columns)]
            arrays.append(_nested(np.stack([row.values for row in group]), schema.field("features").type))
            writer.write_table(pa.table(arrays, schema=schema))
    return count


def _nested(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An array (rows, …) as lists of fixed size, without a Python object for each number."""
    nested = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        nested = pa.FixedSizeListArray.from_arrays(nested, values.shape[axis])
    return nested.cast(kind)


def _write_npz(path: Path, file: FeaturesFile) -> int:
    """Arrays `video`, `start`, `end`, `features`, one row each. An unknown time is NaN."""
    named = [(row.video, row.start, row.end) for row in file.rows()]
    times = np.asarray([(start, end) for _, start, end in named], np.float64).reshape(-1, 2)
    columns = {"video": np.asarray([video for video, _, _ in named], np.str_), "start": times[:, 0], "end": times[:, 1]}
    with zipfile.ZipFile(path, "w") as archive:
        for name, column in columns.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", BEGINNING), "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(column))
        with archive.open(zipfile.ZipInfo("features.npy", BEGINNING), "w", force_zip64=True) as member:
            descr = np.lib.format.dtype_to_descr(file.dtype.newbyteorder("<"))
            shape = (len(named), *file.shape)
            np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
            for group in file.groups():
                member.write(np.stack([row.values for row in group]).tobytes())
    return len(named)
