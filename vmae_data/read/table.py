"""A data set on disk, opened: its index, and its sample table mapped into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vmae_data import rng
from vmae_data.decode import FrameSize
from vmae_data.errors import DataError
from vmae_data.format import (
    INDEX,
    SAMPLES,
    Index,
    Label,
    Regular,
    Series,
)
from vmae_data.read.load_index import read_index, table_here
from vmae_data.read.validation import check_table
from vmae_data.storage import StoragePath, storage_path

__all__ = ["LabelKind", "MemberPlace", "SampleView", "Table"]


class LabelKind(Enum):
    """One class a sample, several classes, or values for regression."""

    CLASS = "class"
    CLASSES = "classes"
    VALUES = "values"


class SampleView(NamedTuple):
    """What a frame sampler may know of a sample: numbers only."""

    number: int
    key: str
    frames: int  # kept, in the first phase
    kept: Series  # source frame of every kept frame
    source_frames: int
    rate: float  # of the kept frames, in Hz
    phase_frames: tuple[int, ...]  # kept in each phase


class MemberPlace(NamedTuple):
    """Where an mp4 member lies, and its sum."""

    shard: int
    offset: int
    size: int
    sha256: bytes


class Table:
    """An opened data set: its index, and a row a sample. Open it in the process that reads it; it holds no open file but the table's map.

    Columns are NumPy views of the mapped table, one row a sample; those with a phase axis end in P.
    """

    def __init__(self, url: str, digest: str | None = None) -> None:
        place = storage_path(url)
        self.url = url
        self.folder: StoragePath = place.parent if place.name == INDEX else place
        self.index, self.digest, self.remark = read_index(self.folder, url, digest)
        # By its sum the index fixes the table: whoever gave the sum has checked every row.
        self._table = _map_table(self.folder / SAMPLES, self.index, checked=self.digest == digest)

    @classmethod
    def open(cls, url: str, digest: str | None = None) -> Self:
        """Open a folder of shards or its index.json.

        `digest` is the sum of an index that was opened before: then this machine's copy of a remote one does, and the
        rows are not checked again.
        `remark` says where a copy had to do, because the store did not answer.
        Raises DataError when it isn't one, isn't finished, or is of a newer format.
        """
        return cls(url, digest)

    def __len__(self) -> int:
        return self.index.samples

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @cached_property
    def shard_sizes(self) -> tuple[int, ...]:
        return tuple(shard.nsamples for shard in self.index.shardlist)

    @cached_property
    def label_N(self) -> NDArray[np.int64]:
        """Class numbers, −1 where there is none, and where a label is several classes or values."""
        return np.asarray(self._table.column("label").fill_null(-1).to_numpy(), dtype=np.int64)

    @cached_property
    def label_kind(self) -> LabelKind:
        """What the labels of this data set are."""
        if "labels" not in self._table.column_names:
            return LabelKind.CLASS
        values = pa.types.is_floating(self._table.schema.field("labels").type.value_type)
        return LabelKind.VALUES if values else LabelKind.CLASSES

    def label(self, number: int) -> Label | None:
        """A class number, several of them (ascending), values for regression, or None."""
        if self.label_kind is not LabelKind.CLASS:
            several = self._table.column("labels")[number].as_py()
            return None if several is None else tuple(several)
        label = int(self.label_N[number])
        return label if label >= 0 else None

    @cached_property
    def num_targets(self) -> int:
        """Classes, or values a sample. Raises DataError where not all samples have as many values."""
        if self.label_kind is not LabelKind.VALUES:
            return len(self.classes)
        lengths = pc.unique(pc.list_value_length(self._table.column("labels")).drop_null()).to_pylist()
        if len(lengths) > 1:
            raise DataError(
                f"{self.url}: some samples have {min(lengths)} values, others {max(lengths)}; build it from labels of "
                "as many values each"
            )
        return int(lengths[0]) if lengths else 0

    def targets(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """A row a sample: 1 for each of its several classes and 0 for the others, or its values; zeros without a label."""
        labels = [self.label(number) for number in numbers]
        rows = np.zeros((len(labels), self.num_targets), dtype=np.float32)
        for row, label in zip(rows, labels, strict=True):
            if label is None:
                continue
            if self.label_kind is LabelKind.VALUES:
                row[:] = label
            else:
                row[np.atleast_1d(np.asarray(label, dtype=np.int64))] = 1
        return rows

    @cached_property
    def class_count_K(self) -> NDArray[np.int64]:
        """How many samples each class has; a sample of several classes counts for each."""
        label_N = self.label_N[self.label_N >= 0]
        if self.label_kind is LabelKind.CLASSES:
            label_N = np.asarray(self._table.column("labels").chunk(0).flatten().to_numpy(), dtype=np.int64)
        return np.bincount(label_N, minlength=len(self.classes))

    @cached_property
    def unlabelled(self) -> int:
        """How many samples have no label."""
        return int(self._table.column("label" if self.label_kind is LabelKind.CLASS else "labels").null_count)

    @cached_property
    def source_N(self) -> NDArray[np.int32]:
        """Samples of one source video share a number."""
        return self._numbers("source")

    @cached_property
    def size_N2(self) -> NDArray[np.int32]:
        """Height and width of the kept frames."""
        return np.stack([self._numbers("height"), self._numbers("width")], axis=1)

    def frame_size(self, number: int) -> FrameSize:
        """Of a sample's kept frames."""
        height, width = self.size_N2[number]
        return FrameSize(int(height), int(width))

    @cached_property
    def frames_NP(self) -> NDArray[np.int32]:
        """How many frames each member holds."""
        return self._phases("frames")

    @cached_property
    def is_bt709_N(self) -> NDArray[np.bool_]:
        return np.asarray([name == "bt709" for name in self._table.column("matrix").to_pylist()])

    @cached_property
    def full_range_N(self) -> NDArray[np.bool_]:
        return np.asarray(self._table.column("full_range").to_numpy(), dtype=np.bool_)

    @cached_property
    def rate_N(self) -> NDArray[np.float64]:
        """Kept frames a second."""
        return self._numbers("rate")

    @cached_property
    def source_frames_N(self) -> NDArray[np.int32]:
        """Frames of the sources."""
        return self._numbers("source_frames")

    @cached_property
    def source_rate_N(self) -> NDArray[np.float64]:
        """Frames a second of the sources, as their containers say."""
        if "source_rate" not in self._table.column_names:  # written before there was such a column
            return np.asarray(self.rate_N * (self.index.stride or 1))
        return self._numbers("source_rate")

    def key(self, number: int) -> str:
        return str(self._table.column("key")[number].as_py())

    def sample_number(self, number: int) -> int:
        """The 64 bits that stand for a sample in every draw."""
        return rng.sample_number(self.index.id, self.key(number))

    def view(self, number: int) -> SampleView:
        first, step = (int(self._numbers(name)[number]) for name in ("kept_first", "kept_step"))
        frames = int(self.frames_NP[number, 0])
        kept: Series = Regular(first=first, step=step, count=frames)
        if first < 0:
            kept = tuple(self._table.column("kept_list")[number].as_py())
        return SampleView(
            number=number,
            key=self.key(number),
            frames=frames,
            kept=kept,
            source_frames=int(self._numbers("source_frames")[number]),
            rate=float(self.rate_N[number]),
            phase_frames=tuple(int(n) for n in self.frames_NP[number]),
        )

    def place(self, number: int, phase: int = 0) -> MemberPlace:
        return MemberPlace(
            shard=int(self._numbers("shard")[number]),
            offset=int(self._phases("offset")[number, phase]),
            size=int(self._phases("size")[number, phase]),
            sha256=self._table.column("sha256")[number][phase].as_py(),
        )

    def shard_path(self, shard: int) -> StoragePath:
        return self.folder / self.index.shardlist[shard].url

    def _numbers(self, name: str) -> NDArray[Any]:
        return self._columns.setdefault(name, self._table.column(name).chunk(0).to_numpy())

    def _phases(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            flat = self._table.column(name).chunk(0).flatten().to_numpy()
            self._columns[name] = flat.reshape(len(self), -1)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        return {}


def _map_table(place: StoragePath, index: Index, *, checked: bool) -> pa.Table:
    path = place if isinstance(place, Path) else table_here(place, index.samples_sha256)
    if not path.is_file():
        raise DataError(f"{path}: is missing, or no file; build the data set again")
    try:
        mapped = pa.memory_map(str(path))
        with mapped:
            digest = hashlib.sha256(mapped.read_buffer()).hexdigest()
        if digest != index.samples_sha256:
            raise DataError(f"{path}: its sum is not the one in {INDEX}; build the data set again")
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{path}: can't be read ({error}); build the data set again") from error
    if not checked:
        check_table(table, index, str(path))
    return table
