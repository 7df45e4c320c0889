"""Finished data sets → what is odd in them: measures, near duplicates and flags of every sample, as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa

from vmae_data.audit.flags import AuditReport, AuditSpec, Row, flag_samples
from vmae_data.audit.measure_samples import MeasuredSample, SampleMeasurer, sample_batches
from vmae_data.errors import DataError, MisuseError
from vmae_data.pages.html import printable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.storage import StoragePath, commit_bytes

__all__ = ["AuditReport", "AuditSpec", "audit_shards", "check_table_name", "print_counts", "write_table"]

SAMPLES_PER_TASK = 16
TABLE_SUFFIXES = (".parquet", ".csv")


def audit_shards(
    folders: Sequence[str], spec: AuditSpec, *, workers: int, style: ProgressStyle = ProgressStyle.AUTO
) -> AuditReport:
    """Decode every frame of every sample. The result does not depend on the number of workers.

    A sample that can't be read is a row with the reason. Raises DataError if a folder is no data set or a shard is
    missing, MisuseError if a data set is named twice.
    """
    data_sets = tuple(Shards.open(folder) for folder in folders)
    named: dict[StoragePath, str] = {}
    for shards in data_sets:
        earlier = named.setdefault(shards.folder.resolve(), shards.url)
        if earlier is not shards.url:
            raise MisuseError(
                f"{shards.url}: is named twice (also as {earlier}), so every sample would be a duplicate. Name it once"
            )
    return flag_samples(_measure_all(data_sets, workers, style), data_sets, spec)


def _measure_all(data_sets: Sequence[Shards], workers: int, style: ProgressStyle) -> list[MeasuredSample]:
    measured: list[MeasuredSample] = []
    total = sum(len(shards) for shards in data_sets)
    tasks = ((n, numbers) for n, shards in enumerate(data_sets) for numbers in sample_batches(shards, SAMPLES_PER_TASK))
    folders = tuple(str(shards.folder) for shards in data_sets)
    unreadable = 0
    with (
        ProgressBar("samples audited", total, style) as progress,
        Pool(min(workers, total), SampleMeasurer, (folders,)) as pool,
    ):
        while True:
            while pool.unfinished < 2 * pool.size and (task := next(tasks, None)) is not None:
                pool.submit(task, *task)
            finished = next_finished((pool,))
            if finished is None:
                return measured
            if isinstance(finished.error, WorkerDied):
                data_set, numbers = finished.tag
                shards = data_sets[data_set]
                path = shards.shard_path(shards.member_range(numbers[0]).shard)
                raise DataError(f"{path}: can't be audited ({finished.error}). Verify the shards") from finished.error
            if finished.error is not None:
                raise finished.error
            measured += finished.result
            unreadable += sum(sample.measures is None for sample in finished.result)
            progress.advance(len(finished.result), f"{unreadable} can't be read" if unreadable else None)


def print_counts(report: AuditReport) -> None:
    """Print a table to stdout: a line for each flag, a column for each data set."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(row.data_set for row in report.rows))
    table = Table(title=Text("samples with"), title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(Text(printable(name)), justify="right")
    for flag in report.counts():
        table.add_row(flag, *(str(sum(r.has(flag) for r in report.rows if r.data_set == n)) for n in names))
    table.add_section()
    table.add_row("to exclude", *(str(sum(r.exclude for r in report.rows if r.data_set == n)) for n in names))
    table.add_row("samples", *(str(sum(r.data_set == n for r in report.rows)) for n in names))
    Console(highlight=False).print(table)


def check_table_name(path: StoragePath) -> None:
    """Refuse an unknown suffix before the work, not after it."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise MisuseError(f"--out {path}: expected a name that ends in {' or '.join(TABLE_SUFFIXES)}")


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
    """Write the rows as Parquet or CSV, by the name's suffix. Same rows, same bytes."""
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
