"""Between rows 1 and 2. A listing and a file of what to leave out → the listing without it.

The file is one that `vmae-shard audit --out` wrote, or text with one source path a line.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from vmae_data.errors import MisuseError
from vmae_data.format import path_from_text, path_to_text
from vmae_data.sources.find import Listing, listing_digest
from vmae_data.sources.video_files import path_below
from vmae_data.storage import StoragePath, read_bytes, storage_path

__all__ = ["Remaining", "exclude_sources"]

ADVICE = "give a file of `vmae-shard audit --out`, or text with one source path a line"


class Remaining(NamedTuple):
    """What is left of a listing, how many sources were left out, and which of the file's paths are not in it."""

    listing: Listing
    left_out: int
    unmatched: tuple[bytes, ...]


def exclude_sources(listing: Listing, file: str | None) -> Remaining:
    """Leave out what the file names, nothing without one. Numbers and names of the classes stay as they are.

    A source is left out when every row of it (one a segment) says so. Raises MisuseError where the file can't be read,
    holds several data sets of which none is this one, names no source, or leaves none.
    """
    if file is None:
        return Remaining(listing, 0, ())
    path = storage_path(file)
    data = read_bytes(path)
    if path.suffix.lower() in (".parquet", ".csv"):
        named = _of_table(_read_table(path, data), listing, file)
    else:
        named = _of_text(data, listing, file)
    left = tuple(source for source in listing.sources if source.path not in named)
    left_out = len(listing.sources) - len(left)
    if named and not left_out:
        raise MisuseError(
            f"{file}: names no source here: its first path of {len(named)} is {path_to_text(next(iter(named)))}, "
            f"a source's is {path_to_text(listing.sources[0].path)}; paths start from SOURCE, or are absolute: {ADVICE}"
        )
    if not left:
        raise MisuseError(f"{file}: leaves out all {left_out} sources; nothing is left to build")
    known = {source.path for source in listing.sources}
    return Remaining(listing._replace(sources=left), left_out, tuple(path for path in named if path not in known))


def _of_text(data: bytes, listing: Listing, file: str) -> dict[bytes, None]:
    if b"\0" in data:
        raise MisuseError(f"{file}: is not text; {ADVICE}")
    lines = (line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").splitlines())
    return dict.fromkeys(path_below(_path(line), listing.folder) for line in lines if line)


def _path(line: bytes) -> bytes:
    """As `path_to_text` writes it; a line that is no UTF-8 is the path itself."""
    try:
        return path_from_text(line.decode("utf-8"))
    except UnicodeDecodeError:
        return line


class _Row(NamedTuple):
    path: str | None
    exclude: bool | None
    listing: str | None
    data_set: str | None


def _read_table(path: StoragePath, data: bytes) -> list[_Row]:
    """The columns that matter; those about the data set may be missing."""
    try:
        columns = _csv_columns(data) if path.suffix.lower() == ".csv" else _parquet_columns(data)
    except (pa.ArrowException, OSError, ValueError) as error:
        words = str(error).splitlines()[0]
        raise MisuseError(f"{path}: can't be read as {path.suffix[1:]} ({words}); {ADVICE}") from error
    for name in ("path", "exclude"):
        if name not in columns:
            raise MisuseError(f"{path}: has no column {name!r}; {ADVICE}")
    if not all(value is None or isinstance(value, bool) for value in columns["exclude"]):
        raise MisuseError(f"{path}: its column 'exclude' is not true or false; {ADVICE}")
    none: list[Any] = [None] * len(columns["path"])
    return [_Row(*values) for values in zip(*(columns.get(name, none) for name in _Row._fields), strict=True)]


def _csv_columns(data: bytes) -> dict[str, list[Any]]:
    from pyarrow import csv

    kinds = {"path": pa.string(), "listing": pa.string(), "data_set": pa.string(), "exclude": pa.bool_()}
    return _columns(csv.read_csv(io.BytesIO(data), convert_options=csv.ConvertOptions(column_types=kinds)))


def _parquet_columns(data: bytes) -> dict[str, list[Any]]:
    from pyarrow import parquet

    return _columns(parquet.read_table(io.BytesIO(data)))


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    return {name: table.column(name).to_pylist() for name in _Row._fields if name in table.column_names}


def _of_table(rows: Iterable[_Row], listing: Listing, file: str) -> dict[bytes, None]:
    """The paths whose every row is excluded. Of several data sets the one that was built from this listing counts:
    two of them may have a file of the same name.
    """
    rows = list(rows)
    listings = {row.listing for row in rows}
    if len(listings) > 1:
        own = listing_digest(listing)
        if own not in listings:
            names = ", ".join(sorted({str(row.data_set) for row in rows}))
            raise MisuseError(
                f"{file}: holds several data sets ({names}), and none was built from this listing; audit each into a file of its"
                " own, or write the paths to leave out into a text file"
            )
        rows = [row for row in rows if row.listing == own]
    kept = {row.path for row in rows if not row.exclude}
    excluded = (row.path for row in rows if row.path is not None and row.exclude and row.path not in kept)
    return dict.fromkeys(map(path_from_text, excluded))
