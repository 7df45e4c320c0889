"""`vmae-shard audit`: what is odd in finished shards, which samples repeat others, and which to leave out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from vmae_data.audit.flags import AuditSpec, DataSet, Judged, Row, judge
from vmae_data.audit.measure_samples import Look, Looked, batches
from vmae_data.errors import DataError, MisuseError
from vmae_data.html import printable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressStyle, meter
from vmae_data.read.dataset import Shards
from vmae_data.storage import StoragePath, commit_bytes

__all__ = ["AuditSpec", "Audited", "audit_shards", "check_table_name", "print_counts", "write_table"]

SAMPLES_A_TASK = 16
TABLES = (".parquet", ".csv")


class Audited(NamedTuple):
    """The opened data sets, and what was found."""

    data_sets: tuple[Shards, ...]
    judged: Judged


def audit_shards(
    folders: Sequence[str], spec: AuditSpec, *, workers: int, style: ProgressStyle = ProgressStyle.AUTO
) -> Audited:
    """Look at every frame of every sample. What comes out does not depend on the number of workers.

    A sample that can't be read is a row that says so. Raises DataError where a folder is no data set or a shard is gone,
    MisuseError where one is named twice.
    """
    shards = tuple(Shards.open(folder) for folder in folders)
    _refuse_twice(shards)
    looked = _look_at_all(shards, workers, style)
    return Audited(shards, judge(looked, [DataSet(one.url, one.index.id) for one in shards], spec))


def _refuse_twice(shards: Sequence[Shards]) -> None:
    seen: dict[StoragePath, str] = {}
    for one in shards:
        before = seen.setdefault(one.folder.resolve(), one.url)
        if before is not one.url:
            raise MisuseError(f"{one.url}: named twice (as {before} too): all of it would be a duplicate; name it once")


class _Batch(NamedTuple):
    data_set: int
    numbers: tuple[int, ...]


def _batches(shards: Sequence[Shards]) -> Iterator[_Batch]:
    for data_set, one in enumerate(shards):
        for numbers in batches(one, SAMPLES_A_TASK):
            yield _Batch(data_set, numbers)


def _look_at_all(shards: Sequence[Shards], workers: int, style: ProgressStyle) -> list[Looked]:
    looked: list[Looked] = []
    total = sum(len(one) for one in shards)
    coming = _batches(shards)
    folders = tuple(str(one.folder) for one in shards)
    unreadable = 0
    with meter("samples audited", total, style) as shown, Pool(min(workers, total), Look, (folders,)) as pool:
        while True:
            while pool.unfinished < 2 * pool.size and (task := next(coming, None)) is not None:
                pool.submit(task, *task)
            finished = next_finished((pool,))
            if finished is None:
                return looked
            if isinstance(finished.error, WorkerDied):
                one = shards[finished.tag.data_set]
                name = one.shard_path(one.place(finished.tag.numbers[0]).shard)
                raise DataError(f"{name}: can't be audited ({finished.error}); verify the shards") from finished.error
            if finished.error is not None:
                raise finished.error
            looked += finished.result
            unreadable += sum(one.seen is None for one in finished.result)
            shown.advance(len(finished.result), f"{unreadable} can't be read" if unreadable else None)


def print_counts(judged: Judged) -> None:
    """What was found, to stdout: a line for each flag and data set."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(row.data_set for row in judged.rows))
    table = Table(title=Text("samples with"), title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(Text(printable(name)), justify="right")
    for flag in judged.counts():
        table.add_row(
            flag, *(str(sum(flag in r.flags.split(",") for r in judged.rows if r.data_set == n)) for n in names)
        )
    table.add_section()
    table.add_row("to exclude", *(str(sum(r.exclude for r in judged.rows if r.data_set == n)) for n in names))
    table.add_row("samples", *(str(sum(r.data_set == n for r in judged.rows)) for n in names))
    Console(highlight=False).print(table)


def check_table_name(path: StoragePath) -> None:
    """Refuse another ending before the work, not after it."""
    if path.suffix.lower() not in TABLES:
        raise MisuseError(f"--out {path}: expected a name that ends in {' or '.join(TABLES)}")


_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("data_set", "listing", "key", "path")),
        ("segment", pa.int32()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("seconds", pa.float64()),
        ("frames", pa.int32()),
        *((name, pa.float64()) for name in ("motion", "moved", "black", "frozen")),
        ("cuts", pa.int32()),
        ("sharpness", pa.float64()),
        *((name, pa.string()) for name in ("flags", "duplicate_of", "leak_of")),
        ("distance", pa.float64()),
        ("mirrored", pa.bool_()),
        ("exclude", pa.bool_()),
        ("error", pa.string()),
    ]
)


def write_table(rows: Sequence[Row], path: StoragePath) -> None:
    """One row a sample, as Parquet or CSV by the name's ending. Same rows, same bytes."""
    check_table_name(path)
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), _COLUMNS.types, strict=True)]
    table = pa.table(columns, schema=_COLUMNS)
    out = io.BytesIO()
    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        csv.write_csv(table, out)
    else:
        from pyarrow import parquet

        parquet.write_table(table, out)
    commit_bytes(path, out.getvalue())
