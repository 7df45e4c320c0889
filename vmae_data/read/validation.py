"""index.json and the sample table → an error if a value is outside the bounds of what a build writes.

Anybody may have written them, and a wrong table can have the right checksum. So all values are checked when a data set is
opened, before they name a file, size an allocation or choose a frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vmae_data.decode import MAX_PIXELS, MAX_SIDE
from vmae_data.errors import DataError
from vmae_data.format import INDEX, SAMPLES, Index

__all__ = ["MAX_INDEX_BYTES", "check_index", "check_table"]

MAX_INDEX_BYTES = 1 << 30  # the index of a million shards has a quarter of that
MAX_SAMPLES = 1 << 40
MAX_PHASES = 1000
MAX_STRIDE = 1 << 31
_TAR = re.compile(r"shard-[0-9]{6,12}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = r"\A[a-z0-9_-]{1,90}\z"
_COLUMNS = {
    "key": pa.string(),
    "source": pa.int32(),
    "shard": pa.int32(),
    "label": pa.int32(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_frames": pa.int32(),
    "rate": pa.float64(),
    "matrix": pa.string(),
    "full_range": pa.bool_(),
    "kept_first": pa.int32(),
    "kept_step": pa.int32(),
    "kept_list": pa.list_(pa.int32()),
}
_PHASE_COLUMNS = {"frames": pa.int32(), "offset": pa.int64(), "size": pa.int64(), "sha256": pa.binary(32)}
_LABEL_TYPES = (pa.list_(pa.int32()), pa.list_(pa.float64()))
_NULLABLE = ("label", "labels", "kept_list")


def check_index(index: Index, where: str) -> None:
    """Raises DataError, naming `where`, for names, checksums and numbers that no build writes."""
    for problem in _index_problems(index):
        raise DataError(f"{where}: {problem}. Build the data set again, or download it again")


def _index_problems(index: Index) -> Iterator[str]:
    if not _SHA256.fullmatch(index.samples_sha256):
        yield f"the checksum of {SAMPLES} is {_short(index.samples_sha256)}, not 64 hexadecimal digits"
    seen: set[str] = set()
    for shard in index.shardlist:
        if not _TAR.fullmatch(shard.url) or shard.url in seen:
            yield f"names the shard {_short(shard.url)}; expected shard-000000.tar and so on, each once"
        seen.add(shard.url)
        if not (_SHA256.fullmatch(shard.sha256) and _SHA256.fullmatch(shard.marker_sha256)):
            yield f"a checksum of {shard.url} is not 64 hexadecimal digits"
        if not 0 <= shard.nsamples < MAX_SAMPLES or shard.filesize < 0:
            yield f"states {shard.nsamples} samples in {shard.filesize} bytes of {shard.url}"
    for name, value, most in (
        ("short_side", index.short_side, MAX_SIDE),
        ("phases", index.phases, MAX_PHASES),
        ("stride", 1 if index.stride is None else index.stride, MAX_STRIDE),
    ):
        if not 1 <= value <= most:
            yield f"{name} is {value}; expected 1 to {most}"
    if (index.stride is None) == (index.rate is None):
        yield "states both a stride and a frame rate, or neither"
    if index.rate is not None and not (1 <= index.rate.num <= MAX_STRIDE and 1 <= index.rate.den <= MAX_STRIDE):
        yield f"the frame rate is {index.rate.num}/{index.rate.den}"


def check_table(table: pa.Table, index: Index, where: str) -> None:
    """Raises DataError, naming `where`, for columns and values that no build writes. A million rows take under a second."""
    try:
        for problem in _table_problems(table, index):
            raise DataError(f"{where}: {problem}. Build the data set again, or download it again")
    except (pa.ArrowException, MemoryError) as error:
        raise DataError(
            f"{where}: is not a table of samples ({_short(str(error))}). Build the data set again"
        ) from error


def _table_problems(table: pa.Table, index: Index) -> Iterator[str]:
    yield from _schema_problems(table.schema, index)
    listed = sum(shard.nsamples for shard in index.shardlist)
    if not index.samples == table.num_rows == listed > 0:
        yield f"has {table.num_rows} rows; {INDEX} states {index.samples} samples, and {listed} in its shards"
    table.validate(full=True)  # finds offsets that point outside the buffers
    if any(column.num_chunks != 1 for column in table.columns):
        yield "is not one record batch"
    for name in table.column_names:
        column = table.column(name).chunk(0)
        inner = column.flatten() if pa.types.is_list(column.type) or name in _PHASE_COLUMNS else None
        if (column.null_count and name not in _NULLABLE) or (inner is not None and inner.null_count):
            yield f"{name}: has an empty value"
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    yield from _value_problems(columns, index)
    yield from _range_problems(columns, index)


def _schema_problems(schema: pa.Schema, index: Index) -> Iterator[str]:
    expected = {**_COLUMNS, **{name: pa.list_(kind, index.phases) for name, kind in _PHASE_COLUMNS.items()}}
    if len(set(schema.names)) != len(schema.names):
        yield "has two columns of one name"
    for name, kind in expected.items():
        actual = schema.field(name).type if name in schema.names else None
        if actual is None or not actual.equals(kind):
            yield f"{name}: is {_short(str(actual)) if actual is not None else 'missing'}; expected {kind}"
    if "source_rate" in schema.names and schema.field("source_rate").type != pa.float64():
        yield "source_rate: is not double"
    if "labels" in schema.names and schema.field("labels").type not in _LABEL_TYPES:
        yield "labels: is not a list of numbers"


def _value_problems(columns: dict[str, Any], index: Index) -> Iterator[str]:
    """Keys, sizes, frame rates, labels and kept frames."""
    key = columns["key"]
    if not pc.all(pc.match_substring_regex(key, _KEY)).as_py() or pc.count_distinct(key).as_py() != len(key):
        yield "key: expected distinct keys of 1 to 90 of a-z, 0-9, _ and -"
    width, height = _numbers(columns["width"]), _numbers(columns["height"])
    if _outside(width, 1, MAX_SIDE) or _outside(height, 1, MAX_SIDE) or (width * height > MAX_PIXELS).any():
        yield f"width, height: a frame has no pixels, or more than {MAX_PIXELS}"
    for name in ("rate", *(["source_rate"] if "source_rate" in columns else ())):
        rate = columns[name].to_numpy()
        if not (np.isfinite(rate) & (rate > 0) & (rate <= 1e6)).all():
            yield f"{name}: expected frame rates above 0, up to a million frames per second"
    if not pc.all(pc.is_in(columns["matrix"], pa.array(["bt709", "bt601"]))).as_py():
        yield "matrix: expected bt709 or bt601"
    labels = [columns["label"].drop_null()]
    if "labels" in columns and pa.types.is_integer(columns["labels"].type.value_type):
        labels.append(columns["labels"].flatten())
    if any(_outside(_numbers(one), 0, len(index.classes) - 1) for one in labels):
        yield f"label: is not one of the {len(index.classes)} classes"
    frames = _first(columns["frames"])
    first, step = _numbers(columns["kept_first"]), _numbers(columns["kept_step"])
    counts = pc.fill_null(pc.list_value_length(columns["kept_list"]), -1).to_numpy(zero_copy_only=False)
    # Kept frames are a list of all, or a first frame and a step.
    good = np.where(first < 0, counts == frames, (step >= (frames > 1)) & (counts == -1))
    if not good.all() or _outside(_numbers(columns["kept_list"].flatten()), 0, None):
        yield "kept_first, kept_step, kept_list: do not state which frames were kept"
    if _outside(_numbers(columns["source"]), 0, None) or _outside(_numbers(columns["source_frames"]), 1, None):
        yield "source, source_frames: a source below 0, or without frames"


def _range_problems(columns: dict[str, Any], index: Index) -> Iterator[str]:
    """Rows are in the order of the shards, and each member is inside its shard."""
    shard = _numbers(columns["shard"])
    sizes = np.asarray([one.nsamples for one in index.shardlist])
    if not np.array_equal(shard, np.repeat(np.arange(len(sizes)), sizes)):
        yield f"shard: the rows differ from the shards in {INDEX}"
        return
    filesize_N1 = np.asarray([one.filesize for one in index.shardlist])[shard][:, None]
    offset, size, frames = (
        columns[name].flatten().to_numpy().reshape(len(shard), -1) for name in ("offset", "size", "frames")
    )
    if (
        _outside(offset, 0, None)
        or _outside(size, 1, None)
        or (size > filesize_N1).any()
        or (offset > filesize_N1 - size).any()
    ):
        yield "offset, size: a member is outside its shard"
    # An mp4 stores the size of every frame, so it has more bytes than frames.
    if _outside(frames, 1, None) or (frames > size).any():
        yield "frames: a member has none, or more than its bytes can hold"


def _numbers(column: Any) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _first(column: Any) -> NDArray[np.int64]:
    """The first phase of a column with one value per phase."""
    return _numbers(column.flatten()).reshape(len(column), -1)[:, 0]


def _outside(values: NDArray[np.int64], least: int, most: int | None) -> bool:
    return bool(len(values)) and bool(values.min() < least or (most is not None and values.max() > most))


def _short(text: str) -> str:
    """Text from outside, safe to print."""
    printable = repr(text)
    return printable if len(printable) <= 80 else f"{printable[:77]}…"
