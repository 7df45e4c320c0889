"""A listing and a file of sources to exclude → the listing without them.

The file is the output of `vmae-shard audit --out`, or text with one source path per line.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from vmae_data.errors import MisuseError
from vmae_data.names import path_from_text, path_to_text
from vmae_data.sources.find import Listing, listing_digest
from vmae_data.sources.near_names import near_names
from vmae_data.sources.text import decode_text, read_text, unquote
from vmae_data.sources.video_files import relative_path
from vmae_data.storage import StoragePath, read_bytes, storage_path

__all__ = ["exclude_sources"]

EXPECTED = "Expected a file of `vmae-shard audit --out`, or text with one source path per line"
COLUMN_TYPES = {"path": pa.string(), "listing": pa.string(), "data_set": pa.string(), "exclude": pa.bool_()}


def exclude_sources(listing: Listing, file: str | None, digests: Collection[str] = ()) -> Listing:
    """Remove the sources that the file names. Classes keep their numbers and names.

    `digests` are those of data sets built from parts of the listing: their rows in an audit's file count too.
    A source with several rows (one per segment) is removed if every row excludes it. Raises MisuseError for an
    unreadable file, a file of several data sets without this one, and one that names no source or all sources.
    """
    if file is None:
        return listing
    path = storage_path(file)
    if path.suffix.lower() in (".parquet", ".csv"):
        excluded = _table_paths(_read_columns(path, read_bytes(path)), listing, file, digests)
    else:
        excluded = _text_paths(read_text(path, EXPECTED), listing)
    remaining = tuple(source for source in listing.sources if source.path not in excluded)
    num_excluded = len(listing.sources) - len(remaining)
    if excluded and not num_excluded:
        raise MisuseError(
            f"{file}: names no source of this listing. Its first path of {len(excluded)} is "
            f"{path_to_text(next(iter(excluded)))}, a source's path is {path_to_text(listing.sources[0].path)}. "
            f"Paths are relative to SOURCE, or absolute. {EXPECTED}"
        )
    if not remaining:
        raise MisuseError(f"{file}: excludes all {num_excluded} sources. No source remains to build")
    known = {source.path for source in listing.sources}
    unmatched = tuple(path for path in excluded if path not in known)
    near = near_names(map(path_to_text, unmatched), map(path_to_text, known)) if unmatched else []
    notes = [f"{file}: {name} matches no source; {other} differs only in case or accents" for name, other in near[:3]]
    return listing._replace(
        sources=remaining, num_excluded=num_excluded, unmatched=unmatched, notes=(*listing.notes, *notes)
    )


def _text_paths(data: bytes, listing: Listing) -> dict[bytes, None]:
    lines = (unquote(line.strip()) for line in data.splitlines())
    return dict.fromkeys(relative_path(_line_path(line), listing.folder) for line in lines if line)


def _line_path(line: bytes) -> bytes:
    """A path as `path_to_text` writes it. A line that is not UTF-8 is the path itself."""
    try:
        return path_from_text(line.decode("utf-8"))
    except UnicodeDecodeError:
        return line


def _read_columns(path: StoragePath, data: bytes) -> dict[str, list[Any]]:
    """The columns of COLUMN_TYPES. `listing` and `data_set` are optional: None in each row if missing."""
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".csv":
            text = decode_text(data, str(path), EXPECTED)
            table = csv.read_csv(
                io.BytesIO(text),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=COLUMN_TYPES),
            )
        else:
            table = parquet.read_table(io.BytesIO(data))
        columns = {name: table.column(name).to_pylist() for name in COLUMN_TYPES if name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        message = str(error).splitlines()[0]
        raise MisuseError(f"{path}: can't be read as {path.suffix[1:]} ({message}). {EXPECTED}") from error
    for name in ("path", "exclude"):
        if name not in columns:
            raise MisuseError(f"{path}: has no column {name!r}. {EXPECTED}")
    if not all(value is None or isinstance(value, bool) for value in columns["exclude"]):
        raise MisuseError(f"{path}: its column 'exclude' is not true or false. {EXPECTED}")
    missing: list[Any] = [None] * table.num_rows
    return {name: columns.get(name, missing) for name in COLUMN_TYPES}


def _table_paths(
    columns: dict[str, list[Any]], listing: Listing, file: str, digests: Collection[str]
) -> dict[bytes, None]:
    """The paths that every row excludes. Of several data sets, only the rows of those built from this listing count:
    two data sets may have a file of the same name.
    """
    found = set(columns["listing"])
    own = {listing_digest(listing.sources, listing.classes), *digests} if len(found) > 1 else found
    if not own & found:
        names = ", ".join(sorted({str(name) for name in columns["data_set"]}))
        raise MisuseError(
            f"{file}: has several data sets ({names}), none built from this listing. Audit each into its own file, or "
            "write the paths to exclude into a text file"
        )
    rows = [
        (path, exclude)
        for path, exclude, digest in zip(columns["path"], columns["exclude"], columns["listing"], strict=True)
        if digest in own
    ]
    kept = {path for path, exclude in rows if not exclude}
    excluded = (path for path, exclude in rows if path is not None and exclude and path not in kept)
    return dict.fromkeys(map(path_from_text, excluded))
