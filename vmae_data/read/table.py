"""index.json and samples.arrow → a table with one row per sample, mapped into memory and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vmae_data import rng
from vmae_data.errors import DataError, VmaeError
from vmae_data.format import INDEX, PLAN_TABLE, SAMPLES, Index, Label, Regular, Series, decode_record, encode_record
from vmae_data.names import source_key
from vmae_data.read.load_index import copy_table, read_index
from vmae_data.read.validation import check_index, check_table
from vmae_data.storage import StoragePath, read_bytes, storage_path

__all__ = ["LabelKind", "MemberRange", "SampleView", "Table"]


class LabelKind(Enum):
    """One class per sample, several classes, or values for regression."""

    CLASS = "class"
    CLASSES = "classes"
    VALUES = "values"


class SampleView(NamedTuple):
    """What a frame sampler knows of a sample."""

    number: int
    key: str
    frames: int  # kept in the first phase
    kept: Series  # source frame of each kept frame
    source_frames: int
    rate: float  # of the kept frames, in Hz
    phase_frames: tuple[int, ...]  # kept in each phase


class MemberRange(NamedTuple):
    """The bytes of an mp4 member in its shard, and their checksum."""

    shard: int
    offset: int
    size: int
    sha256: bytes


class Table:
    """An opened data set: its index, and NumPy views of the mapped sample table. Open it in the process that reads it.

    N samples, K classes, P phases.
    """

    def __init__(self, url: str | Path, digest: str | None = None) -> None:
        path = storage_path(url)
        self.url = str(url)
        self.folder: StoragePath = path.parent if path.name == INDEX else path
        data, self.note = read_index(self.folder, self.url, digest)
        self.digest = hashlib.sha256(data).hexdigest()
        self.index = decode_record(data, Index, str(self.folder / INDEX))
        check_index(self.index, str(self.folder / INDEX))
        # The index has the table's checksum: whoever knows the digest of the index has checked every row.
        self._table = _map_table(self.folder / SAMPLES, self.index, checked=self.digest == digest)
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, url: str | Path, digest: str | None = None) -> Self:
        """Open a folder of shards or its index.json.

        `digest` is the checksum of an index that was opened before. Then this machine's copy of a remote index is used, and
        the rows are not checked again. `note` is a message for the user if the store did not answer and a copy was used.
        Raises DataError if it is not a data set, is not finished, or has a newer format.
        """
        return cls(url, digest)

    def __len__(self) -> int:
        return self.index.samples

    def digest_of(self, shards: int) -> str:
        """A digest of the first shards and of all that an append to the data set does not change."""
        part = msgspec.structs.replace(
            self.index,
            samples=0,
            samples_sha256="",
            classes=(),
            plan="",
            plan_table_sha256="",
            failures={},
            source_bytes=None,
            shardlist=self.index.shardlist[:shards],
        )
        return hashlib.sha256(encode_record(part)).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @cached_property
    def shard_sizes(self) -> tuple[int, ...]:
        return tuple(shard.nsamples for shard in self.index.shardlist)

    @cached_property
    def label_N(self) -> NDArray[np.int64]:
        """Class numbers; −1 without a label, or if labels are several classes or values."""
        return np.asarray(self._table.column("label").fill_null(-1).to_numpy(), dtype=np.int64)

    @cached_property
    def label_kind(self) -> LabelKind:
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
        """Classes, or values per sample. Raises DataError if samples have different numbers of values."""
        if self.label_kind is not LabelKind.VALUES:
            return len(self.classes)
        lengths = pc.unique(pc.list_value_length(self._table.column("labels")).drop_null()).to_pylist()
        if len(lengths) > 1:
            raise DataError(
                f"{self.url}: some samples have {min(lengths)} values, others {max(lengths)}; "
                "build it from labels with equal numbers of values"
            )
        return int(lengths[0]) if lengths else 0

    def targets(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """(numbers, K): 1 for each class of a sample and 0 for the others, or its values; zeros without a label."""
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
        """Samples per class; a sample of several classes counts for each."""
        label_N = self.label_N[self.label_N >= 0]
        if self.label_kind is LabelKind.CLASSES:
            label_N = np.asarray(self._table.column("labels").chunk(0).flatten().to_numpy(), dtype=np.int64)
        return np.bincount(label_N, minlength=len(self.classes))

    @cached_property
    def unlabelled(self) -> int:
        """The number of samples without a label."""
        return int(self._table.column("label" if self.label_kind is LabelKind.CLASS else "labels").null_count)

    @cached_property
    def source_N(self) -> NDArray[np.int32]:
        """Samples of one source video share a number."""
        return self._numbers("source")

    @cached_property
    def size_N2(self) -> NDArray[np.int32]:
        """Height and width of the kept frames."""
        return np.stack([self._numbers("height"), self._numbers("width")], axis=1)

    def frame_size(self, number: int) -> tuple[int, int]:
        """Height and width of a sample's kept frames."""
        height, width = self.size_N2[number]
        return int(height), int(width)

    @cached_property
    def frames_NP(self) -> NDArray[np.int32]:
        """Frames of each member."""
        return self._phases("frames")

    @cached_property
    def is_bt709_N(self) -> NDArray[np.bool_]:
        return np.asarray([name == "bt709" for name in self._table.column("matrix").to_pylist()])

    @cached_property
    def full_range_N(self) -> NDArray[np.bool_]:
        return np.asarray(self._table.column("full_range").to_numpy(), dtype=np.bool_)

    @cached_property
    def rate_N(self) -> NDArray[np.float64]:
        """Kept frames per second."""
        return self._numbers("rate")

    @cached_property
    def source_frames_N(self) -> NDArray[np.int32]:
        """Frames of the sources."""
        return self._numbers("source_frames")

    @cached_property
    def source_rate_N(self) -> NDArray[np.float64]:
        """Frames per second of the sources, as their containers state."""
        if "source_rate" not in self._table.column_names:  # an older table
            return np.asarray(self.rate_N * (self.index.stride or 1))
        return self._numbers("source_rate")

    def key(self, number: int) -> str:
        return str(self._table.column("key")[number].as_py())

    def sample_number(self, number: int) -> int:
        """The 64 bits that identify a sample in every random number."""
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

    def member_range(self, number: int, phase: int = 0) -> MemberRange:
        return MemberRange(
            shard=int(self._numbers("shard")[number]),
            offset=int(self._phases("offset")[number, phase]),
            size=int(self._phases("size")[number, phase]),
            sha256=self._table.column("sha256")[number][phase].as_py(),
        )

    def shard_path(self, shard: int) -> StoragePath:
        return self.folder / self.index.shardlist[shard].url

    def source_paths(self, numbers: Sequence[int]) -> list[str | None]:
        """The path of each sample's source video, relative to the folder of videos.

        None for each if the plan is missing or does not match the index: reading shards does not need it.
        """
        try:
            data = read_bytes(self.folder / PLAN_TABLE)
            if hashlib.sha256(data).hexdigest() != self.index.plan_table_sha256:
                return [None] * len(numbers)
            plan = pa.ipc.open_file(pa.py_buffer(data)).read_all()
            # By key: the plan lists failed sources too, so its rows are not the source numbers.
            keys = pa.array([source_key(self.key(number)) for number in numbers], pa.string())
            rows = pc.index_in(keys, plan.column("key"))
            return [None if path is None else str(path) for path in plan.column("path").take(rows).to_pylist()]
        except (VmaeError, OSError, MemoryError, LookupError, pa.ArrowException):
            return [None] * len(numbers)

    def _numbers(self, name: str) -> NDArray[Any]:
        return self._columns.setdefault(name, self._table.column(name).chunk(0).to_numpy())

    def _phases(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            flat = self._table.column(name).chunk(0).flatten().to_numpy()
            self._columns[name] = flat.reshape(len(self), -1)
        return self._columns[name]


def _map_table(path: StoragePath, index: Index, *, checked: bool) -> pa.Table:
    local = path if isinstance(path, Path) else copy_table(path, index.samples_sha256)
    if not local.is_file():
        raise DataError(f"{local}: is missing, or is not a file. Build the data set again")
    try:
        mapped = pa.memory_map(str(local))
        with mapped:
            digest = hashlib.sha256(mapped.read_buffer()).hexdigest()
        if digest != index.samples_sha256:
            raise DataError(f"{local}: checksum differs from {INDEX}. Build the data set again")
        table = pa.ipc.open_file(pa.memory_map(str(local))).read_all()
    except (OSError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{local}: can't be read ({error}). Build the data set again") from error
    if not checked:
        check_table(table, index, str(local))
    return table
